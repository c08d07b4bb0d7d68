"""Images to latents and back: the VAE of a pipeline."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffdistill.data.pixels import to_model_range
from diffdistill.machine import send
from diffdistill.precision import dtype_of

ENCODED_PIXELS = 1 << 20


class Pixels(Protocol):
    """An image in memory: uint8 `(3, H, W)`."""

    @property
    def pixels(self) -> Tensor: ...


class Parts:
    """The parts of a pipeline, frozen, and where they are."""

    part = "unet"  # the network, by its name in the pipeline

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline
        self.network: Any = getattr(pipeline, self.part)
        self.device = torch.device("cpu")
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()

    def to(self, device: torch.device, encoder_dtype: torch.dtype | None) -> None:
        """Everything to the device, in float32; the text encoders, which only feed the network, as autocast has it."""
        self.place(device, encoder_dtype)
        nn.Module.to(self.network, device, torch.float32)

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The text encoders, by their names in the pipeline."""
        parts = self.pipeline.components.items()
        return {name: part for name, part in parts if name.startswith("text_encoder") and isinstance(part, nn.Module)}

    def place(self, device: torch.device, encoder_dtype: torch.dtype | None = None) -> None:
        """All but the network to the device, the text encoders in a precision, if one is named."""
        self.device = torch.device(device)
        for name, part in self.pipeline.components.items():
            if isinstance(part, nn.Module) and name != self.part:
                nn.Module.to(part, device, encoder_dtype if name.startswith("text_encoder") else None)


class Latents(Parts):
    """z = (VAE's latent - shift) * scale, of variance near 1."""

    @torch.no_grad()
    def moments(self, pictures: Sequence[Pixels]) -> Tensor:
        """Mean and log variance of the latents, `(B, 2C, H, W)`, float32 whatever the precision of the network.

        One image at a time: a VAE's activations at 1024 pixels take more memory than all else in this pass.
        """
        pixels = (send(to_model_range(picture.pixels[None]), self.device) for picture in pictures)
        return torch.cat([self._moments(image) for image in pixels])

    def _moments(self, images: Tensor) -> Tensor:
        """`moments` of images `(B, 3, H, W)` on the device, in the precision of the VAE."""
        vae = self.pipeline.vae
        return vae.encode(images.to(dtype_of(vae))).latent_dist.parameters.float()

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
        images = images.to(self.device)
        rows = max(1, ENCODED_PIXELS // (images.shape[-2] * images.shape[-1]))
        return self.latents(torch.cat([self._moments(part) for part in images.split(rows)]))

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1], float32, not clamped, of latents; differentiable, the VAE being a constant."""
        shift, scale = self._shift_and_scale()
        vae = self.pipeline.vae
        raw = latents.to(self.device).float() / scale + shift
        return vae.decode(raw.to(dtype_of(vae)), return_dict=False)[0].float()

    def _shift_and_scale(self) -> tuple[float, float]:
        config = self.pipeline.vae.config
        return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor
