"""Settings of the Time-Shift sampler: what is refused, and what is filled in."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    KDPM2DiscreteScheduler,
)

from diffdistill.errors import ConfigError
from diffdistill.schedulers import level_statistic, time_shift_sampler


def test_data_of_unit_variance_say_nothing_in_variance_preserving_schedules() -> None:
    for plain in (DDIMScheduler(), DPMSolverMultistepScheduler()):
        with pytest.raises(ConfigError, match="unidentifiable; use statistic='haar'"):
            time_shift_sampler(plain, window=40, cutoff=100, data_variance=0.95)
        time_shift_sampler(plain, window=40, cutoff=100, statistic="haar", data_variance=0.01)
    # Exploding variance: x = x0 + sigma eps shows sigma whatever the data.
    time_shift_sampler(EulerDiscreteScheduler(), window=40, cutoff=100, data_variance=1.0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"window": 1001}, "window of 1001 time steps does not fit the schedule; it may be 0 .off. to 1000"),
        ({"window": -2}, "window of -2 time steps does not fit"),
        ({"cutoff": 1001}, "cutoff 1001 is outside the schedule"),
        ({"statistic": "mean"}, "statistic 'mean' is unknown; use corrected, paper, haar"),
        ({"statistic": "paper", "data_variance": 0.2}, "paper's Time-Shift target has no data variance"),
        ({"data_variance": -1.0}, "data_variance = -1.0 is not a variance"),
    ],
)
def test_settings_that_are_not_allowed(settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        time_shift_sampler(DDIMScheduler(), **{"window": 40, "cutoff": 100, **settings})


def test_the_statistic_of_data_has_the_same_names() -> None:
    with pytest.raises(ConfigError, match="statistic 'mean' is unknown; use corrected, paper, haar"):
        level_statistic(torch.zeros(1, 3, 8, 8), "mean")


def test_solvers_that_cannot_follow_are_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot move states of KDPM2DiscreteScheduler; it can for: DDPMScheduler"):
        time_shift_sampler(KDPM2DiscreteScheduler(), window=40, cutoff=100)


def test_data_variance_defaults() -> None:
    def value(plain: Any, **settings: Any) -> float:
        return time_shift_sampler(plain, window=40, cutoff=100, **settings)._time_shift.data_variance

    assert value(DDIMScheduler()) == 0.25
    assert value(EDMEulerScheduler(sigma_data=0.7)) == pytest.approx(0.49)
    assert value(DDIMScheduler(), statistic="haar") == 0.0
    assert value(DDIMScheduler(), data_variance=0.2) == 0.2
