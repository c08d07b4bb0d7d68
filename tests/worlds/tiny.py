"""Tiny real diffusers models for the tests."""

import torch
from diffusers import UNet2DModel

from diffdistill.denoiser import Denoiser
from diffdistill.models import UViT
from diffdistill.process import EDM


def tiny_unet(classes: int | None = 4, channels: int = 1, size: int = 8, seed: int = 0) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=classes,
    )


def tiny_teacher(seed: int = 0) -> Denoiser:
    """Three classes and the null class; 8x8 gray."""
    return Denoiser(tiny_unet(4, seed=seed), EDM(), null_class=3).eval()


def tiny_uvit(classes=4, channels=1, seed=0, **more):
    torch.manual_seed(seed)
    size = {"patch_size": 2, "hidden_size": 16, "depth": 4, "num_attention_heads": 2}
    return UViT(8, channels, num_class_embeds=classes, **size | more).eval()
