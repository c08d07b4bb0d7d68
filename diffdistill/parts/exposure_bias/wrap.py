"""The front door: a corrected copy of a scheduler, a corrected pipeline, a corrected scheduler from a folder."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
from diffusers import SchedulerMixin

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.parts.exposure_bias.correction import DEFAULTS, build, corrected_class
from diffdistill.parts.exposure_bias.families import BASES, base_name

Knots = Sequence[Sequence[float]]


def epsilon_scaling(
    scheduler: Any, *, b: float = 1.0, k: float = 0.0, knots: Knots | None = None, flow_mode: str = "residual"
) -> Any:
    """A copy of `scheduler` that divides the predicted noise by lambda in every step (Epsilon Scaling, 2308.15321).

    scheduler: any class of diffusers named in `BASES`, or one that is corrected already (its other correction stays).
    b, k, knots: see `EpsilonScaleSchedule`: lambda = b + k i with i = 0 at the last step taken, or knots over log-SNR.
    flow_mode: see `scale_model_output`. lambda > 1 raises the variance of what follows; which sign helps depends on
    the solver and the model, so b is 1 unless given, and b = 1 is the base scheduler to the last bit.

    Applied to what the pipeline passes to `step`, hence after guidance. Raises ConfigError for lambda <= 0 and for
    schedulers that cannot be corrected.
    """
    return _correct(copy.deepcopy(scheduler), _epsilon_settings(b, k, knots, flow_mode))


def time_shift_sampler(
    scheduler: Any,
    *,
    window: int,
    cutoff: int,
    statistic: str = "corrected",
    data_variance: float | None = None,
) -> Any:
    """A copy of `scheduler` that gives each state the time step whose noise it has (Time-Shift sampler, 2305.15583).

    window: choices are the scheduled time +- window / 2, in training time steps; 0 is the base scheduler to the last
    bit. cutoff: states at a time below it are left alone. statistic: "corrected" compares the state's variance with
    alpha^2 data_variance + s^2, "paper" with 1 - abar, "haar" the noise in the finest detail (see `level_statistic`).
    data_variance: `level_statistic(real_data, statistic)`; by default 0.25 (images in [-1, 1]; sigma_data^2 where the
    scheduler has one), for haar 0.

    Raises ConfigError for a window or cutoff outside the schedule, for data whose variance says nothing about the
    level (unit variance in a variance-preserving schedule), and for schedulers whose solver cannot follow.
    """
    return _correct(copy.deepcopy(scheduler), _shift_settings(window, cutoff, statistic, data_variance))


def enable_epsilon_scaling(
    pipe: Any, *, b: float = 1.0, k: float = 0.0, knots: Knots | None = None, flow_mode: str = "residual"
) -> None:
    """`epsilon_scaling` for the scheduler that a pipeline holds, in place.

    For pipelines that rebuild their scheduler when they are made (DDIMPipeline turns any into a plain DDIMScheduler),
    call it on the finished pipeline. The object stays the same; only its class changes.
    """
    _correct_pipeline(pipe, _epsilon_settings(b, k, knots, flow_mode))


def disable_epsilon_scaling(pipe: Any) -> None:
    """Undo `enable_epsilon_scaling`; without any correction left the scheduler is of its diffusers class again."""
    _correct_pipeline(pipe, _epsilon_settings(1.0, 0.0, None, "residual"))


def enable_time_shift_sampler(
    pipe: Any, *, window: int, cutoff: int, statistic: str = "corrected", data_variance: float | None = None
) -> None:
    """`time_shift_sampler` for the scheduler that a pipeline holds, in place; see `enable_epsilon_scaling`."""
    _correct_pipeline(pipe, _shift_settings(window, cutoff, statistic, data_variance))


def disable_time_shift_sampler(pipe: Any) -> None:
    """Undo `enable_time_shift_sampler`."""
    _correct_pipeline(pipe, _shift_settings(0, 0, "corrected", None))


def load_scheduler(model: str | Path, subfolder: str | None = None, **options: Any) -> Any:
    """The scheduler of a folder or Hub id, corrected or plain, by the class name in its config.

    Stock `from_pretrained` of a pipeline finds corrected classes too, once `diffdistill.schedulers` is imported.
    Raises CheckpointError for a folder without a scheduler or with a class that diffusers does not have.
    """
    try:
        config = diffusers.DDIMScheduler.load_config(model, subfolder=subfolder, **options)
    except OSError as problem:
        raise CheckpointError(f"'{model}' has no scheduler that can be read: {problem}") from None
    name = str(config.get("_class_name"))
    base = name.removeprefix("Corrected")
    if name != base and base in BASES:
        return corrected_class(base).from_config(config)
    found: Any = getattr(diffusers, name, None)
    known = isinstance(found, type) and issubclass(found, SchedulerMixin)
    if not known:
        raise CheckpointError(f"'{model}' names the scheduler class '{name}', which diffusers does not have")
    return found.from_config(config)


def _epsilon_settings(b: float, k: float, knots: Knots | None, flow_mode: str) -> dict[str, Any]:
    return {
        "epsilon_scale": b,
        "epsilon_scale_slope": k,
        "epsilon_scale_knots": None if knots is None else [list(pair) for pair in knots],
        "epsilon_scale_flow_mode": flow_mode,
    }


def _shift_settings(window: int, cutoff: int, statistic: str, data_variance: float | None) -> dict[str, Any]:
    return {
        "time_shift_sampler_window": window,
        "time_shift_sampler_cutoff": cutoff,
        "time_shift_sampler_statistic": statistic,
        "time_shift_sampler_data_variance": data_variance,
    }


def _correct(scheduler: Any, settings: dict[str, Any]) -> Any:
    """Change `scheduler` itself. Settings are checked first, so that a refused one leaves it as it was."""
    name = base_name(scheduler)
    corrected, plain = corrected_class(name), getattr(diffusers, name)
    if type(scheduler) not in (corrected, plain):
        raise ConfigError(f"this {type(scheduler).__name__} is not the class of diffusers of that name")
    now = {key: scheduler.config[key] for key in DEFAULTS} if type(scheduler) is corrected else DEFAULTS
    settings = {**now, **settings}
    build(scheduler, settings)
    scheduler.__class__ = corrected
    scheduler._set_corrections(settings)
    return scheduler


def _correct_pipeline(pipe: Any, settings: dict[str, Any]) -> None:
    scheduler = _correct(pipe.scheduler, settings)
    if build(scheduler, {key: scheduler.config[key] for key in DEFAULTS}) == (None, None):
        _restore(scheduler)
    # Once more into its place, so that the pipeline's own index names the class it now has.
    pipe.scheduler = scheduler


def _restore(scheduler: Any) -> None:
    scheduler.__class__ = getattr(diffusers, base_name(scheduler))
    kept = {key: value for key, value in scheduler.config.items() if key not in DEFAULTS}
    del scheduler._internal_dict, scheduler._epsilon, scheduler._time_shift
    scheduler.register_to_config(**kept)
