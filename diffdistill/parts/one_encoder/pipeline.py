"""Stable Diffusion whose K steps share one pass of the UNet's encoder (TiUE, 2505.21960).

    h, skips = encoder(x_1, t_1),        eps_k = decoder(h, skips, t_k),        x_{k+1} = step(eps_k, t_k, x_k)

No eps_k waits for an earlier step: K steps of the scheduler follow on the K outputs. K = 1 is the plain pipeline. A
UNet that was not trained so loses much by it.

This file and its `decoders.py` need torch and diffusers alone. As `pipeline.py` beside a Stable Diffusion folder it is
that model's pipeline, `DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)`;
without these words the folder is a stock one.
"""

from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from torch import Tensor

from .decoders import parallel_decoders  # relative: so it is found in a model's folder too


class OneEncoderPipeline(StableDiffusionPipeline):
    """Stable Diffusion whose K steps share one pass of the UNet's encoder.

    >>> from diffdistill.assets import asset
    >>> pipeline = OneEncoderPipeline.from_pretrained(asset("emoji_teacher"))
    >>> pipeline.set_progress_bar_config(disable=True)
    >>> pipeline("a noto style emoji of a cat", output_type="latent").images.shape
    torch.Size([1, 8, 8, 8])
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int = 4,
        guidance_scale: float = 1.0,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """As of `StableDiffusionPipeline`; guidance_scale: 1 is none, for it is in the weights of a student."""
        device, guided = self._execution_device, guidance_scale > 1
        sides = [side or self.unet.config.sample_size * self.vae_scale_factor for side in (height, width)]
        texts, null = self.encode_prompt(prompt, device, num_images_per_prompt, guided, negative_prompt)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        times = self.scheduler.timesteps
        channels = self.unet.config.in_channels
        x = self.prepare_latents(len(texts), channels, *sides, texts.dtype, device, generator, latents)
        x_in = self.scheduler.scale_model_input(x, times[0])
        both = (torch.cat([x_in, x_in]), torch.cat([null, texts])) if guided else (x_in, texts)
        with parallel_decoders(self.unet, times):
            outputs = self.unet(both[0], times[0], encoder_hidden_states=both[1], return_dict=False)[0]
        extra = self.prepare_extra_step_kwargs(generator, 0.0)
        for time, output in zip(times, outputs.chunk(len(times)), strict=True):
            if guided:
                without, with_text = output.chunk(2)
                output = without + guidance_scale * (with_text - without)
            x = self.scheduler.step(output, time, x, **extra, return_dict=False)[0]
        images: Any = x
        if output_type != "latent":
            images = self.vae.decode(x / self.vae.config.scaling_factor, return_dict=False)[0]
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, None) if return_dict else (images, None)
