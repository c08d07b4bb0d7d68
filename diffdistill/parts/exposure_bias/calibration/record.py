"""The calibration file: what was fitted for each sampler and number of steps, and how it carries over to others.

JSON, no torch. `entries` hold the fits with their evidence; `lookup` answers what `sample` asks.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.files import read_json, write_json

KIND = "diffdistill calibration"
VERSION = 1
FILE = "calibration.json"  # where `sample` looks, in the model's folder
SCALE, SHIFT, BOTH = "epsilon_scaling", "time_shift", "both"
Fit = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """The fits of one sampler at one number of steps: by name (SCALE, SHIFT, BOTH) what was chosen.

    A fit has `b`, `window` and `cutoff`; b = 1 and window = 0 mean: off, nothing better was found.
    report: the evidence: exposure per step, all runs with their quality, standard errors.
    """

    sampler: str
    steps: int
    fits: dict[str, Fit]
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """All entries, and for which model, data and guidance they hold."""

    model: str
    weights_sha256: str
    data: dict[str, Any]
    data_variance: float  # mean within-image variance of the data, the constant of Time-Shift's statistic
    settings: dict[str, Any]
    entries: tuple[Entry, ...]

    def lookup(self, sampler: str, steps: int, name: str) -> Fit:
        """The fit `name` (SCALE, SHIFT or BOTH) for a sampler at any number of steps; ConfigError if there is none.

        Between and below the step counts that were fitted, b is linear in 1 / N: b = 1 + a + c / N, a the bias of the
        network, c that of the discretisation. Beyond the largest N it goes no farther from 1 than the fit there: more
        steps need no more correction. A single fit is scaled by N0 / N towards fewer steps and kept towards more. A
        window keeps its size in steps: W N0 / N, from the nearest N0; the cutoff, a time, stays. Beyond the largest N
        there is no window: carried there it did harm (docs/samplers.md), and BOTH is SCALE.
        """
        fitted = sorted((e for e in self.entries if e.sampler == sampler), key=lambda e: e.steps)
        if not fitted:
            have = ", ".join(sorted({entry.sampler for entry in self.entries}))
            raise ConfigError(
                f"the calibration has no fit for sampler '{sampler}'; it has {have}: use one, or calibrate this one"
            )
        for entry in fitted:
            if entry.steps == steps:
                return entry.fits[name]
        beyond = steps > fitted[-1].steps
        if beyond and name == BOTH:
            name = SCALE
        nearest = min(fitted, key=lambda e: abs(math.log(e.steps / steps)))
        fit = nearest.fits[name]
        moved = {"b": _transferred([(e.steps, e.fits[name]["b"]) for e in fitted], steps)}
        window = 0 if beyond else round(fit["window"] * nearest.steps / steps)
        return {**fit, **moved, "window": window}

    def save(self, path: Path) -> None:
        """Write the file at once or not at all."""
        write_json(path, {"kind": KIND, "version": VERSION, **asdict(self)})


def _transferred(fits: list[tuple[int, float]], steps: int) -> float:
    """b at `steps` from fits `(steps, b)` in ascending order, none of them at `steps`; see `Calibration.lookup`."""
    if len(fits) == 1:
        known, b = fits[0]
        return 1 + (b - 1) * max(1.0, known / steps)
    after = next((i for i, (known, _) in enumerate(fits) if known > steps), len(fits) - 1)
    (n0, b0), (n1, b1) = fits[max(after - 1, 0)], fits[max(after, 1)]
    slope = (b0 - b1) / (1 / n0 - 1 / n1)
    b = b1 + slope * (1 / steps - 1 / n1)
    bound = abs(b1 - 1) if steps > n1 else math.inf
    return min(max(b, 1 - bound), 1 + bound)


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file. CheckpointError if it is missing, damaged or something else."""
    try:
        held = read_json(path)
        if held.pop("kind") != KIND or held.pop("version") != VERSION:
            raise ValueError("it is something else, or of another version")
        entries = tuple(_entry(**entry) for entry in held.pop("entries"))
        return Calibration(entries=entries, **held)
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no calibration '{path}'; make one with 'diffdistill calibrate MODEL --data DATA --out FILE'"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{path}' is not a calibration that can be read ({error}); make it again") from error


def _entry(sampler: str, steps: int, fits: dict[str, Fit], report: dict[str, Any]) -> Entry:
    for name, fit in fits.items():
        if name not in (SCALE, SHIFT, BOTH) or not {"b", "window", "cutoff"} <= set(fit):
            raise ValueError(f"the fit '{name}' of {sampler} is incomplete")
    return Entry(str(sampler), int(steps), fits, report)
