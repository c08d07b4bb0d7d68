"""Euler's method as flows have it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from diffdistill.sampling.levels import even_in_flow
from diffdistill.sampling.sampler import Denoise, Draw, Sampler

if TYPE_CHECKING:
    from torch import Tensor


def flow_euler(denoise: Denoise, x: "Tensor", sigmas: Sequence[float], draw: Draw | None = None) -> "Tensor":
    """`euler` as x_next = r x + (1 - r) D, r = sigma_next / sigma, which stays exact where a flow's time is 1."""
    for sigma, following in pairwise(sigmas):
        ratio = following / sigma
        x = ratio * x + (1 - ratio) * denoise(x, sigma)
    return x


SAMPLER = Sampler(
    "flow_euler",
    "Euler, even in a flow's time, or as its pipeline shifts it",
    steps=28,
    run=flow_euler,
    levels=even_in_flow,
    scheduler="EulerDiscreteScheduler",
)
