"""Ancestral sampling."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from diffdistill.sampling.sampler import Denoise, Draw, Sampler

if TYPE_CHECKING:
    from torch import Tensor


def ddpm(denoise: Denoise, x: "Tensor", sigmas: Sequence[float], draw: Draw) -> "Tensor":
    """x_next ~ q(x_next | x, x0 = D), the forward posterior (2006.11239, eq. 6 and 7).

    With r = (sigma_next / sigma)^2, its mean is D + r (x - D) and its variance sigma_next^2 (1 - r).
    """
    for sigma, following in pairwise(sigmas):
        x0 = denoise(x, sigma)
        ratio = (following / sigma) ** 2
        x = x0 + ratio * (x - x0)
        if following > 0:
            x = x + following * math.sqrt(1 - ratio) * draw()
    return x


SAMPLER = Sampler(
    "ddpm",
    "ancestral, stochastic, n evaluations, Karras levels",
    steps=250,
    run=ddpm,
    scheduler="EulerAncestralDiscreteScheduler",
    stochastic=True,
)
