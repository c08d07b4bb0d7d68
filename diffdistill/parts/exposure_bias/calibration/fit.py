"""The two ways to a constant b: by the variance of the images, in a few runs, and by the paper's search over FID."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffdistill.parts.exposure_bias.calibration.exposure import Exposure

LOWEST, HIGHEST = 0.9, 1.3  # the divisors that are tried at all
USUAL_SLOPE = (
    10.0  # d ln(variance) / d b of first-order samplers at 10 to 50 steps; only the first guess depends on it
)
TOLERANCE = 0.002  # of ln(variance): 2e-4 of b
BOOTSTRAP = 200


@dataclass(frozen=True)
class ScaleFit:
    """b: where the variance of the images is that of the data; standard_error: of b, by bootstrap over images;
    runs: every b that was run, in order, with what it gave.
    """

    b: float
    standard_error: float
    runs: dict[float, Exposure]


def fit_scale(measure: Callable[[float], Exposure], *, max_runs: int = 5) -> ScaleFit:
    """Root of r(b) = ln(variance of the images / variance of the data), by the secant rule.

    With the same noise in every run (common random numbers) r is a smooth and, for first-order samplers, nearly
    linear function of b, so three or four runs reach the tolerance. The images are what is judged in the end, so it
    is their variance that is matched, not the mean over the path: a b that is right on average along the path leaves
    images too tame. `r` may fall with b; nothing depends on its sign.
    """
    runs = {1.0: measure(1.0)}
    known = 1.0
    b = _inside(1.0 - runs[1.0].final / USUAL_SLOPE)
    while len(runs) < max_runs and b not in runs and abs(runs[known].final) > TOLERANCE:
        runs[b] = measure(b)
        known = b
        one, two = _best_two({value: run.final for value, run in runs.items()})
        b = _inside(_root(one, runs[one].final, two, runs[two].final))
    if len(runs) == 1:
        return ScaleFit(1.0, _slope_free_error(runs[1.0]), runs)
    one, two = _best_two({value: run.final for value, run in runs.items()})
    b = _inside(_root(one, runs[one].final, two, runs[two].final))
    return ScaleFit(b, _bootstrap(one, runs[one], two, runs[two]), runs)


def _inside(b: float) -> float:
    return round(min(max(b, LOWEST), HIGHEST), 6)


def _best_two(finals: dict[float, float]) -> tuple[float, float]:
    """The two values with the smallest |r|, one on each side of the root where there is one."""
    order = sorted(finals, key=lambda b: abs(finals[b]))
    opposite = [b for b in order if finals[b] * finals[order[0]] < 0]
    return order[0], (opposite or order[1:])[0]


def _root(b0: float, r0: float, b1: float, r1: float) -> float:
    return b0 if r0 == r1 else b0 - r0 * (b1 - b0) / (r1 - r0)


def _bootstrap(b0: float, run0: Exposure, b1: float, run1: Exposure) -> float:
    """Standard deviation of the root over resamples of the images, the same images in both runs."""
    count = run0.energy.shape[1]
    picks = torch.randint(count, (BOOTSTRAP, count), generator=torch.Generator().manual_seed(0))
    r0, r1 = ((run.energy[-1][picks].mean(1) / run.reference[-1][picks].mean(1)).log() for run in (run0, run1))
    return float((b0 - r0 * (b1 - b0) / (r1 - r0)).std())


def _slope_free_error(run: Exposure) -> float:
    return float(run.standard_error[-1]) / USUAL_SLOPE


def search_scale(quality: Callable[[float], float], *, trials: int = 8, step: float = 0.005) -> dict[float, float]:
    """The paper's recipe (2308.15321, section 5.2): a constant b by trying values and taking the best FID.

    Walks from 1 in the direction that improves, doubling the step, until it worsens; then the vertex of the parabola
    through the best value and its neighbours, again and again. Returns `{b: quality}` in the order tried; lower is
    better.
    """
    tried = {1.0: quality(1.0)}
    upward = round(1 + step, 6)
    tried[upward] = quality(upward)
    while len(tried) < trials:
        b = _next_trial(tried, step)
        if b in tried:
            break
        tried[b] = quality(b)
    return tried


def _next_trial(tried: dict[float, float], step: float) -> float:
    """Further out where the best value is the outermost, else the vertex of the parabola around it."""
    ordered = sorted(tried)
    place = ordered.index(min(tried, key=lambda b: tried[b]))
    if place in (0, len(ordered) - 1):
        reach = max(abs(ordered[place] - 1) * 2, step)
        return _inside(1 + reach if place else 1 - reach)
    left, middle, right = ordered[place - 1 : place + 2]
    a, b, c = (tried[value] for value in (left, middle, right))
    top = (middle - left) ** 2 * (b - c) - (middle - right) ** 2 * (b - a)
    bottom = (middle - left) * (b - c) - (middle - right) * (b - a)
    return _inside(middle - top / (2 * bottom)) if bottom else middle
