"""Adafactor (1804.04235) with convolution kernels `(O, I, h, w)` taken as matrices `(O, I h w)`.

torch.optim.Adafactor keeps means over the last two axes of a kernel, 3 x 3, which is two thirds of it; the rows and
columns of the matrix are next to nothing.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from diffdistill.optimizers import Optimizer


class Adafactor(torch.optim.Adafactor):
    """torch's, one tensor at a time: all at once would need another copy of the weights."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, foreach=False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        kernels = [p for group in self.param_groups for p in group["params"] if p.ndim > 2 and p.grad is not None]
        shapes = [p.shape for p in kernels]
        for p in kernels:
            reshape(p, torch.Size((len(p), -1)))
        super().step()
        for p, shape in zip(kernels, shapes, strict=True):
            reshape(p, shape)


def build(parameters: list[nn.Parameter], settings: Optimizer) -> Adafactor:
    return Adafactor(parameters, settings.learning_rate, settings.weight_decay)


def reshape(p: nn.Parameter, shape: torch.Size) -> None:
    """The parameter and its gradient under another shape, in the same memory."""
    assert p.grad is not None
    gradient, p.grad = p.grad.reshape(shape), None
    p.data = p.data.view(shape)
    p.grad = gradient
