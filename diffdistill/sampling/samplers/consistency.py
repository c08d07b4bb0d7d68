"""A student's few steps."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from diffdistill.sampling.sampler import Denoise, Draw, Sampler

if TYPE_CHECKING:
    from torch import Tensor


def consistency(
    denoise: Denoise,
    x: "Tensor",
    sigmas: Sequence[float],
    draw: Draw,
    *,
    boundary: float = 0.0,
    s_noise: float = 1.0,
    clip: bool = True,
    arrange: "Callable[[Tensor], Tensor] | None" = None,
) -> "Tensor":
    """x0, fresh noise up to the next level, x0 ... (2303.01469, Algorithm 1).

    x_next = x0 + s_noise sqrt(sigma_next^2 - boundary^2) z, where D's images count as states at the level `boundary`:
    the arithmetic of diffusers' `CMStochasticIterativeScheduler`. boundary: of the process; s_noise, clip: whether
    every x0 is clamped to [-1, 1], of a consistency model's own schedule (latents have no bounds); arrange: of the
    later noise, which may be drawn in the order of another layout (`Adapter.arrange`).
    """
    for sigma, following in pairwise(sigmas):
        x = denoise(x, sigma)
        x = x.clamp(-1, 1) if clip else x
        if following > 0:
            noise = draw() if arrange is None else arrange(draw())
            x = x + s_noise * math.sqrt(max(0.0, following**2 - boundary**2)) * noise
    return x


SAMPLER = Sampler(
    "consistency",
    "x0, fresh noise, x0 ...: n evaluations; for students",
    steps=1,
    run=consistency,
    for_students=True,
    stochastic=True,
)
