"""EDM's sampler."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from diffdistill.sampling.sampler import Denoise, Draw, Sampler

if TYPE_CHECKING:
    from torch import Tensor


def heun(denoise: Denoise, x: "Tensor", sigmas: Sequence[float], draw: Draw | None = None) -> "Tensor":
    """Second order, two evaluations a step, one in a step that ends at 0 (2206.00364, Algorithm 1).

    >>> import torch
    >>> from diffdistill.sampling.levels import karras
    >>> data_variance = 0.25  # of N(0, 0.25), whose denoiser is known
    >>> def denoise(x, sigma):
    ...     return x * data_variance / (data_variance + sigma**2)
    >>> x = 80.0 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> print(f"{heun(denoise, x, karras(100, 0.002, 80.0)).std():.2f}")
    0.50
    """
    for sigma, following in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        guess = x + (following - sigma) * slope
        if following > 0:
            slope = (slope + (guess - denoise(guess, following)) / following) / 2
            guess = x + (following - sigma) * slope
        x = guess
    return x


SAMPLER = Sampler(
    "heun",
    "EDM, second order, 2n - 1 evaluations, Karras levels",
    steps=18,
    run=heun,
    evaluations=lambda steps: 2 * steps - 1,
    scheduler="HeunDiscreteScheduler",
)
