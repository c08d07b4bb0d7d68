"""The Time-Shift sampler: a state is given the time step whose noise it has, in place of the scheduled one."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from diffdistill.errors import ConfigError
from diffdistill.parts.exposure_bias.coordinates import BASES, TimeAxis, base_name, family, position

Statistic = Literal["corrected", "paper", "haar"]
STATISTICS: tuple[Statistic, ...] = ("corrected", "paper", "haar")
# Images in [-1, 1] have a deviation of about a half (sigma_data of 2206.00364).
PIXEL_VARIANCE = 0.25

# With V0 = 1 the variance alpha^2 V0 + s^2 of a variance-preserving state is 1 at every level.
MIN_CONTRAST = 0.1


def level_statistic(x: Tensor, statistic: Statistic = "corrected") -> float:
    """One number for a batch `x` `(B, C, H, W)`, in squared units of x; float32 inside.

    - corrected, paper: the unbiased variance of all C H W entries of an image around the image's own mean, averaged
      over the batch (2305.15583, section 3.2; the average divides the estimate's spread by sqrt(B))
    - haar: the squared robust deviation (median |c| / 0.6745)^2 of the finest diagonal Haar coefficients, which hold
      all of the noise and little of a smooth image; averaged over the batch

    Of clean data, the same number is the `data_variance` of `time_shift_sampler`: white noise of deviation s adds
    s^2 to it. Raises ConfigError for haar on anything but images or frames of at least 2 x 2, and for another name.

    >>> ramp = torch.linspace(-1, 1, 64).expand(8, 3, 64, 64)
    >>> noisy = ramp + 2 * torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> [round(level_statistic(x), 1) for x in (ramp, noisy)]
    [0.3, 4.4]
    >>> [round(level_statistic(x, "haar"), 1) for x in (ramp, noisy)]  # the noise alone
    [0.0, 4.0]
    """
    _check_statistic(statistic)
    x = x.float()
    if statistic != "haar":
        return float(x.flatten(1).var(dim=1).mean())
    if x.ndim not in (4, 5) or min(x.shape[-2:]) < 2:
        raise ConfigError(f"the haar statistic needs images (B, C, H, W), not shape {tuple(x.shape)}; use corrected")
    height, width = (size // 2 * 2 for size in x.shape[-2:])
    top, bottom = x[..., 0:height:2, :width], x[..., 1:height:2, :width]
    difference = top - bottom
    diagonal = (difference[..., 0::2] - difference[..., 1::2]) / 2
    deviation = diagonal.abs().flatten(1).median(dim=1).values / 0.6745
    return float((deviation**2).mean())


class Shift(NamedTuple):
    """One decision, for the state before an evaluation: its scheduled time, the time it was given, and whether the
    window cut the choice short.
    """

    evaluation: int
    nominal: float
    time: float
    clipped: bool


class TimeShift:
    """Relabels states after each step (2305.15583, Algorithm 2), within `nominal +- window / 2` time steps.

    The expected statistic of a state at level (alpha, s) is alpha^2 V0 + s^2, V0 the same statistic of clean data;
    the paper's target is V0 = 0 in variance-preserving units. Levels are rewritten in place, in `sigmas` and
    `timesteps`, so that the network and the solver agree on them. Time is in training steps of the scheduler
    (`TimeAxis`); states at a time below `cutoff` are left alone. One choice for the whole batch.
    """

    def __init__(self, scheduler: Any, window: int, cutoff: int, statistic: str, data_variance: float | None):
        self.axis = TimeAxis(scheduler)
        self.window, self.cutoff = window, cutoff
        self.statistic: Any = statistic
        _check_settings(scheduler, window, cutoff, statistic, data_variance)
        self.data_variance = _data_variance(scheduler, statistic, data_variance)
        self.begin()

    def begin(self) -> None:
        """Start a new run: forget the labels that were moved."""
        self.shifts: list[Shift] = []
        self.nominal_labels: dict[int, float] = {}

    def nominal_label(self, scheduler: Any, timestep: Any) -> float | None:
        """The scheduled time step of the state at hand, if it was moved. ConfigError if the loop did not see it."""
        if not self.nominal_labels:
            return None
        index = position(scheduler, timestep)
        if index in self.nominal_labels and float(timestep) == float(scheduler.timesteps[index]):
            return self.nominal_labels[index]
        if index in self.nominal_labels or float(timestep) in self.nominal_labels.values():
            raise ConfigError(
                f"the loop passed time step {float(timestep):g}, which the Time-Shift sampler had moved: iterate over "
                "scheduler.timesteps itself, not over a copy of it"
            )
        return None

    def after_step(self, scheduler: Any, index: int, sample: Tensor) -> bool:
        """Choose the label of `sample`, the state before evaluation `index`; True if it was moved."""
        if index >= len(scheduler.timesteps) or not _between_steps(scheduler):
            return False
        before, nominal, after = (self._time(scheduler, i) for i in (index - scheduler.order, index, index + 1))
        if nominal < self.cutoff:
            return False
        half = self.window // 2
        candidates = nominal + np.arange(-half, half + 1)
        # A step must go down in noise: a label stays a time step away from its neighbours' labels.
        inside = (candidates >= max(after + 1, 0)) & (candidates <= min(before - 1, self.axis.last()))
        candidates = candidates[inside | (candidates == nominal)]
        measured, expected = self._compare(sample, nominal, candidates)
        if not math.isfinite(measured):
            return False
        choice = int(np.abs(expected - measured).argmin())
        clipped = not expected.min() <= measured <= expected.max()
        self.shifts.append(Shift(index, nominal, float(candidates[choice]), clipped))
        if candidates[choice] == nominal:
            return False
        self._write(scheduler, index, float(candidates[choice]))
        return True

    def _compare(self, sample: Tensor, nominal: float, candidates: np.ndarray) -> tuple[float, np.ndarray]:
        """What the state shows, and what it would show at each candidate."""
        measured = level_statistic(sample, self.statistic)
        sigma = self.axis.sigma(candidates)
        if self.statistic != "paper" or self.axis.kind == "flow":
            return measured, self.axis.expected_variance(sigma, self.data_variance)
        # The paper's target 1 - abar belongs to variance-preserving units.
        if self.axis.kind in ("ve", "edm"):
            measured /= 1 + float(self.axis.sigma(np.array([nominal]))[0]) ** 2
        return measured, sigma**2 / (1 + sigma**2)

    def _time(self, scheduler: Any, index: int) -> float:
        if self.axis.kind == "table":
            return float(scheduler.timesteps[index]) if index < len(scheduler.timesteps) else -1.0
        sigma = float(scheduler.sigmas[index])
        return self.axis.time(sigma) if sigma > 0 else -1.0

    def _write(self, scheduler: Any, index: int, time: float) -> None:
        """In place: a loop over `scheduler.timesteps` holds views of it and sees the change."""
        self.nominal_labels[index] = float(scheduler.timesteps[index])
        sigma = float(self.axis.sigma(np.array([time]))[0])
        label = self.axis.label(time, sigma)
        if not scheduler.timesteps.is_floating_point():
            label = round(label)
        # Solvers with two evaluations a step list each level twice.
        first = index - scheduler.order + 1
        scheduler.timesteps[first : index + 1] = label
        if self.axis.kind != "table":
            scheduler.sigmas[first : index + 1] = sigma
        if hasattr(scheduler, "last_sample"):
            # UniPC's corrector would now move the state to its new label: it is at that label already.
            scheduler.last_sample = None


def _between_steps(scheduler: Any) -> bool:
    """Whether a step of the solver is complete, so that its state has one level."""
    if base_name(scheduler) == "PNDMScheduler":
        # Until the multistep formula runs, PNDM goes back to earlier states.
        return scheduler.counter > max(len(scheduler.prk_timesteps), 2)
    return scheduler.order == 1 or scheduler.state_in_first_order


def _check_statistic(name: str) -> None:
    if name not in STATISTICS:
        raise ConfigError(f"the Time-Shift statistic '{name}' is unknown; use {', '.join(STATISTICS)}")


def _check_settings(scheduler: Any, window: int, cutoff: int, statistic: str, data_variance: float | None) -> None:
    steps = int(scheduler.config.num_train_timesteps)
    if not BASES[base_name(scheduler)].time_shift:
        able = ", ".join(name for name, base in BASES.items() if base.time_shift)
        raise ConfigError(f"the Time-Shift sampler cannot move states of {base_name(scheduler)}; it can for: {able}")
    if not 0 <= window <= steps:
        raise ConfigError(
            f"the Time-Shift window of {window} time steps does not fit the schedule; it may be 0 (off) to {steps}"
        )
    if not 0 <= cutoff <= steps:
        raise ConfigError(f"the Time-Shift cutoff {cutoff} is outside the schedule; it may be 0 to {steps}")
    _check_statistic(statistic)
    if data_variance is None:
        return
    if statistic == "paper":
        raise ConfigError("the paper's Time-Shift target has no data variance; use statistic='corrected' with it")
    if not (data_variance >= 0 and math.isfinite(data_variance)):
        raise ConfigError(f"data_variance = {data_variance} is not a variance; give the level_statistic of real data")
    if family(scheduler) in ("table", "vp") and abs(1 - data_variance) < MIN_CONTRAST:
        raise ConfigError(
            f"data of variance {data_variance:g} looks the same at every level of a variance-preserving schedule, so "
            "the Time-Shift sampler is unidentifiable; use statistic='haar' with the haar statistic of the data"
        )


def _data_variance(scheduler: Any, statistic: str, given: float | None) -> float:
    if given is not None:
        return float(given)
    if statistic != "corrected":
        return 0.0
    sigma_data = scheduler.config.get("sigma_data")
    return PIXEL_VARIANCE if sigma_data is None else float(sigma_data) ** 2
