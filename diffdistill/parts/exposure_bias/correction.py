"""Schedulers of diffusers with both corrections built in, one named class for each base."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
from torch import Tensor

from diffdistill.errors import ConfigError
from diffdistill.parts.exposure_bias.epsilon import EpsilonScaling
from diffdistill.parts.exposure_bias.families import BASES, base_name, position
from diffdistill.parts.exposure_bias.schedule import EpsilonScaleSchedule
from diffdistill.parts.exposure_bias.time_shift import Shift, TimeShift

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


class Corrections:
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

    All others find the destination in `sigmas` or `timesteps`, where nobody moved it.
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
        (Corrections, base),
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
