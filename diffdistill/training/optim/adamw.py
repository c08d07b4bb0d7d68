"""AdamW (1711.05101), torch's own: all of a step in one pass over the memory where the device has that (`fused`).

It rounds otherwise than the step tensor by tensor, by a few last bits; its moments are the same, and checkpoints go
from one to the other. Seconds of one CPU thread a step: docs/performance.md.
"""

from collections.abc import Iterable

import torch
from torch import nn

from diffdistill.optimizers import Optimizer
from diffdistill.sharding import is_sharded

FUSED = ("cpu", "cuda")


def build(parameters: list[nn.Parameter], settings: Optimizer) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=settings.betas, eps=1e-8, weight_decay=settings.weight_decay,
        fused=can_fuse(parameters) or None,
    )  # fmt: skip


def can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether the fused step is for weights of this kind and place; sharded ones have torch's own choice."""
    return all(p.device.type in FUSED and p.is_floating_point() and not is_sharded(p) for p in parameters)
