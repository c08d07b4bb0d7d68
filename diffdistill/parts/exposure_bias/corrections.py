"""The corrections of a sampler: from the flags of `sample`, or from a file that `calibrate` wrote.

The file is JSON: `entries` hold the fits of each sampler and number of steps with their evidence; `Calibration.lookup`
carries them over to other numbers of steps.
"""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.files import read_json, reason_of, write_json
from diffdistill.pipelines.folder import CALIBRATION, SEAL, is_whole, locate, sealed, weights_digest
from diffdistill.process import EDM, Process

AUTO = "auto"
KIND = "diffdistill calibration"
VERSION = 1
FILE = CALIBRATION  # where `sample` looks, in the model's folder
SCALE, SHIFT, BOTH = "epsilon_scaling", "time_shift", "both"
Fit = dict[str, Any]


@dataclass(frozen=True)
class Corrections:
    """Epsilon Scaling eps / (k i + b), i = 0 at the clean end (2308.15321, section 5), and Time-Shift (2305.15583).

    window and cutoff are in time steps of 1000; 0 turns Time-Shift off. source: `given`, or the calibration file.
    """

    b: float = 1.0
    k: float = 0.0
    window: int = 0
    cutoff: int = 0
    statistic: str = "corrected"
    data_variance: float | None = None
    source: str | None = None

    @property
    def scales(self) -> bool:
        return self.b != 1.0 or self.k != 0.0

    @property
    def shifts(self) -> bool:
        return self.window != 0

    def record(self) -> dict[str, Any] | None:
        """Their entry in `samples.json`; None where nothing is corrected."""
        return asdict(self) if self.scales or self.shifts else None

    def apply(self, scheduler: Any, steps: int) -> Any:
        """A copy of a diffusers scheduler with these corrections, ConfigError where one is refused."""
        from diffdistill.parts.exposure_bias.scheduler import epsilon_scaling, time_shift_sampler

        first = self.b + self.k * (steps - 1)
        if first <= 0:
            raise ConfigError(
                f"epsilon scaling {self.k:g},{self.b:g} divides the first of {steps} steps by {first:g}; "
                "lambda must be above 0 at every step"
            )
        if self.scales:
            scheduler = epsilon_scaling(scheduler, b=self.b, k=self.k)
        if self.shifts:
            scheduler = time_shift_sampler(
                scheduler,
                window=self.window,
                cutoff=self.cutoff,
                statistic=self.statistic,
                data_variance=self.data_variance,
            )
        return scheduler


NONE = Corrections()


def read_corrections(
    model: str | None,
    process: Process,
    sampler: str,
    steps: int,
    epsilon: str | None,
    shift: str | None,
    calibration: str | None,
) -> Corrections:
    """Corrections from the texts of the flags: numbers, or `auto`, looked up in the calibration of the model.

    model: where it was loaded from; its `calibration.json` is read unless `calibration` names another file.
    Raises ConfigError for a calibration of other weights, CheckpointError if there is none to read.
    """
    if calibration is not None and AUTO not in (epsilon, shift) and shift is None:
        raise ConfigError("--calibration goes with 'auto' or --time-shift-sampler; leave it out")
    corrections = NONE
    if AUTO in (epsilon, shift):
        name = BOTH if epsilon == shift else SCALE if epsilon == AUTO else SHIFT
        fits, source = _calibration(model, calibration)
        corrections = Corrections(**fits.lookup(sampler, steps, name), source=source)
    if epsilon not in (None, AUTO):
        *slope, b = (float(word) for word in str(epsilon).split(","))
        corrections = replace(corrections, b=b, k=slope[0] if slope else 0.0, source=corrections.source or "given")
    if shift not in (None, AUTO):
        window, cutoff = _whole(str(shift))
        corrections = replace(corrections, window=window, cutoff=cutoff, source=corrections.source or "given")
        if window:
            corrections = replace(corrections, data_variance=_data_variance(model, calibration, process))
    return corrections if corrections.scales or corrections.shifts else NONE


def _whole(text: str) -> list[int]:
    numbers = [float(word) for word in text.split(",")]
    if any(number != int(number) for number in numbers):
        raise ConfigError(
            f"--time-shift-sampler {text}: window and cutoff are whole time steps of 1000, such as 40,300"
        )
    return [int(number) for number in numbers]


def _calibration(model: str | None, named: str | None) -> "tuple[Calibration, str]":
    folder = None if model is None else locate(model)
    if named is None and folder is None:
        raise ConfigError(
            "this model was not loaded from a folder that could hold a calibration.json; name --calibration"
        )
    path = Path(named) if named is not None else folder / FILE  # type: ignore[operator]
    loaded = read_calibration(path)
    if folder is not None and loaded.weights_sha256 != weights_digest(folder):
        raise ConfigError(f"'{path}' was made for other weights than those of '{model}'; calibrate this model")
    return loaded, path.name if named is None else str(path)


def _data_variance(model: str | None, named: str | None, process: Process) -> float:
    """The constant of Time-Shift's statistic: from a calibration, else from the sigma_data of an EDM network."""
    try:
        return _calibration(model, named)[0].data_variance
    except (CheckpointError, ConfigError):
        if named is None and isinstance(process, EDM):
            return process.sigma_data**2
        raise


# ---- the calibration file


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
        """Write the file at once or not at all, with a digest of itself."""
        write_json(path, sealed(json.loads(json.dumps({"kind": KIND, "version": VERSION, **asdict(self)}))))


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
        content = read_json(path)
        if not is_whole(content):
            raise ValueError(f"it was changed, its {SEAL} is another: take that out if the change was yours")
        content.pop(SEAL, None)
        if content.pop("kind") != KIND or content.pop("version") != VERSION:
            raise ValueError("it is something else, or of another version")
        return calibration_of(content)
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no calibration '{path}'; make one with 'diffdistill calibrate MODEL --data DATA --out FILE'"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"'{path}' is not a calibration that can be read ({reason_of(error)}); make it again"
        ) from error


def calibration_of(content: dict[str, Any]) -> Calibration:
    """What `asdict` of a calibration was made of; KeyError, TypeError or ValueError where it is something else."""
    content = dict(content)
    entries = tuple(_entry(**entry) for entry in content.pop("entries"))
    return Calibration(entries=entries, **content)


def _entry(sampler: str, steps: int, fits: dict[str, Fit], report: dict[str, Any]) -> Entry:
    for name, fit in fits.items():
        if name not in (SCALE, SHIFT, BOTH) or not {"b", "window", "cutoff"} <= set(fit):
            raise ValueError(f"the fit '{name}' of {sampler} is incomplete")
    return Entry(str(sampler), int(steps), fits, report)
