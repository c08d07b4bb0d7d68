"""The numbers of a scheduler's config, checked where they are read: an impossible one would draw noise in silence."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from diffdistill.errors import CheckpointError
from diffdistill.pipelines.folder import read_json


class Range(NamedTuple):
    """low <= value <= high; `open_` leaves out low."""

    low: float
    high: float
    open_: bool = False
    whole: bool = False


MOST_STEPS = 1_000_000  # a schedule of more would fill the memory with its levels
RANGES = {
    "num_train_timesteps": Range(1, MOST_STEPS, whole=True),
    "original_inference_steps": Range(1, MOST_STEPS, whole=True),
    "beta_start": Range(0.0, 1.0),
    "beta_end": Range(0.0, 1.0, open_=True),
    "sigma_min": Range(0.0, 1e30),
    "sigma_max": Range(0.0, 1e30, open_=True),
    "sigma_data": Range(0.0, 1e30, open_=True),
    "rho": Range(0.0, 1e6, open_=True),
    "s_noise": Range(0.0, 1e6),
    "shift": Range(0.0, 1e6, open_=True),
    "timestep_scaling": Range(0.0, 1e30, open_=True),
}


def read_scheduler(folder: Path) -> dict[str, Any]:
    """scheduler_config.json of a model folder; CheckpointError for a number that no schedule has."""
    file = folder / "scheduler" / "scheduler_config.json"
    config: Any = read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("_class_name", ""), str):
        raise CheckpointError(f"'{file}' describes no scheduler; make or fetch the model folder again")
    wrong = problem_of(config)
    if wrong is not None:
        raise CheckpointError(f"'{file}' has {wrong}; make or fetch the model folder again")
    return config


def problem_of(config: dict[str, Any]) -> str | None:
    """The first impossible value, in words, and what is allowed; None where there is none."""
    for key, value in config.items():
        if isinstance(value, float) and math.isnan(value):
            return f"the {key} NaN, and it must be a number"
    for key, allowed in RANGES.items():
        value = config.get(key)
        # Some schedulers have levels of their own where none are given; their steps are always given.
        if (value is not None or (key in config and allowed.whole)) and not _within(value, allowed):
            sign = "above" if allowed.open_ else "from"
            kind = "whole number" if allowed.whole else "number"
            return f"the {key} {value!r:.60}, and it must be a {kind} {sign} {allowed.low:g} to {allowed.high:g}"
    betas = config.get("trained_betas")
    if betas is not None and not (isinstance(betas, list) and betas and all(_within(b, Range(0, 1)) for b in betas)):
        return "trained_betas that are no list of numbers from 0 to 1"
    if betas is not None and len(betas) != (steps := config.get("num_train_timesteps", 1000)):
        return f"{len(betas)} trained_betas and the num_train_timesteps {steps}, and there must be as many"
    low, high = config.get("sigma_min"), config.get("sigma_max")
    if low is not None and high is not None and not low < high:
        return f"the sigma_min {low:g} and the sigma_max {high:g}, and the first must be the smaller"
    return None


def _within(value: Any, allowed: Range) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if allowed.whole else int | float):
        return False
    return (allowed.low < value if allowed.open_ else allowed.low <= value) and value <= allowed.high
