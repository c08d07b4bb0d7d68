"""Epsilon Scaling and the Time-Shift sampler for schedulers of diffusers.

`Corrected<Base>Scheduler` classes (`CorrectedDDIMScheduler`, ...) are made when they are first asked for. They have
this module's name and find `SchedulerMixin` here, which is what diffusers needs to load them in a pipeline.
"""

from typing import Any

from diffusers import SchedulerMixin

from diffdistill.parts.exposure_bias.correction import corrected_class, corrected_names
from diffdistill.parts.exposure_bias.families import BASES, coordinates
from diffdistill.parts.exposure_bias.scaling import scale_model_output
from diffdistill.parts.exposure_bias.schedule import EpsilonScaleSchedule
from diffdistill.parts.exposure_bias.statistics import level_statistic
from diffdistill.parts.exposure_bias.wrap import (
    disable_epsilon_scaling,
    disable_time_shift_sampler,
    enable_epsilon_scaling,
    enable_time_shift_sampler,
    epsilon_scaling,
    load_scheduler,
    time_shift_sampler,
)

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
