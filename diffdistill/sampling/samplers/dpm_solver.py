"""DPM-Solver++(2M)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from diffdistill.sampling.sampler import Denoise, Draw, Sampler

if TYPE_CHECKING:
    from torch import Tensor


def dpm_solver(denoise: Denoise, x: "Tensor", sigmas: Sequence[float], draw: Draw | None = None) -> "Tensor":
    """DPM-Solver++(2M): second order, one evaluation a step (2211.01095, Algorithm 2; alpha = 1, lambda = -ln sigma).

    x_next = (sigma_next / sigma) x - (e^-h - 1) D', D' = D + (D - D_prev) h / (2 h_prev), h = lambda_next - lambda.
    The first step, and one that ends at 0 (h infinite, D' = D), have first order.
    """
    previous, previous_step = None, 0.0
    for sigma, following in pairwise(sigmas):
        x0 = estimate = denoise(x, sigma)
        if following > 0:
            step = math.log(sigma / following)
            if previous is not None:
                estimate = x0 + (x0 - previous) * (step / (2 * previous_step))
            previous, previous_step = x0, step
        ratio = following / sigma
        x = ratio * x + (1 - ratio) * estimate
    return x


SAMPLER = Sampler(
    "dpm_solver",
    "DPM-Solver++(2M), second order, n evaluations, Karras levels",
    steps=20,
    run=dpm_solver,
    scheduler="DPMSolverMultistepScheduler",
)
