"""The stock schedulers that sample students of pixel networks in `ConsistencyModelPipeline`, and their levels.

EDM networks have `CMStochasticIterativeScheduler`. Networks with training steps, which predict epsilon, v or x0, have
`LCMScheduler`, on a schedule that ends at the student's first step: so both begin where the student does, and
`pipe()` alone is one step.
"""

from collections.abc import Sequence
from typing import Any

import torch

from diffdistill.errors import ConfigError
from diffdistill.pipelines.scheduler_config import LCM_TIME_SCALE, Schedule
from diffdistill.process import EDM, VP, Process

# The stock schedule of a student has GRID steps, even in sigma^(1/rho), from its input level to the boundary of
# its process: exactly 0, which stock diffusers accepts, for one that began as a denoiser. 2,520 is divisible by 1 to
# 10, and rho = 2 spreads few steps over the levels where images form (2.5, 0.63 for two).
GRID, STUDENT_RHO = 2520, 2.0


def pixel_schedule(process: Process, levels: Sequence[float]) -> Schedule:
    """The schedule of a student of these levels, which `near_levels` gave; without levels, of an EDM teacher.

    ConfigError where no stock pipeline can sample the network.
    """
    if isinstance(process, VP) and levels:
        return _vp_schedule(process, _times(process, levels))
    check_stock(process)
    assert isinstance(process, EDM)
    if not levels:
        return Schedule(_edm_scheduler(process, process.sigma_min, process.sigma_max, 7.0), (), {})
    low = process.boundary
    stock = tuple(levels) == stock_levels(len(levels), levels[0], low)
    call = {"num_inference_steps": len(levels)} if stock else {"timesteps": snap_levels(levels, low)[1]}
    scheduler = _edm_scheduler(process, low, levels[0], STUDENT_RHO)
    return Schedule(scheduler, tuple(levels), call)


def is_stock(process: Process) -> bool:
    """Whether `ConsistencyModelPipeline` has a scheduler for a network of this process at any levels."""
    return isinstance(process, EDM) and process.time_scale == 1000.0


def check_stock(process: Process) -> None:
    """ConfigError for a pixel network that `ConsistencyModelPipeline` cannot sample."""
    if not is_stock(process):
        raise ConfigError(
            "no stock pipeline samples students of this pixel network: only those with training steps (DDPM and its "
            "kin) and EDM networks with time input 250 ln(sigma) have one; 'diffdistill convert' makes the latter"
        )


def _edm_scheduler(process: EDM, low: float, high: float, rho: float) -> Any:
    from diffusers import CMStochasticIterativeScheduler

    return CMStochasticIterativeScheduler(
        num_train_timesteps=GRID, sigma_min=low, sigma_max=high, sigma_data=process.sigma_data, rho=rho
    )


def near_levels(process: Process, steps: int, first: float, levels: Sequence[float] | None) -> tuple[float, ...]:
    """The nearest levels that the stock scheduler visits: to `levels`, or from `first` down in its own spacing."""
    if isinstance(process, VP):
        return _vp_levels(process, _times(process, levels) if levels else _even_times(process, first, steps))
    check_stock(process)
    assert isinstance(process, EDM)
    if steps >= GRID:
        raise ConfigError(f"{steps} steps are more than the {GRID - 1} of the stock scheduler's grid; give fewer")
    if not levels:
        return stock_levels(steps, first, process.boundary)
    near = snap_levels(levels, process.boundary)[0]
    if len(set(near)) < len(near) or near[-1] <= process.boundary * (1 + 1e-9):
        raise ConfigError(
            f"the levels {list(levels)} fall on {[float(f'{level:.4g}') for level in near]} of the stock scheduler's "
            f"grid, two on one or the last on its end; give levels further apart"
        )
    return near


def stock_level(index: float, sigma_max: float, sigma_min: float = 0.0) -> float:
    """The level at a grid index of EDM's stock schedule: sigma^(1/rho) goes evenly from sigma_min's to sigma_max's."""
    low = (sigma_min / sigma_max) ** (1 / STUDENT_RHO)
    return sigma_max * (low + (1 - low) * (index / (GRID - 1))) ** STUDENT_RHO


def stock_levels(steps: int, sigma_max: float, sigma_min: float = 0.0) -> tuple[float, ...]:
    """Levels that it visits for `num_inference_steps=steps`, from sigma_max down, evenly spaced in sigma^(1/rho)."""
    return tuple(stock_level(GRID - 1 - k * (GRID // steps), sigma_max, sigma_min) for k in range(steps))


def snap_levels(levels: Sequence[float], sigma_min: float = 0.0) -> tuple[tuple[float, ...], list[int]]:
    """The nearest levels on its grid and their `timesteps=[...]`: training and stock sampling then agree exactly."""
    top = levels[0]
    low, *roots = (((level / top) ** (1 / STUDENT_RHO)) for level in (sigma_min, *levels))
    indices = [round((root - low) / (1 - low) * (GRID - 1)) for root in roots]
    # The stock scheduler reverses `timesteps` and counts its ramp from sigma_max.
    return tuple(stock_level(i, top, sigma_min) for i in indices), [GRID - 1 - i for i in reversed(indices)]


def _vp_schedule(process: VP, times: Sequence[int]) -> Schedule:
    scheduler = _lcm_scheduler(process, times[0])
    scheduler.set_timesteps(len(times))
    stock = scheduler.timesteps.tolist() == list(times)
    call: dict[str, Any] = {"num_inference_steps": len(times)} if stock else {"timesteps": list(times)}
    return Schedule(scheduler, _vp_levels(process, times), call)


def _lcm_scheduler(process: VP, last: int) -> Any:
    """The network's schedule up to the step `last`, where the student begins."""
    from diffusers import LCMScheduler

    abar = 1 / (1 + (2 * process.log_sigmas[: last + 1]).exp())
    betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
    return LCMScheduler(
        num_train_timesteps=last + 1,
        original_inference_steps=last + 1,
        trained_betas=betas.tolist(),
        prediction_type=process.kind,
        timestep_scaling=LCM_TIME_SCALE,
        clip_sample=True,  # to [-1, 1], as `sampling.samplers.consistency` does
    )


def _times(process: VP, levels: Sequence[float]) -> list[int]:
    """The nearest training steps; step 0 is left out, where LCMScheduler returns its input."""
    times = [max(1, round(t)) for t in process.time(torch.tensor(tuple(levels), dtype=torch.float64)).tolist()]
    if len(set(times)) < len(times):
        raise ConfigError(
            f"student.levels {[round(level, 4) for level in levels]} fall on training steps {times}, two on one; "
            f"give levels further apart"
        )
    return times


def _even_times(process: VP, first: float, steps: int) -> list[int]:
    (last,) = _times(process, (first,))
    if steps > last:
        raise ConfigError(
            f"student.steps is {steps}, and the network has {last} training steps below sigma_init {first:g}"
        )
    scheduler = _lcm_scheduler(process, last)
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


def _vp_levels(process: VP, times: Sequence[int]) -> tuple[float, ...]:
    return tuple(process.level_at(torch.tensor(tuple(times), dtype=torch.float64)).tolist())
