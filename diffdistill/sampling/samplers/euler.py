"""Euler's method on the probability-flow ODE, which is DDIM with eta = 0 too."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from diffdistill.sampling.levels import angular
from diffdistill.sampling.sampler import Denoise, Draw, Sampler

if TYPE_CHECKING:
    from torch import Tensor


def euler(denoise: Denoise, x: "Tensor", sigmas: Sequence[float], draw: Draw | None = None) -> "Tensor":
    """First order: x_next = x + (sigma_next - sigma) (x - D) / sigma (2206.00364, Algorithm 1, first stage).

    Where all data are one point, D is that point and every sampler ends there:

    >>> import torch
    >>> from diffdistill.sampling.levels import karras
    >>> x = 80.0 * torch.randn(2, 3, 8, 8)
    >>> x0 = euler(lambda x, sigma: torch.full_like(x, 0.25), x, karras(10, 0.002, 80.0))
    >>> bool((x0 - 0.25).abs().max() < 1e-4)
    True
    """
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * (x - denoise(x, sigma)) / sigma
    return x


# In sigma units DDIM with eta = 0 (2010.02502, eq. 12 and 14) is Euler's method, so `ddim` is `euler` on other levels:
# those that implementations of DDIM use, even in the time of a variance-preserving process instead of Karras'.
SAMPLER = (
    Sampler(
        "euler", "first order, n evaluations, Karras levels", steps=35, run=euler, scheduler="EulerDiscreteScheduler"
    ),
    Sampler(
        "ddim",
        "DDIM with eta 0: Euler on levels even in the time of the cosine process",
        steps=50,
        run=euler,
        levels=angular,
        scheduler="EulerDiscreteScheduler",
    ),
)
