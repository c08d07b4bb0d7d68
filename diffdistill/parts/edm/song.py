"""DDPM++ and NCSN++ as EDM trains them (Song et al. 2011.13456; Karras et al. 2206.00364, networks appendix)."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin  # diffusers' pipelines look for these names beside the class
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.parts.edm.layers import Block, Conv, PyramidDown, geometric_frequencies, group_norm, sinusoids
from diffdistill.parts.edm.network import EDMNetwork
from diffdistill.parts.edm.preconditioning import Preconditioning


class SongUNet(EDMNetwork, ModelMixin, ConfigMixin):
    """DDPM++ with the defaults; NCSN++ with embedding_type fourier, encoder_type residual, channel_mult_noise 2,
    resample_filter (1, 3, 3, 1).

    Levels halve the resolution; each has `num_blocks` residual blocks (one more on the way up), attention at
    `attn_resolutions` (pixels). NCSN++ feeds a pyramid of filtered images into every level of the encoder.
    """

    map_noise: nn.Module | None

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        num_class_embeds: int | None = None,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "residual"] = "standard",
        resample_filter: Sequence[int] = (1, 1),
        preconditioning: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.outer = Preconditioning(**(preconditioning or {}))
        noise, self.embedding_channels = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise = FourierNoise(noise) if embedding_type == "fourier" else None
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise, self.embedding_channels)
        self.map_layer1 = nn.Linear(self.embedding_channels, self.embedding_channels)
        channels = self.build_decoder(self.build_encoder(model_channels))
        self.dec[f"{sample_size}x{sample_size}_aux_norm"] = group_norm(channels, 1e-6)
        self.dec[f"{sample_size}x{sample_size}_aux_conv"] = Conv(channels, out_channels, 3)

    def _block(self, in_channels: int, out_channels: int, attention: bool = False, direction: Any = None) -> Block:
        return Block(
            in_channels,
            out_channels,
            self.embedding_channels,
            heads=int(attention),
            direction=direction,
            taps=self.config.resample_filter,
            project_skip=True,
            adaptive=False,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            dropout=self.config.dropout,
        )

    def _attends_up(self, size: int, index: int) -> bool:
        return index == self.config.num_blocks and super()._attends_up(size, index)

    def _build_down(self, level: int, channels: int) -> None:
        super()._build_down(level, channels)
        c, size = self.config, self.config.sample_size >> level
        if c.encoder_type == "residual":
            # The pyramid is an image at first, and then what it became a level above.
            pyramid = c.in_channels if level == 1 else c.model_channels * c.channel_mult[level - 2]
            self.enc[f"{size}x{size}_aux_residual"] = PyramidDown(pyramid, channels, c.resample_filter)

    def embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        if self.map_noise is not None:
            embedding = self.map_noise(noise)
        else:
            count = self.config.model_channels * self.config.channel_mult_noise // 2
            cosines, sines = sinusoids(noise, geometric_frequencies(count, reach_end=True, device=noise.device))
            embedding = torch.cat([sines, cosines], dim=1)
        embedding = embedding.to(self.dtype)
        if self.map_label is not None and labels is not None:
            # One-hot vectors are scaled to unit variance over the classes.
            embedding = embedding + self.map_label(labels.to(self.dtype) * math.sqrt(self.config.label_dim))
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment.to(self.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips: list[Tensor] = []
        pyramid = x
        for layer in self.enc.values():
            if isinstance(layer, PyramidDown):
                # The pyramid joins the features at once: it is their sum from here on, and what goes across.
                x = pyramid = skips[-1] = (x + layer(pyramid)) / math.sqrt(2)
            else:
                x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
                skips.append(x)
        return x, skips

    def head(self, x: Tensor) -> Tensor:
        size = self.config.sample_size
        return self.dec[f"{size}x{size}_aux_conv"](F.silu(self.dec[f"{size}x{size}_aux_norm"](x)))


class FourierNoise(nn.Module):
    """Random Fourier features (2006.10739): frequencies 16 N(0, 1), drawn once and part of the weights."""

    freqs: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, noise: Tensor) -> Tensor:
        """c_noise `(B,)` -> `(B, channels)`, float32."""
        cosines, sines = sinusoids(noise, 2 * math.pi * self.freqs.float())
        return torch.cat([sines, cosines], dim=1)
