"""Tiny EDM networks with weights that are a formula, so that other code can be given the same."""

import math
from typing import Any

import torch
from torch import Tensor

from diffdistill.models import DhariwalUNet, SongUNet

SMALL: dict[str, Any] = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
FOURIER = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
LAYOUTS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "ddpmpp": (SongUNet, SMALL),
    "ncsnpp": (SongUNet, SMALL | FOURIER),
    "adm": (DhariwalUNet, SMALL | {"model_channels": 64}),
}


def tiny_network(layout: str, kind: str = "edm", classes: int = 4, augment: int = 9, **more: Any) -> Any:
    """8x8 RGB; four classes and augmentation labels unless told otherwise; in evaluation mode."""
    cls, settings = LAYOUTS[layout]
    network = cls(
        sample_size=8,
        out_channels=6 if kind == "iddpm" else 3,
        label_dim=classes,
        num_class_embeds=classes or None,
        augment_dim=augment,
        preconditioning={"kind": kind},
        **settings | more,
    )
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(wave(name, tensor))
    return network.eval()


def wave(name: str, like: Tensor) -> Tensor:
    """Numbers of a sensible size for the parameter of that name."""
    values = torch.sin(torch.arange(like.numel(), dtype=torch.float64) * 0.7 + sum(map(ord, name))).reshape(like.shape)
    if name.endswith("freqs"):
        return 16 * values
    if like.ndim == 1:
        return 0.1 * values + float("norm" in name and name.endswith("weight"))
    return 1.4 * values / math.sqrt(like[0].numel())
