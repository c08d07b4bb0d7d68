"""What `calibrate` tries for one sampler at one number of steps, and what it chooses by the quality of the images.

There are two ways to a constant b: by the variance of the images, in a few runs, and by the paper's search over FID.
Matching the variance is a proxy. A divisor that gives the images all of their variance back puts much of it in as
noise: on the bundled teacher at 5 Euler steps it doubles FID. Quality asks for part of the way only, so the choice is
made among 1 + (b* - 1) f by FID or KID, on images whose noise is not used later to judge the result.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from diffdistill.parts.exposure_bias.calibration.measure import Exposure
from diffdistill.parts.exposure_bias.corrections import BOTH, NONE, SCALE, SHIFT, Corrections, Entry, Fit

LOWEST, HIGHEST = 0.9, 1.3  # the divisors that are tried at all
# d ln(variance) / d b of first-order samplers at 10 to 50 steps; only the first guess depends on it
USUAL_SLOPE = 10.0
TOLERANCE = 0.002  # of ln(variance): 2e-4 of b
MAX_RUNS = 5  # of the secant rule
SEARCHED, FIRST_STEP = 8, 0.005  # values of b that the search over FID tries, and how far it goes first
BOOTSTRAP = 200
FRACTIONS = (0.1, 0.25, 0.5)  # of the way to b*; 0 and 1 are run by the fit
# (statistic, window in units of the stride between two steps). Wider than one stride, states would change places.
SHIFTS = (("corrected", 0.5), ("haar", 0.5), ("haar", 1.0), ("paper", 0.5))
# A time of 1000, below which a state's variance is decided by how much contrast its image has, not by its noise.
CUTOFF = 300
TIME = 1000

Measure = Callable[[Corrections], Exposure]
Judge = Callable[[Exposure], float]


@dataclass
class Trials:
    """Every setting that was run, once: its exposure and its quality (lower is better)."""

    measure: Measure
    judge: Judge
    runs: dict[Corrections, tuple[Exposure, float]]

    def exposure(self, corrections: Corrections) -> Exposure:
        if corrections not in self.runs:
            exposure = self.measure(corrections)
            self.runs[corrections] = (exposure, self.judge(exposure))
        return self.runs[corrections][0]

    def quality(self, corrections: Corrections) -> float:
        self.exposure(corrections)
        return self.runs[corrections][1]

    def best(self, among: list[Corrections]) -> Corrections:
        return min(among, key=self.quality)

    def table(self) -> list[dict[str, Any]]:
        """JSON-able, in the order run."""
        rows = []
        for corrections, (exposure, quality) in self.runs.items():
            evidence = {"log_ratio": exposure.final, "standard_error": float(exposure.standard_error[-1])}
            rows.append({**_fit(corrections), **evidence, "quality": quality})
        return rows


def calibrate_sampler(sampler: str, steps: int, trials: Trials, variances: dict[str, float], method: str) -> Entry:
    """Fit Epsilon Scaling, Time-Shift and both together; returns the entry with its evidence.

    variances: Time-Shift's statistics of clean images, by name. method: `variance` (the secant on the variance, then
    part of the way) or `fid` (the paper's search).
    """
    scale, star = _scale(trials, method)
    shift = trials.best([NONE, *_shifts(steps, variances)])
    both = _both(trials, scale, shift)
    chosen = {SCALE: scale, SHIFT: shift, BOTH: both}
    exposures = {"plain": NONE} | chosen
    report: dict[str, Any] = {
        "exposure": {name: trials.exposure(corrections).report() for name, corrections in exposures.items()},
        "trials": trials.table(),
        "method": method,
    }
    if star is not None:
        report["variance_fit"] = {"b": star.b, "standard_error": star.standard_error, "runs": len(star.runs)}
    return Entry(sampler, steps, {name: _fit(corrections) for name, corrections in chosen.items()}, report)


def _scale(trials: Trials, method: str) -> "tuple[Corrections, ScaleFit | None]":
    if method == "fid":
        tried = search_scale(lambda b: trials.quality(replace(NONE, b=b)))
        return replace(NONE, b=min(tried, key=lambda b: tried[b])), None
    star = fit_scale(lambda b: trials.exposure(replace(NONE, b=b)))
    candidates = [1.0, *(round(1 + (star.b - 1) * part, 6) for part in FRACTIONS), star.b]
    return trials.best([replace(NONE, b=b) for b in dict.fromkeys(candidates)]), star


def _shifts(steps: int, variances: dict[str, float]) -> list[Corrections]:
    """The windows of SHIFTS in time steps; the paper's statistic has no data variance."""
    if steps < 2:
        return []
    return [
        replace(
            NONE, window=round(part * TIME / steps), cutoff=CUTOFF, statistic=name, data_variance=variances.get(name)
        )
        for name, part in SHIFTS
    ]


def _both(trials: Trials, scale: Corrections, shift: Corrections) -> Corrections:
    """The shift with the chosen b or half of it, for both add variance; or either alone."""
    if not (shift.shifts and scale.scales):
        return trials.best([scale, shift])
    halves = [replace(shift, b=round(1 + (scale.b - 1) * part, 6)) for part in (0.5, 1.0)]
    return trials.best([scale, shift, *halves])


def _fit(corrections: Corrections) -> Fit:
    return {
        "b": corrections.b,
        "window": corrections.window,
        "cutoff": corrections.cutoff,
        "statistic": corrections.statistic,
        "data_variance": corrections.data_variance,
    }


# ---- a constant b


@dataclass(frozen=True)
class ScaleFit:
    """b: where the variance of the images is that of the data; standard_error: of b, by bootstrap over images;
    runs: every b that was run, in order, with what it gave.
    """

    b: float
    standard_error: float
    runs: dict[float, Exposure]


def fit_scale(measure: Callable[[float], Exposure]) -> ScaleFit:
    """Root of r(b) = ln(variance of the images / variance of the data), by the secant rule.

    With the same noise in every run (common random numbers) r is a smooth and, for first-order samplers, nearly
    linear function of b, so three or four runs reach the tolerance. The images are what is judged in the end, so it
    is their variance that is matched, not the mean over the path: a b that is right on average along the path leaves
    images too tame. `r` may fall with b; nothing depends on its sign.
    """
    runs = {1.0: measure(1.0)}
    known = 1.0
    b = _inside(1.0 - runs[1.0].final / USUAL_SLOPE)
    while len(runs) < MAX_RUNS and b not in runs and abs(runs[known].final) > TOLERANCE:
        runs[b] = measure(b)
        known = b
        one, two = _best_two({value: run.final for value, run in runs.items()})
        b = _inside(_root(one, runs[one].final, two, runs[two].final))
    if len(runs) == 1:
        return ScaleFit(1.0, float(runs[1.0].standard_error[-1]) / USUAL_SLOPE, runs)
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


def search_scale(quality: Callable[[float], float]) -> dict[float, float]:
    """The paper's recipe (2308.15321, section 5.2): a constant b by trying values and taking the best FID.

    Walks from 1 in the direction that improves, doubling the step, until it worsens; then the vertex of the parabola
    through the best value and its neighbours, again and again. Returns `{b: quality}` in the order tried; lower is
    better.
    """
    tried = {1.0: quality(1.0)}
    upward = round(1 + FIRST_STEP, 6)
    tried[upward] = quality(upward)
    while len(tried) < SEARCHED:
        b = _next_trial(tried)
        if b in tried:
            break
        tried[b] = quality(b)
    return tried


def _next_trial(tried: dict[float, float]) -> float:
    """Further out where the best value is the outermost, else the vertex of the parabola around it."""
    ordered = sorted(tried)
    place = ordered.index(min(tried, key=lambda b: tried[b]))
    if place in (0, len(ordered) - 1):
        reach = max(abs(ordered[place] - 1) * 2, FIRST_STEP)
        return _inside(1 + reach if place else 1 - reach)
    left, middle, right = ordered[place - 1 : place + 2]
    a, b, c = (tried[value] for value in (left, middle, right))
    top = (middle - left) ** 2 * (b - c) - (middle - right) ** 2 * (b - a)
    bottom = (middle - left) * (b - c) - (middle - right) * (b - a)
    return _inside(middle - top / (2 * bottom)) if bottom else middle
