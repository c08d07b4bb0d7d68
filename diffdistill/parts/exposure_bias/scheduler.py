"""Schedulers of diffusers with both corrections built in, one named class for each base, and the ways to get one: a
corrected copy of a scheduler, of a pipeline's in place, of a saved one.
"""

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.parts.exposure_bias.coordinates import BASES, base_name, position
from diffdistill.parts.exposure_bias.epsilon_scaling import EpsilonScaleSchedule, EpsilonScaling
from diffdistill.parts.exposure_bias.time_shift import Shift, TimeShift

Knots = Sequence[Sequence[float]]

# What a corrected scheduler keeps in its config, with the values that leave the base scheduler as it is.
DEFAULTS: dict[str, Any] = {
    "epsilon_scale": 1.0,
    "epsilon_scale_slope": 0.0,
    "epsilon_scale_knots": None,
    "epsilon_scale_flow_mode": "residual",
    "time_shift_sampler_window": 0,
    "time_shift_sampler_cutoff": 0,
    "time_shift_sampler_statistic": "corrected",
    "time_shift_sampler_data_variance": None,
}


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

    >>> from diffusers import DDIMScheduler
    >>> scheduler = epsilon_scaling(DDIMScheduler(), b=1.005)
    >>> type(scheduler).__name__, scheduler.config.epsilon_scale
    ('CorrectedDDIMScheduler', 1.005)
    """
    return _correct(copy.deepcopy(scheduler), _epsilon_settings(b, k, knots, flow_mode))


def time_shift_sampler(
    scheduler: Any, *, window: int, cutoff: int, statistic: str = "corrected", data_variance: float | None = None
) -> Any:
    """A copy of `scheduler` that gives each state the time step whose noise it has (Time-Shift sampler, 2305.15583).

    window: choices are the scheduled time +- window / 2, in training time steps; 0 is the base scheduler to the last
    bit. cutoff: states at a time below it are left alone. statistic: "corrected" compares the state's variance with
    alpha^2 data_variance + s^2, "paper" with 1 - abar, "haar" the noise in the finest detail (see `level_statistic`).
    data_variance: `level_statistic(real_data, statistic)`; by default 0.25 (images in [-1, 1]; sigma_data^2 where the
    scheduler has one), for haar 0.

    Raises ConfigError for a window or cutoff outside the schedule, for data whose variance says nothing about the
    level (unit variance in a variance-preserving schedule), and for schedulers whose solver cannot follow.

    >>> from diffusers import DDIMScheduler
    >>> from diffdistill.schedulers import epsilon_scaling
    >>> scheduler = time_shift_sampler(DDIMScheduler(), window=40, cutoff=300)
    >>> both = epsilon_scaling(scheduler, b=1.005)
    >>> both.config.time_shift_sampler_window, both.config.epsilon_scale
    (40, 1.005)
    """
    return _correct(copy.deepcopy(scheduler), _shift_settings(window, cutoff, statistic, data_variance))


def enable_epsilon_scaling(
    pipe: Any, *, b: float = 1.0, k: float = 0.0, knots: Knots | None = None, flow_mode: str = "residual"
) -> None:
    """`epsilon_scaling` for the scheduler that a pipeline holds, in place.

    For pipelines that rebuild their scheduler when they are made (DDIMPipeline turns any into a plain DDIMScheduler),
    call it on the finished pipeline. The object stays the same; only its class changes.

    >>> from diffusers import DDIMPipeline, DDIMScheduler
    >>> pipe = DDIMPipeline(unet=None, scheduler=DDIMScheduler())  # yours has a network
    >>> enable_epsilon_scaling(pipe, b=1.005)
    >>> type(pipe.scheduler).__name__, pipe.scheduler.config.epsilon_scale
    ('CorrectedDDIMScheduler', 1.005)
    """
    _correct_pipeline(pipe, _epsilon_settings(b, k, knots, flow_mode))


def disable_epsilon_scaling(pipe: Any) -> None:
    """Undo `enable_epsilon_scaling`; without any correction left the scheduler is of its diffusers class again.

    >>> from diffusers import DDIMPipeline, DDIMScheduler
    >>> from diffdistill.schedulers import enable_epsilon_scaling
    >>> pipe = DDIMPipeline(unet=None, scheduler=DDIMScheduler())
    >>> enable_epsilon_scaling(pipe, b=1.005)
    >>> disable_epsilon_scaling(pipe)
    >>> type(pipe.scheduler).__name__
    'DDIMScheduler'
    """
    _correct_pipeline(pipe, _epsilon_settings(1.0, 0.0, None, "residual"))


def enable_time_shift_sampler(
    pipe: Any, *, window: int, cutoff: int, statistic: str = "corrected", data_variance: float | None = None
) -> None:
    """`time_shift_sampler` for the scheduler that a pipeline holds, in place; see `enable_epsilon_scaling`.

    >>> from diffusers import DDIMPipeline, DDIMScheduler
    >>> pipe = DDIMPipeline(unet=None, scheduler=DDIMScheduler())
    >>> enable_time_shift_sampler(pipe, window=40, cutoff=300)
    >>> type(pipe.scheduler).__name__, pipe.scheduler.config.time_shift_sampler_cutoff
    ('CorrectedDDIMScheduler', 300)
    """
    _correct_pipeline(pipe, _shift_settings(window, cutoff, statistic, data_variance))


def disable_time_shift_sampler(pipe: Any) -> None:
    """Undo `enable_time_shift_sampler`; Epsilon Scaling, if there is any, stays.

    >>> from diffusers import DDIMPipeline, DDIMScheduler
    >>> from diffdistill.schedulers import enable_epsilon_scaling, enable_time_shift_sampler
    >>> pipe = DDIMPipeline(unet=None, scheduler=DDIMScheduler())
    >>> enable_epsilon_scaling(pipe, b=1.005)
    >>> enable_time_shift_sampler(pipe, window=40, cutoff=300)
    >>> disable_time_shift_sampler(pipe)
    >>> pipe.scheduler.config.time_shift_sampler_window, pipe.scheduler.config.epsilon_scale
    (0, 1.005)
    """
    _correct_pipeline(pipe, _shift_settings(0, 0, "corrected", None))


def load_scheduler(model: str | Path, subfolder: str | None = None, **options: Any) -> Any:
    """The scheduler of a folder or Hub id, corrected or plain, by the class name in its config.

    Stock `from_pretrained` of a pipeline finds corrected classes too, once `diffdistill.schedulers` is imported.
    Raises CheckpointError for a folder without a scheduler or with a class that diffusers does not have.

    >>> import tempfile
    >>> from diffusers import DDIMScheduler
    >>> from diffdistill.schedulers import epsilon_scaling
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     epsilon_scaling(DDIMScheduler(), b=1.005).save_pretrained(folder)
    ...     scheduler = load_scheduler(folder)
    >>> type(scheduler).__name__, scheduler.config.epsilon_scale
    ('CorrectedDDIMScheduler', 1.005)
    """
    try:
        config = diffusers.DDIMScheduler.load_config(model, subfolder=subfolder, **options)
    except OSError as problem:
        raise CheckpointError(f"'{model}' has no scheduler that can be read: {problem}") from None
    name = str(config.get("_class_name"))
    base = name.removeprefix("Corrected")
    if name != base and base in BASES:
        return corrected_class(base).from_config(config)
    stock: Any = getattr(diffusers, name, None)
    known = isinstance(stock, type) and issubclass(stock, SchedulerMixin)
    if not known:  # not in the condition itself, or mypy takes the class for a plain `type`
        raise CheckpointError(f"'{model}' names the scheduler class '{name}', which diffusers does not have")
    return stock.from_config(config)


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


# ---- the corrected classes


class Stride(int):
    """A number of steps that divides the training steps into the stride we want.

    DDIM and PNDM find the destination of a step as `t - num_train_timesteps // num_inference_steps`. From a moved t
    that would drag the destination along; with this number in place of `num_inference_steps` it stays.
    """

    stride: int

    def __new__(cls, steps: int, stride: int) -> "Stride":
        self = super().__new__(cls, steps)
        self.stride = stride
        return self

    def __rfloordiv__(self, other: int) -> int:
        return self.stride


class CorrectedSteps:
    """Epsilon Scaling before the base scheduler's step, the Time-Shift sampler after it."""

    _epsilon: EpsilonScaling | None
    _time_shift: TimeShift | None

    @property
    def time_shifts(self) -> list[Shift]:
        """The decisions of the Time-Shift sampler in this run. If most are clipped, the statistic decides nothing."""
        return [] if self._time_shift is None else self._time_shift.shifts

    def _set_corrections(self, settings: dict[str, Any]) -> None:
        """Take the values of `DEFAULTS` keys and keep them in the config. ConfigError for any that is not allowed."""
        self._epsilon, self._time_shift = build(self, settings)
        self.register_to_config(**settings)  # type: ignore[attr-defined]

    def _corrected_step(
        self, step: Callable, model_output: Tensor, timestep: Any, sample: Tensor, args: tuple, kwargs: dict
    ) -> Any:
        output, state = model_output, sample
        if self._epsilon is not None:
            # Half precision becomes float32, at every step and in both tensors: solvers that remember earlier steps
            # mix them, and UniPC's einsum takes one dtype only.
            output = _precise(self._epsilon(self, model_output, timestep, sample, kwargs))
            state = _precise(sample)
        if self._time_shift is None:
            result = step(self, output, timestep, state, *args, **kwargs)
        else:
            result = self._shifted_step(self._time_shift, step, output, timestep, state, args, kwargs)
        # The loop gets back what it works in.
        return result if output.dtype == model_output.dtype else _cast(result, sample)

    def _shifted_step(
        self,
        shift: TimeShift,
        step: Callable,
        output: Tensor,
        timestep: Any,
        sample: Tensor,
        args: tuple,
        kwargs: dict,
    ) -> Any:
        scheduler: Any = self
        if kwargs.get("per_token_timesteps") is not None:
            raise ConfigError("a pipeline with per-token time steps has no single noise level to shift; disable it")
        index = position(scheduler, timestep)
        nominal = shift.nominal_label(scheduler, timestep)
        with _fixed_destination(scheduler, timestep, nominal):
            result = step(scheduler, output, timestep, sample, *args, **kwargs)
        shift.after_step(scheduler, index + 1, result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    def _begin_run(self) -> None:
        if getattr(self, "_time_shift", None) is not None:
            self._time_shift.begin()  # type: ignore[union-attr]


@contextlib.contextmanager
def _fixed_destination(scheduler: Any, timestep: Any, nominal: float | None) -> Iterator[None]:
    """Steps of DDIM and PNDM from a moved state end where they would have ended from the scheduled one.

    All others find the destination in `sigmas` or `timesteps`, which is not moved.
    """
    if nominal is None or base_name(scheduler) not in ("DDIMScheduler", "PNDMScheduler"):
        yield
        return
    steps = scheduler.num_inference_steps
    usual = scheduler.config.num_train_timesteps // steps
    scheduler.num_inference_steps = Stride(steps, int(timestep) - int(nominal) + usual)
    try:
        yield
    finally:
        scheduler.num_inference_steps = steps


def build(scheduler: Any, settings: dict[str, Any]) -> tuple[EpsilonScaling | None, TimeShift | None]:
    """The two corrections, None where it changes nothing. ConfigError for settings that are not allowed."""
    knots = settings["epsilon_scale_knots"]
    schedule = EpsilonScaleSchedule(
        settings["epsilon_scale"], settings["epsilon_scale_slope"], None if knots is None else tuple(knots)
    )
    epsilon = EpsilonScaling(schedule, settings["epsilon_scale_flow_mode"])
    window = settings["time_shift_sampler_window"]
    shift = None
    if window != 0:
        shift = TimeShift(
            scheduler,
            window,
            settings["time_shift_sampler_cutoff"],
            settings["time_shift_sampler_statistic"],
            settings["time_shift_sampler_data_variance"],
        )
    return None if schedule.is_identity else epsilon, shift


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _cast(result: Any, sample: Tensor) -> Any:
    if isinstance(result, tuple):
        return tuple(value.to(sample.dtype) if isinstance(value, Tensor) else value for value in result)
    for name, value in result.items():
        if isinstance(value, Tensor):
            result[name] = value.to(sample.dtype)
    return result


@functools.cache
def corrected_class(name: str) -> Any:
    """`Corrected<name>`: the diffusers scheduler `name` with the settings of `DEFAULTS` added to its config.

    A real subclass: `isinstance` checks, `step` keywords and `set_timesteps` keywords of pipelines hold. It calls
    `diffdistill.schedulers` its module, because there diffusers looks for it when it loads a pipeline.
    """
    base = getattr(diffusers, name)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        settings = {key: kwargs.pop(key, default) for key, default in DEFAULTS.items()}
        base.__init__(self, *args, **kwargs)
        self._set_corrections(settings)

    signature = inspect.signature(base.__init__)
    added = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value) for key, value in DEFAULTS.items()]
    __init__.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]

    @functools.wraps(base.step)
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._corrected_step(base.step, model_output, timestep, sample, args, kwargs)

    @functools.wraps(base.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        base.set_timesteps(self, *args, **kwargs)
        self._begin_run()

    def _get_compatibles(cls: type) -> list[type]:
        # Diffusers finds compatible classes by name among its own, where this one is not.
        return [*base._get_compatibles(), cls]

    return type(
        f"Corrected{name}",
        (CorrectedSteps, base),
        {
            "__init__": __init__,
            "step": step,
            "set_timesteps": set_timesteps,
            "_get_compatibles": classmethod(_get_compatibles),
            "__module__": "diffdistill.schedulers",
            "__doc__": f"`{name}` of diffusers with Epsilon Scaling and the Time-Shift sampler in its config.",
        },
    )


def corrected_names() -> list[str]:
    """Names of all corrected classes."""
    return [f"Corrected{name}" for name in BASES]
