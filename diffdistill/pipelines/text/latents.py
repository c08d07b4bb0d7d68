"""Images to latents and back: the VAE of a pipeline."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffdistill.data.pixels import to_model_range
from diffdistill.machine import send
from diffdistill.precision import Precision, dtype_of
from diffdistill.sharding import how

ENCODED_PIXELS = 1 << 20


class Pixels(Protocol):
    """An image in memory: uint8 `(3, H, W)`."""

    @property
    def pixels(self) -> Tensor: ...


def vae_dtype(precision: Precision, config: Any) -> str:
    """What a VAE is held in. One whose config says so overflows in float16 (SDXL's), and is float32 in stock pipelines
    then, too.
    """
    return "float32" if precision.vae == "float16" and config.get("force_upcast", True) else precision.vae


def cast_frozen(name: str, part: Any, precision: Precision) -> None:
    """A part of a pipeline that is not its network, in its precision."""
    held = vae_dtype(precision, part.config) if name == "vae" else precision.encoders
    nn.Module.to(part, getattr(torch, held))


def move(part: nn.Module, place: torch.device) -> None:
    """A network to a device, where it is not there."""
    first = next(part.parameters(), None)
    if first is not None and first.device != place:
        nn.Module.to(part, place)


class Parts:
    """The parts of a pipeline, frozen, and where they are.

    resting: whether text encoders and VAE wait in the CPU's memory, and are on the device while they are at work: from
    `wake`, which what uses them calls, until `rest`.
    """

    part = "unet"  # the network, by its name in the pipeline
    resting = False

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
    def frozen(self) -> dict[str, nn.Module]:
        """All networks but the one, by their names in the pipeline."""
        parts = self.pipeline.components.items()
        return {name: part for name, part in parts if isinstance(part, nn.Module) and name != self.part}

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The text encoders, by their names in the pipeline."""
        parts = self.pipeline.components.items()
        return {name: part for name, part in parts if name.startswith("text_encoder") and isinstance(part, nn.Module)}

    def place(self, device: torch.device, encoder_dtype: torch.dtype | None = None) -> None:
        """All but the network to the device, or where it rests; the text encoders in a precision, if one is named."""
        self.device = torch.device(device)
        for name, part in self.frozen.items():
            if encoder_dtype is not None and name.startswith("text_encoder"):
                nn.Module.to(part, encoder_dtype)
            move(part, torch.device("cpu") if self.resting else self.device)

    def wake(self, kind: str = "") -> None:
        """The parts whose names begin so, all unless one is named, are on the device from here on."""
        if self.resting:
            self._send(kind, self.device)

    def rest(self, kind: str = "") -> None:
        """They are not needed for a while."""
        if self.resting:
            self._send(kind, torch.device("cpu"))

    def _send(self, kind: str, place: torch.device) -> None:
        for name, part in self.frozen.items():
            if name.startswith(kind) and how(part) is None:  # what is sharded is where it is
                move(part, place)


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
        self.wake("vae")
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
        self.wake("vae")
        shift, scale = self._shift_and_scale()
        vae = self.pipeline.vae
        raw = latents.to(self.device).float() / scale + shift
        return vae.decode(raw.to(dtype_of(vae)), return_dict=False)[0].float()

    def _shift_and_scale(self) -> tuple[float, float]:
        config = self.pipeline.vae.config
        return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor
