"""ADM as EDM trains it (Dhariwal and Nichol 2105.05233; Karras et al. 2206.00364, networks appendix)."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin  # diffusers' pipelines look for these names beside the class
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.parts.edm.layers import Block, Conv, geometric_frequencies, group_norm, sinusoids
from diffdistill.parts.edm.network import EDMNetwork
from diffdistill.parts.edm.preconditioning import Preconditioning

HEAD_CHANNELS = 64


class DhariwalUNet(EDMNetwork, ModelMixin, ConfigMixin):
    """ADM: the embedding scales and shifts each block's second norm, attention has heads of 64 channels.

    The defaults are the ImageNet-64 network; `attn_resolutions` are in pixels.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        num_class_embeds: int | None = None,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        preconditioning: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.outer = Preconditioning(**(preconditioning or {}))
        self.embedding_channels = model_channels * channel_mult_emb
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, self.embedding_channels)
        self.map_layer1 = nn.Linear(self.embedding_channels, self.embedding_channels)
        self.map_label = nn.Linear(label_dim, self.embedding_channels, bias=False) if label_dim else None
        channels = self.build_decoder(self.build_encoder(model_channels * channel_mult[0]))
        self.out_norm = group_norm(channels)
        self.out_conv = Conv(channels, out_channels, 3)

    def _block(self, in_channels: int, out_channels: int, attention: bool = False, direction: Any = None) -> Block:
        return Block(
            in_channels,
            out_channels,
            self.embedding_channels,
            heads=out_channels // HEAD_CHANNELS if attention else 0,
            direction=direction,
            project_skip=False,
            adaptive=True,
            skip_scale=1.0,
            eps=1e-5,
            dropout=self.config.dropout,
        )

    def embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        count = self.config.model_channels // 2
        parts = sinusoids(noise, geometric_frequencies(count, reach_end=False, device=noise.device))
        embedding = torch.cat(parts, dim=1).to(self.dtype)
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment.to(self.dtype))
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None and labels is not None:
            embedding = embedding + self.map_label(labels.to(self.dtype))
        return F.silu(embedding)

    def head(self, x: Tensor) -> Tensor:
        return self.out_conv(F.silu(self.out_norm(x)))
