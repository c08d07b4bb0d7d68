"""Test H: consistency models on Gaussian data, where the consistency function is known.

For x0 ~ N(0, s^2) the probability flow keeps x / sqrt(s^2 + sigma^2), so f(x, sigma) = s x / sqrt(s^2 + sigma^2). The
best consistency function of training on data, with N intervals between levels s_i, is linear too:

    f(x, s_N) = x prod_i (s^2 + s_i s_{i+1}) / (s^2 + s_{i+1}^2)            (each level's regression on the one below)

Of its one-step images the spread is less than s: discretisation alone costs variety. In continuous time the mean
tangent vanishes at the consistency function, and on a teacher's trajectories so does the tangent itself.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from diffdistill.consistency.continuous import ContinuousConsistency, along_by_forward_mode, output_of, tangent
from diffdistill.consistency.discrete import DiscreteConsistency
from diffdistill.consistency.objective import Noise
from diffdistill.consistency.settings import Continuous, Discrete
from diffdistill.denoiser import Denoiser
from diffdistill.parts.verification.analytic import hermite
from diffdistill.parts.verification.check import Check
from diffdistill.process import EDM

SPREAD, LOW, TOP = 0.5, 0.002, 80.0


class Linear:
    """D(x, sigma) = slope(sigma) x, in a denoiser's place."""

    process = EDM(SPREAD)

    def __init__(self, slope: Callable[[Tensor], Tensor]):
        self.slope = slope

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.slope(sigma).reshape(-1, 1, 1, 1) * x


TEACHER = Linear(lambda sigma: SPREAD**2 / (SPREAD**2 + sigma**2))
CONSISTENT = Linear(lambda sigma: SPREAD / (SPREAD**2 + sigma**2).sqrt())


def as_denoiser(model: Linear) -> Denoiser:
    return cast(Denoiser, model)


def pairs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two independent normal variables as images of one pixel, and the weight of each pair."""
    points, weights = hermite(count)
    a, b = torch.meshgrid(points, points, indexing="ij")
    weight = torch.outer(weights, weights).flatten()
    return a.reshape(-1, 1, 1, 1), b.reshape(-1, 1, 1, 1), weight


def level_noise(eps: Tensor, high: float, low: float) -> Noise:
    """All images at one interval."""
    ones = torch.ones(len(eps), dtype=torch.float64)
    return Noise(0.5 * ones, high * ones, low * ones, eps)


def levels_of(intervals: int) -> Tensor:
    return DiscreteConsistency(Discrete((intervals, intervals)), EDM(SPREAD), LOW, TOP, total=1).levels(0)


def trained_spread(intervals: int) -> float:
    """The one-step spread where each level's slope is the best for the production loss, from the lowest level up."""
    x0, eps, weight = pairs(4)
    levels, slopes = levels_of(intervals), [1.0]
    for k in range(intervals):
        low, high = (float(levels[at]) for at in (k, k + 1))
        # c far above the errors: the distance is their square, and its gradient a line in the slope.
        settings = Discrete((intervals, intervals), huber=1e5 * high)
        objective = DiscreteConsistency(settings, EDM(SPREAD), LOW, TOP, total=1)
        noise = level_noise(eps, high, low)

        def pull(slope: float, noise: Noise = noise, objective: Any = objective, low: float = low) -> float:
            free = torch.tensor(slope, dtype=torch.float64, requires_grad=True)
            model = Linear(lambda sigma: torch.where(sigma > low * (1 + 1e-7), free, slopes[-1]))
            loss = (weight * objective.losses(as_denoiser(model), SPREAD * x0, None, noise, 0)).sum()
            return torch.autograd.grad(loss, free)[0].item()

        at_0, at_1 = pull(0.0), pull(1.0)
        slopes.append(at_0 / (at_0 - at_1))
    return slopes[-1] * math.hypot(SPREAD, TOP)


def exact_spread(intervals: int) -> float:
    levels = levels_of(intervals)
    low, high = levels[:-1], levels[1:]
    return float(((SPREAD**2 + low * high) / (SPREAD**2 + high**2)).prod()) * math.hypot(SPREAD, TOP)


def mean_tangent(model: Linear, sigma: float, x: float = 1.3) -> float:
    """E[g | x_t = x] on data alone, over the posterior of x0."""
    points, weights = hermite(6)
    posterior = SPREAD**2 / (SPREAD**2 + sigma**2) * x + SPREAD * sigma / math.hypot(SPREAD, sigma) * points
    x0 = posterior.reshape(-1, 1, 1, 1)
    x_t, level = torch.full_like(x0, x), torch.full_like(points, sigma)
    t = (level / SPREAD).atan()
    cos, sin = t[0].cos(), t[0].sin()

    def output(x: Tensor, sigma: Tensor) -> Tensor:
        return output_of(as_denoiser(model), x, sigma, None, SPREAD)

    dF = along_by_forward_mode(output, x_t, level, x_t - x0)
    dx = cos * SPREAD * (x_t - x0) / sigma - sin * x0
    g = tangent(output(x_t, level), dF, cos * x_t, dx, t, 1.0, SPREAD)
    return float((weights * g.flatten()).sum())


def loss_on_trajectories(model: Linear, sigma: float) -> float:
    x0, eps, weight = pairs(3)
    objective = ContinuousConsistency(Continuous(derivative="forward"), 1e-3, TOP, 1, TEACHER)
    noise = level_noise(eps, sigma, sigma)
    return float((weight * objective.losses(as_denoiser(model), SPREAD * x0, None, noise, step=1)).sum())


def checks() -> Iterator[Check]:
    for intervals, known in ((10, 0.3764), (20, 0.4338), (80, 0.4826)):
        yield Check(
            "H", f"one-step spread of training on data of 0.5, {intervals} intervals", (trained_spread(intervals),),
            (exact_spread(intervals),), 1e-6, source="2310.14189, eq. 5 on a Gaussian",
        )  # fmt: skip
        yield Check("H", f"the same, computed apart from this package, {intervals}", (exact_spread(intervals),),
                    (known,), 5e-5)  # fmt: skip
    for sigma in (0.1, 0.63, 5.0):
        yield Check("H", f"mean tangent of sCM at the consistency function, sigma {sigma:g}",
                    (mean_tangent(CONSISTENT, sigma),), (0.0,), 1e-9, source="2410.11081, eq. 6")  # fmt: skip
        yield Check("H", f"the same at the teacher's denoiser (control), sigma {sigma:g}",
                    (mean_tangent(TEACHER, sigma),), (0.0,), 1e-3, "differs")  # fmt: skip
        yield Check("H", f"loss of sCM on a teacher's trajectories, sigma {sigma:g}",
                    (loss_on_trajectories(CONSISTENT, sigma),), (0.0,), 1e-9)  # fmt: skip
