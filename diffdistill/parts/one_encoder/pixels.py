"""The pipeline of a pixel student whose one draw is made by K decoders over one encoder pass (TiUE, 2505.21960).

    h, skips = encoder(x_1, t_1),        F_k = decoder(h, skips, t_k),        x = a x0 + s eps

x0 and eps are read off F_k and x_k, and x_{k+1} = a_{k+1} x0 + s_{k+1} eps: DDIM (2010.02502) on the levels that the
student's own scheduler visits in K steps, whose steps draw noise; the last x0 is the image.

This file and its `decoders.py` need torch and diffusers alone, and lie as `pipeline.py` in the student's folder:
`DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)`.
"""

from typing import Any

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, ImagePipelineOutput
from torch import Tensor

from .decoders import parallel_decoders  # relative: so it is found in a model's folder too


class OneEncoderPixelPipeline(ConsistencyModelPipeline):
    """A network of pixels and its scheduler, EDM's or one with training steps.

    >>> from diffdistill.assets import asset
    >>> pipeline = OneEncoderPixelPipeline.from_pretrained(asset("fashion_mnist_teacher"))
    >>> pipeline(batch_size=2, class_labels=[0, 9], output_type="pt").images.shape
    torch.Size([2, 1, 28, 28])
    """

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Tensor | list[int] | int | None = None,
        num_inference_steps: int = 4,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """As of `ConsistencyModelPipeline`; num_inference_steps: decoders, those that the student was trained with."""
        device, config = self._execution_device, self.unet.config
        sides = config.sample_size if isinstance(config.sample_size, list | tuple) else (config.sample_size,) * 2
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        times = self.scheduler.timesteps
        noise = batch_size, config.in_channels, *sides, self.unet.dtype, device, generator, latents
        x = self.prepare_latents(*noise)
        labels = self.prepare_class_labels(batch_size, device, class_labels)
        x_in = self.scheduler.scale_model_input(x, times[0])
        with parallel_decoders(self.unet, times):
            outputs = self.unet(x_in, times[0], class_labels=labels, return_dict=False)[0]
        places = self._places(times)
        for output, (a, s), (following_a, following_s) in zip(
            outputs.chunk(len(times)), places, [*places[1:], (1.0, 0.0)], strict=True
        ):
            x0 = self._x0(output, x, a, s)
            x = following_a * x0 + following_s * (x - a * x0) / s
        images = self.postprocess_image(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _places(self, times: Tensor) -> list[tuple[float, float]]:
        """a and s at each of the times."""
        if isinstance(self.scheduler, CMStochasticIterativeScheduler):
            return [(1.0, sigma) for sigma in self.scheduler.sigmas[: len(times)].tolist()]
        signal = self.scheduler.alphas_cumprod.double()[times.long().cpu()]
        return list(zip(signal.sqrt().tolist(), (1 - signal).sqrt().tolist(), strict=True))

    def _x0(self, output: Tensor, x: Tensor, a: float, s: float) -> Tensor:
        """x0 of what the network gave for x."""
        if isinstance(self.scheduler, CMStochasticIterativeScheduler):
            skip, out = self.scheduler.get_scalings_for_boundary_condition(s)
            return skip * x + out * output
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return a * x - s * output
        return output if kind == "sample" else (x - s * output) / a
