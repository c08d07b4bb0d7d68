"""What `calibrate` tries for one sampler at one number of steps, and what it chooses by the quality of the images.

Matching the variance is a proxy. A divisor that gives the images all of their variance back puts much of it in as
noise: on the bundled teacher at 5 Euler steps it doubles FID. Quality asks for part of the way only, so the choice is
made among 1 + (b* - 1) f by FID or KID, on images whose noise is not used later to judge the result.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from diffdistill.parts.exposure_bias.calibration.exposure import Exposure
from diffdistill.parts.exposure_bias.calibration.fit import ScaleFit, fit_scale, search_scale
from diffdistill.parts.exposure_bias.calibration.record import BOTH, SCALE, SHIFT, Entry, Fit
from diffdistill.parts.exposure_bias.sampling import NONE, Corrections

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

    def exposure(self, wanted: Corrections) -> Exposure:
        if wanted not in self.runs:
            found = self.measure(wanted)
            self.runs[wanted] = (found, self.judge(found))
        return self.runs[wanted][0]

    def quality(self, wanted: Corrections) -> float:
        self.exposure(wanted)
        return self.runs[wanted][1]

    def best(self, among: list[Corrections]) -> Corrections:
        return min(among, key=self.quality)

    def table(self) -> list[dict[str, Any]]:
        """JSON-able, in the order run."""
        return [
            {**_fit(wanted), "log_ratio": found.final, "standard_error": float(found.standard_error[-1]), "quality": q}
            for wanted, (found, q) in self.runs.items()
        ]


def calibrate_sampler(sampler: str, steps: int, trials: Trials, variances: dict[str, float], method: str) -> Entry:
    """Fit Epsilon Scaling, Time-Shift and both together; returns the entry with its evidence.

    variances: Time-Shift's statistics of clean images, by name. method: `variance` (the secant on the variance, then
    part of the way) or `fid` (the paper's search).
    """
    scale, star = _scale(trials, method)
    shift = trials.best([NONE, *_shifts(steps, variances)])
    both = _both(trials, scale, shift)
    fits = {SCALE: _fit(scale), SHIFT: _fit(shift), BOTH: _fit(both)}
    report: dict[str, Any] = {
        "exposure": {"plain": trials.exposure(NONE).report()}
        | {name: trials.exposure(wanted).report() for name, wanted in ((SCALE, scale), (SHIFT, shift), (BOTH, both))},
        "trials": trials.table(),
        "method": method,
    }
    if star is not None:
        report["variance_fit"] = {"b": star.b, "standard_error": star.standard_error, "runs": len(star.runs)}
    return Entry(sampler, steps, fits, report)


def _scale(trials: Trials, method: str) -> tuple[Corrections, ScaleFit | None]:
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


def _fit(wanted: Corrections) -> Fit:
    return {
        "b": wanted.b,
        "window": wanted.window,
        "cutoff": wanted.cutoff,
        "statistic": wanted.statistic,
        "data_variance": wanted.data_variance,
    }
