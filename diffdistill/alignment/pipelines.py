"""What aligning needs of a text-to-image pipeline of diffusers: texts, latents, conditions. No forward is copied."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.data.pairs import Picture
from diffdistill.data.pixels import to_model_range
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.models.folder import locate, read_json

Condition = dict[str, Any]


class StableDiffusion:
    """A `StableDiffusionPipeline` (SD 1.x and 2.x): its UNet is trained, all else is frozen.

    To support another class, subclass this with its `text` and `conditions`, and add it to `ADAPTERS`.
    """

    part = "unet"  # the network, by its name in the pipeline

    def __init__(self, pipeline: Any, source: Path):
        self.pipeline, self.source = pipeline, source
        self.network: Any = getattr(pipeline, self.part)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self._texts: dict[str, Condition] = {}

    @property
    def scheduler(self) -> Any:
        return self.pipeline.scheduler

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the network was made for."""
        return self.network.config.sample_size * self.pipeline.vae_scale_factor

    def to(self, device: torch.device, encoder_dtype: torch.dtype | None) -> None:
        """Everything to the device, in float32; the text encoders, which only feed the network, as autocast has it."""
        for name, part in self.pipeline.components.items():
            if isinstance(part, nn.Module):
                wanted = encoder_dtype if name.startswith("text_encoder") else None
                nn.Module.to(part, device, wanted or torch.float32)

    @torch.no_grad()
    def encoded(self, prompt: str) -> Condition:
        """What the text encoders say, kept. One prompt at a time, so that it does not depend on the batch it is in."""
        if prompt not in self._texts:
            self._texts[prompt] = self.text(prompt)
        return self._texts[prompt]

    def text(self, prompt: str) -> Condition:
        embeds, _ = self.pipeline.encode_prompt(prompt, self.pipeline.device, 1, False)
        return {"encoder_hidden_states": embeds}

    def conditions(self, prompts: Sequence[str], pictures: Sequence[Picture]) -> Condition:
        """Keyword arguments of the network, a row an image."""
        rows = [self.encoded(prompt) for prompt in prompts]
        return {"encoder_hidden_states": torch.cat([row["encoder_hidden_states"] for row in rows])}

    @torch.no_grad()
    def moments(self, pictures: Sequence[Picture]) -> Tensor:
        """Mean and log variance of the latents, `(B, 2C, H, W)`, float32 whatever the precision of the network.

        One image at a time: a VAE's activations at 1024 pixels take more memory than all else in this pass.
        """
        pixels = (to_model_range(picture.pixels[None]).to(self.pipeline.device) for picture in pictures)
        return torch.cat([self.pipeline.vae.encode(image).latent_dist.parameters for image in pixels])

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """z = (mean + std noise - shift) * scale, `(B, C, H, W)`; the mean where there is no noise."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        posterior, config = DiagonalGaussianDistribution(moments), self.pipeline.vae.config
        sample = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return (sample - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    def predict(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """One call of a network of this pipeline: the trained one, or its reference."""
        return network(x_t, t, **cond, return_dict=False)[0]


class StableDiffusionXL(StableDiffusion):
    """A `StableDiffusionXLPipeline`: two text encoders, and for each image its own size and crop."""

    def text(self, prompt: str) -> Condition:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompt, device=self.pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeds, "text_embeds": pooled}

    def conditions(self, prompts: Sequence[str], pictures: Sequence[Picture]) -> Condition:
        """Beside the text: `(original height, width, crop top, left, target height, width)` (2307.01952, 2.2).

        Of each image, not of the pair: the two files of a pair may differ in size.
        """
        rows = [self.encoded(prompt) for prompt in prompts]
        ids = [(*picture.original, *picture.crop, *picture.pixels.shape[-2:]) for picture in pictures]
        pooled = torch.cat([row["text_embeds"] for row in rows])
        # In float32 whatever the text's precision: bfloat16 would make 1365 pixels 1368.
        time_ids = torch.tensor(ids, dtype=torch.float32, device=pooled.device)
        return {
            "encoder_hidden_states": torch.cat([row["encoder_hidden_states"] for row in rows]),
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids},
        }


class StableDiffusion3(StableDiffusion):
    """A `StableDiffusion3Pipeline`: a transformer that predicts the velocity of a flow."""

    part = "transformer"

    def text(self, prompt: str) -> Condition:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt, None, None, device=self.pipeline.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def conditions(self, prompts: Sequence[str], pictures: Sequence[Picture]) -> Condition:
        rows = [self.encoded(prompt) for prompt in prompts]
        return {
            name: torch.cat([row[name] for row in rows]) for name in ("encoder_hidden_states", "pooled_projections")
        }

    def predict(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return network(hidden_states=x_t, timestep=t, **cond, return_dict=False)[0]


ADAPTERS: dict[str, type[StableDiffusion]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
}


def rows_of(cond: Condition, pick: Callable[[Tensor], Tensor]) -> Condition:
    """`pick` applied to every tensor of the conditions."""
    return {name: rows_of(value, pick) if isinstance(value, dict) else pick(value) for name, value in cond.items()}


def load_pipeline(model: str) -> StableDiffusion:
    """Read a pipeline folder or Hub id; never a pickle, never its own code.

    Raises ConfigError for a class without adapter, CheckpointError for a folder that is missing or damaged, and
    ConfigError without transformers.
    """
    folder = locate(model)
    name = str(read_json(folder / "model_index.json").get("_class_name"))
    if name not in ADAPTERS:
        raise ConfigError(
            f"'{model}' is a {name}, and align has adapters for {', '.join(ADAPTERS)}; give one of these, or add a "
            f"subclass of diffdistill.alignment.pipelines.StableDiffusion to ADAPTERS there"
        )
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "aligning a text-to-image pipeline needs transformers: pip install 'diffdistill[text]'"
        ) from error
    import diffusers

    try:
        pipeline = getattr(diffusers, name).from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"'{model}' could not be loaded ({' '.join(str(error).split())[:200]}); make or fetch the folder again"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return ADAPTERS[name](pipeline, folder)
