"""The stock schedulers that sample text-to-image students in their teacher's own pipeline, and their levels.

`pipe(prompt, **call)` with the `call` of diffdistill.json makes the images of `diffdistill sample`. Stock pipelines
begin with unit noise, so the student's first input is x = `process.start_scale(sigma_1)` z, for which the network sees
z itself; every later one is x0 + sigma_k eps.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from diffdistill.errors import ConfigError
from diffdistill.pipelines.scheduler_config import LCM_TIME_SCALE, Schedule
from diffdistill.pipelines.text.adapter import Adapter
from diffdistill.process import Flow, Process

# Below, a signal of a schedule counts as none ("zero terminal SNR").
LEAST_SIGNAL = 1e-10


def text_schedule(
    adapter: Adapter, process: Process, steps: int, timesteps: Sequence[float] | None = None
) -> Schedule:
    """The schedule of a student of `steps` steps; timesteps: times of the network, None for the scheduler's own.

    Diffusion: `LCMScheduler` at whole steps, evenly spaced from the last one. Flow: `FlowMatchEulerDiscreteScheduler`
    with fresh noise in every step, from t = 1 to the teacher's shift of 1 / K. Raises ConfigError for timesteps that
    are not `steps` descending times of the network, and for a schedule that ends without signal and predicts epsilon.
    """
    if timesteps is not None:
        _check(timesteps, steps, adapter)
    if isinstance(process, Flow):
        return _flow(adapter, process, steps, timesteps)
    return _diffusion(adapter, process, steps, timesteps)


def shifted_times(adapter: Adapter, process: Process, steps: int, shift: float) -> list[float]:
    """Times of the network for u = 1, 1 - 1/K, ..., shifted towards noise: s u / (1 + (s - 1) u) (2403.03206, eq. 23).

    Flow: of time 1. Diffusion: of its T training steps, counted from 0, the last one that has a signal at most; shift
    1 is what the stock scheduler visits.
    """
    total = adapter.scheduler.config.num_train_timesteps
    times = [total * shift * u / (1 + (shift - 1) * u) for u in (1 - k / steps for k in range(steps))]
    if isinstance(process, Flow):
        return times
    last = int((adapter.scheduler.alphas_cumprod > LEAST_SIGNAL).sum()) - 1
    return [min(round(time) - 1, last) for time in times]


def _check(timesteps: Sequence[float], steps: int, adapter: Adapter) -> None:
    if len(timesteps) != steps:
        raise ConfigError(
            f"student.steps is {steps} and student.timesteps has {len(timesteps)} values; give one time a step"
        )
    if any(low >= high for high, low in pairwise(timesteps)):
        raise ConfigError(f"student.timesteps {list(timesteps)} must descend, from the noisiest input to the cleanest")
    last = adapter.scheduler.config.num_train_timesteps
    if timesteps[0] > last or timesteps[-1] <= 0:
        raise ConfigError(f"student.timesteps {list(timesteps)} must lie between 0 and {last}, 0 left out")


def _diffusion(adapter: Adapter, process: Any, steps: int, timesteps: Sequence[float] | None) -> Schedule:
    from diffusers import LCMScheduler

    teacher = adapter.scheduler
    scheduler = LCMScheduler.from_config(
        teacher.config,
        original_inference_steps=teacher.config.num_train_timesteps,
        timestep_scaling=LCM_TIME_SCALE,
        clip_sample=False,
        thresholding=False,
    )
    last = int((scheduler.alphas_cumprod > LEAST_SIGNAL).sum()) - 1
    if last + 1 < len(scheduler.alphas_cumprod) and process.kind == "epsilon":
        raise ConfigError(
            "the teacher's schedule ends without signal (zero terminal SNR) and it predicts epsilon, from which no "
            "image can be read there; take a teacher that predicts v"
        )
    scheduler.set_timesteps(steps)
    stock = [int(t) for t in scheduler.timesteps]
    times = [round(t) for t in timesteps] if timesteps is not None else [min(t, last) for t in stock]
    if times[0] > last:
        raise ConfigError(f"student.timesteps begins with {times[0]}, and the last step with a signal is {last}")
    call = {"num_inference_steps": steps} if times == stock else {"timesteps": times}
    return Schedule(scheduler, _levels(process, times), call)


def _flow(adapter: Adapter, process: Flow, steps: int, timesteps: Sequence[float] | None) -> Schedule:
    from diffusers import FlowMatchEulerDiscreteScheduler

    teacher = adapter.scheduler.config
    settings: dict[str, Any] = {
        "num_train_timesteps": teacher.num_train_timesteps,
        "stochastic_sampling": True,
        "use_dynamic_shifting": False,
    }
    if timesteps is not None:
        sigmas = [t / teacher.num_train_timesteps for t in timesteps]
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, **settings)
        return Schedule(scheduler, _levels(process, timesteps), {"sigmas": sigmas})
    shift, sigmas_given = adapter.shift(steps), adapter.default_sigmas(steps)
    # Left alone, the scheduler would spread its steps down to t = 1 / 1000.
    last = shift / (steps + shift - 1) if sigmas_given is None and steps > 1 else None
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=last, **settings)
    scheduler.set_timesteps(steps, sigmas=sigmas_given)
    return Schedule(scheduler, _levels(process, scheduler.timesteps.tolist()), {"num_inference_steps": steps})


def _levels(process: Any, timesteps: Sequence[float]) -> tuple[float, ...]:
    return tuple(process.level_at(torch.tensor(timesteps, dtype=torch.float64)).tolist())


def schedule_at(adapter: Adapter, process: Process, levels: Sequence[float]) -> Schedule:
    """The stock schedule that visits these levels: the scheduler's own, if it does, else one with explicit times."""
    stock = text_schedule(adapter, process, len(levels))
    if torch.allclose(torch.tensor(stock.levels), torch.tensor(tuple(levels)), rtol=1e-5):
        return stock
    return text_schedule(adapter, process, len(levels), times_of(process, levels))


def ddim_schedule(adapter: Adapter, process: Process, levels: Sequence[float]) -> Schedule:
    """The stock DDIM scheduler that visits these levels and ends at x0; ConfigError where it does not visit them."""
    from diffusers import DDIMScheduler

    settings = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False, "thresholding": False}
    scheduler = DDIMScheduler.from_config(adapter.scheduler.config, steps_offset=1, **settings)
    count, total = len(levels), scheduler.config.num_train_timesteps
    scheduler.set_timesteps(count)
    if isinstance(process, Flow) or total % count or scheduler.timesteps.tolist() != times_of(process, levels):
        raise ConfigError(
            f"DDIM does not visit the times of {count} decoders in equal steps; take a number that divides the "
            f"{total} training steps, and a teacher whose schedule ends with a signal"
        )
    return Schedule(scheduler, tuple(levels), {"num_inference_steps": count})


def times_of(process: Any, levels: Sequence[float]) -> list[float]:
    sigma = torch.tensor(tuple(levels))
    return process.to_network(sigma[:, None, None, None], sigma)[1].tolist()


def pipeline_levels(adapter: Adapter, process: Process, steps: int) -> tuple[float, ...]:
    """The levels that the flow's stock pipeline visits, shifted as it is at this size of image, and 0; the first is
    t = 1.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    assert isinstance(process, Flow)
    settings = dict(adapter.scheduler.config) | {"shift": adapter.shift(steps), "use_dynamic_shifting": False}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(settings)
    scheduler.set_timesteps(steps, sigmas=adapter.default_sigmas(steps))
    return (*process.level_at(scheduler.timesteps).tolist(), 0.0)
