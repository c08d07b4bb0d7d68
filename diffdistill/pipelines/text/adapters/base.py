"""What a text-to-image pipeline of diffusers is made of: texts, latents, and the call of its network.

No forward is copied. An adapter knows how its pipeline class calls the network; everything else is the same for all.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffdistill.data.pairs import Picture
from diffdistill.data.pixels import to_model_range
from diffdistill.pipelines.text.kept import Condition, Kept

ENCODED_PIXELS = 1 << 20


class Size(NamedTuple):
    """What SDXL and its kin are told of an image (2307.01952, section 2.2): pixels, height before width."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


class Adapter:
    """A `StableDiffusionPipeline` (SD 1.x and 2.x); other classes change what differs.

    To support another one, subclass this with its `text` and `arguments` (and `predict`, where the network is called
    otherwise), and add it to `ADAPTERS`.
    """

    part = "unet"  # the network, by its name in the pipeline

    def __init__(self, pipeline: Any, source: Path):
        self.pipeline, self.source = pipeline, source
        self.network: Any = getattr(pipeline, self.part)
        self.device = torch.device("cpu")
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        # Side in pixels of the images; that of the network's training until told otherwise.
        self.image_size: int = self.native_size()
        # What a guidance-distilled network is told; others have no such input.
        self.guidance = 1.0
        self.kept = Kept()

    def __deepcopy__(self, _memo: Any) -> "Adapter":
        """Shared: a copy of a denoiser is another network in the same pipeline."""
        return self

    @property
    def scheduler(self) -> Any:
        return self.pipeline.scheduler

    def native_size(self) -> int:
        return self.network.config.sample_size * self.pipeline.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        """What sides in pixels must be multiples of: the VAE's factor, times that of the network's down-sampling."""
        return self.pipeline.vae_scale_factor * 2 ** (len(self.network.config.block_out_channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, h, w)` of what the network makes."""
        side = self.image_size // self.pipeline.vae_scale_factor
        return self.pipeline.vae.config.latent_channels, side, side

    def to(self, device: torch.device, encoder_dtype: torch.dtype | None) -> None:
        """Everything to the device, in float32; the text encoders, which only feed the network, as autocast has it."""
        self.place(device, encoder_dtype)
        nn.Module.to(self.network, device, torch.float32)

    def place(self, device: torch.device, encoder_dtype: torch.dtype | None = None) -> None:
        """All but the network to the device."""
        self.device = torch.device(device)
        for name, part in self.pipeline.components.items():
            if isinstance(part, nn.Module) and name != self.part:
                wanted = encoder_dtype if name.startswith("text_encoder") else None
                nn.Module.to(part, device, wanted or torch.float32)

    def encoded(self, prompt: str | None) -> Condition:
        """What the text encoders say, on the CPU; None is what guidance sets the prompt against.

        One prompt at a time, so that it does not depend on the batch it is in. The last used ones are `kept`.
        """

        def make() -> Condition:
            # A grid may ask first, in inference mode, whose tensors no later gradient may meet.
            with torch.inference_mode(False), torch.no_grad():
                return rows_of(self.null() if prompt is None else self.text(prompt), lambda rows: rows.cpu())

        return self.kept.get(prompt, make)

    def text(self, prompt: str) -> Condition:
        """The encoders' words on one prompt, each tensor with one row."""
        embeds, _ = self.pipeline.encode_prompt(prompt, self.device, 1, False)
        return {"encoder_hidden_states": embeds}

    def null(self) -> Condition:
        """The same of what the stock pipeline guides away from where it is given no negative prompt."""
        return self.text("")

    def arguments(self, rows: Condition, sizes: Sequence[Size]) -> Condition:
        """Keyword arguments of the network, from encoded texts and what it is told of the images, a row an image."""
        return rows

    def joined(
        self,
        prompts: Sequence[str | None],
        sizes: Sequence[Size] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Condition:
        """`arguments` of some prompts, on the adapter's device.

        sizes: None is `image_size`, not cropped; dtype: of the texts, None leaves them as they were encoded.
        """
        texts = [self.encoded(prompt) for prompt in prompts]
        rows = {name: torch.cat([text[name] for text in texts]).to(self.device) for name in texts[0]}
        rows = {name: value.to(dtype) if value.is_floating_point() else value for name, value in rows.items()}
        if sizes is None:
            whole = self.image_size, self.image_size
            sizes = [Size(whole, (0, 0), whole)] * len(prompts)
        return self.arguments(rows, sizes)

    def conditions(self, prompts: Sequence[str], pictures: Sequence[Picture]) -> Condition:
        """`arguments` of prompts and of the files that their images were cut from."""
        sizes = [Size(one.original, one.crop, (one.pixels.shape[-2], one.pixels.shape[-1])) for one in pictures]
        return self.joined(prompts, sizes)

    @torch.no_grad()
    def moments(self, pictures: Sequence[Picture]) -> Tensor:
        """Mean and log variance of the latents, `(B, 2C, H, W)`, float32 whatever the precision of the network.

        One image at a time: a VAE's activations at 1024 pixels take more memory than all else in this pass.
        """
        pixels = (to_model_range(picture.pixels[None]).to(self.device) for picture in pictures)
        return torch.cat([self.pipeline.vae.encode(image).latent_dist.parameters for image in pixels])

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """z = (mean + std noise - shift) * scale, `(B, C, H, W)`; the mean where there is no noise."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        posterior = DiagonalGaussianDistribution(moments)
        sample = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        shift, scale = self._shift_and_scale()
        return (sample - shift) * scale

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The mean latents of images `(B, 3, H, W)` in [-1, 1], so many at a time as make one of 1024 pixels."""
        images, encode = images.to(self.device), self.pipeline.vae.encode
        rows = max(1, ENCODED_PIXELS // (images.shape[-2] * images.shape[-1]))
        return self.latents(torch.cat([encode(part).latent_dist.parameters for part in images.split(rows)]))

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1], not clamped, of latents; differentiable, the VAE being a constant."""
        shift, scale = self._shift_and_scale()
        return self.pipeline.vae.decode(latents.to(self.device) / scale + shift, return_dict=False)[0]

    def _shift_and_scale(self) -> tuple[float, float]:
        config = self.pipeline.vae.config
        return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor

    def predict(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """One call of a network of this pipeline: `(B, C, H, W)`, t `(B,)` in its own units."""
        return network(x_t, t, **cond, return_dict=False)[0]

    def arrange(self, noise: Tensor) -> Tensor:
        """Noise `(B, C, h, w)` that the stock scheduler draws between steps, in the order of its own state."""
        return noise

    def feature(self, output: Any) -> Tensor:
        """What a submodule returned, as a map `(B, C, h, w)`."""
        return output[0] if isinstance(output, tuple) else output

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network is told the guidance scale, and needs no second pass."""
        return False

    def student_call(self) -> dict[str, float]:
        """What a student's pipeline is called with beside its steps: no null pass, for guidance is in the weights."""
        size = {} if self.image_size == self.native_size() else {"height": self.image_size, "width": self.image_size}
        return {"guidance_scale": self.guidance if self.embeds_guidance else 1.0, **size}

    def shift(self) -> float:
        """Of a flow's times towards noise (2403.03206, eq. 23), at this size of image."""
        return float(self.scheduler.config.shift)

    def default_sigmas(self, steps: int) -> list[float] | None:
        """The flow times that the pipeline hands to its scheduler where the user gives none; None: it hands none."""
        return None


class StableDiffusion(Adapter):
    """A `StableDiffusionPipeline`, as the base has it."""


def rows_of(cond: Condition, pick: Callable[[Tensor], Tensor]) -> Condition:
    """`pick` applied to every tensor of the conditions."""
    return {name: rows_of(value, pick) if isinstance(value, dict) else pick(value) for name, value in cond.items()}
