"""Epsilon Scaling and the Time-Shift sampler for schedulers of diffusers.

`Corrected<Base>Scheduler` classes (`CorrectedDDIMScheduler`, ...) are made when they are first asked for. They have
this module's name and find `SchedulerMixin` here, which is what diffusers needs to load them in a pipeline.
"""

from typing import Any

from diffusers import SchedulerMixin

from diffdistill.parts.exposure_bias.coordinates import BASES, coordinates
from diffdistill.parts.exposure_bias.epsilon_scaling import EpsilonScaleSchedule, scale_model_output
from diffdistill.parts.exposure_bias.scheduler import (
    corrected_class,
    corrected_names,
    disable_epsilon_scaling,
    disable_time_shift_sampler,
    enable_epsilon_scaling,
    enable_time_shift_sampler,
    epsilon_scaling,
    load_scheduler,
    time_shift_sampler,
)
from diffdistill.parts.exposure_bias.time_shift import level_statistic

__all__ = [
    "BASES",
    "EpsilonScaleSchedule",
    "SchedulerMixin",
    "coordinates",
    "disable_epsilon_scaling",
    "disable_time_shift_sampler",
    "enable_epsilon_scaling",
    "enable_time_shift_sampler",
    "epsilon_scaling",
    "level_statistic",
    "load_scheduler",
    "scale_model_output",
    "time_shift_sampler",
]


def __getattr__(name: str) -> Any:
    if name in corrected_names():
        return corrected_class(name.removeprefix("Corrected"))
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
