"""Epsilon Scaling and Time-Shift for `sample`: what the user wrote, or what `calibrate` found, onto a scheduler."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.parts.exposure_bias.calibration.record import BOTH, FILE, SCALE, SHIFT, Calibration, read_calibration
from diffdistill.pipelines.folder import locate, weights_digest
from diffdistill.process import EDM, Process

AUTO = "auto"


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
        """What `samples.json` says of them; None where nothing is corrected."""
        return asdict(self) if self.scales or self.shifts else None


NONE = Corrections()


def corrected(scheduler: Any, steps: int, wanted: Corrections) -> Any:
    """A scheduler of diffusers with the corrections, for so many steps; ConfigError for values it cannot take."""
    from diffdistill.parts.exposure_bias.wrap import epsilon_scaling, time_shift_sampler

    first = wanted.b + wanted.k * (steps - 1)
    if first <= 0:
        raise ConfigError(
            f"epsilon scaling {wanted.k:g},{wanted.b:g} divides the first of {steps} steps by {first:g}; "
            "lambda must be above 0 at every step"
        )
    if wanted.scales:
        scheduler = epsilon_scaling(scheduler, b=wanted.b, k=wanted.k)
    if wanted.shifts:
        scheduler = time_shift_sampler(
            scheduler,
            window=wanted.window,
            cutoff=wanted.cutoff,
            statistic=wanted.statistic,
            data_variance=wanted.data_variance,
        )
    return scheduler


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
    found = NONE
    if AUTO in (epsilon, shift):
        name = BOTH if epsilon == shift else SCALE if epsilon == AUTO else SHIFT
        held, source = _calibration(model, calibration)
        found = Corrections(**held.lookup(sampler, steps, name), source=source)
    if epsilon not in (None, AUTO):
        *slope, b = (float(word) for word in str(epsilon).split(","))
        found = replace(found, b=b, k=slope[0] if slope else 0.0, source=found.source or "given")
    if shift not in (None, AUTO):
        window, cutoff = _whole(str(shift))
        found = replace(found, window=window, cutoff=cutoff, source=found.source or "given")
        if window:
            found = replace(found, data_variance=_data_variance(model, calibration, process))
    return found if found.scales or found.shifts else NONE


def _whole(text: str) -> list[int]:
    numbers = [float(word) for word in text.split(",")]
    if any(number != int(number) for number in numbers):
        raise ConfigError(
            f"--time-shift-sampler {text}: window and cutoff are whole time steps of 1000, such as 40,300"
        )
    return [int(number) for number in numbers]


def _calibration(model: str | None, named: str | None) -> tuple[Calibration, str]:
    folder = None if model is None else locate(model)
    if named is None and folder is None:
        raise ConfigError(
            "this model was not loaded from a folder that could hold a calibration.json; name --calibration"
        )
    path = Path(named) if named is not None else folder / FILE  # type: ignore[operator]
    held = read_calibration(path)
    if folder is not None and held.weights_sha256 != weights_digest(folder):
        raise ConfigError(f"'{path}' was made for other weights than those of '{model}'; calibrate this model")
    return held, path.name if named is None else str(path)


def _data_variance(model: str | None, named: str | None, process: Process) -> float:
    """The constant of Time-Shift's statistic: from a calibration, else what an EDM network was told of its data."""
    try:
        return _calibration(model, named)[0].data_variance
    except (CheckpointError, ConfigError):
        if named is None and isinstance(process, EDM):
            return process.sigma_data**2
        raise
