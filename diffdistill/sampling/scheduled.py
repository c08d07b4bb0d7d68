"""Any diffusers scheduler around a `Denoiser`: DDIM, DDPM, F-PNDM, DEIS, UniPC ... for networks of every kind.

A scheduler keeps its state as x = alpha x0 + s eps. The denoiser works at x / alpha = x0 + (s / alpha) eps, so it is
called as D(x / alpha, s / alpha), and the scheduler is given the noise eps = (x - alpha D) / s.

The noise schedule is the model's own where it was trained with one (`VP`). For other networks it is the
variance-preserving schedule of 1000 steps with betas linear in t (2006.11239, section 4) whose levels span exactly the
levels the network knows: s / alpha = sigma_min at t = 0 and sigma_max at t = 999. The published betas, 1e-4 to 0.02,
would end at level 157, where a network that was trained up to 80 is not defined.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffdistill.errors import ConfigError
from diffdistill.machine import send
from diffdistill.parts.exposure_bias.coordinates import coordinates
from diffdistill.process import VP, Process
from diffdistill.sampling.noise import ImageNoise
from diffdistill.sampling.sampler import SAMPLERS

Scheduler = Any
DenoiseAt = Callable[[Tensor, "float | Tensor"], Tensor]
"""`(x (B, C, H, W), sigma or (B,)) -> x0 (B, C, H, W)`."""
Observe = Callable[[int, Tensor, Tensor, Tensor], None]
"""`(index, x, alpha, s)`: the state before each call of the network, and the last, at alpha = 1 and s = 0.

alpha and s are `(1, 1, 1, 1)`, or `(B, 1, 1, 1)` where each image has its own scheduler."""

TRAIN_STEPS = 1000


def betas_of(process: Process) -> list[float]:
    """Betas of the variance-preserving schedule that spans the levels of `process`; see the head of this file."""
    if isinstance(process, VP):
        signal = 1 / (1 + (2 * process.log_sigmas).exp())
        return (1 - signal / torch.cat([signal.new_ones(1), signal[:-1]])).tolist()
    first = process.sigma_min**2 / (1 + process.sigma_min**2)
    target = -math.log1p(process.sigma_max**2)
    ramp = torch.linspace(0, 1, TRAIN_STEPS, dtype=torch.float64)
    low, high = first, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        reached = torch.log1p(-(first + (middle - first) * ramp[:-1])).sum().item() + math.log1p(-middle)
        low, high = (low, middle) if reached < target else (middle, high)
    return (first + (low - first) * ramp).tolist()


def scheduler_class(name: str) -> str:
    """The class of diffusers that computes a sampler; ConfigError for one without steps that a correction acts on."""
    class_name = SAMPLERS.get(name).scheduler
    if class_name is None:
        raise ConfigError(f"sampler '{name}' follows no differential equation, so no correction fits it; use another")
    return class_name


def make_scheduler(name: str, process: Process) -> Scheduler:
    """The diffusers scheduler of a sampler, native ones included, on the schedule of `process`; predicts epsilon.

    ConfigError for a sampler that no scheduler computes.
    """
    import diffusers

    sampler = SAMPLERS.get(name)
    cls = getattr(diffusers, scheduler_class(name))
    betas = betas_of(process)
    accepted = inspect.signature(cls.__init__).parameters
    settings = {key: value for key, value in sampler.settings.items() if key in accepted}
    return cls(num_train_timesteps=len(betas), trained_betas=betas, prediction_type="epsilon", **settings)


def set_steps(scheduler: Scheduler, steps: int, levels: Sequence[float] | None = None) -> None:
    """`scheduler.set_timesteps(steps)`, then, where `levels` (steps + 1, the last 0) are given, those levels instead.

    Not every scheduler takes levels, but all that have `sigmas` read nothing else. A second-order scheduler keeps each
    inner level twice.
    """
    scheduler.set_timesteps(steps)
    if levels is None:
        return
    values = torch.tensor(levels, dtype=torch.float32)
    times = VP(scheduler.alphas_cumprod, "epsilon").time(values[:-1])
    if scheduler.order == 2:
        values = torch.cat([values[:1], values[1:-1].repeat_interleave(2), values[-1:]])
        times = torch.cat([times[:1], times[1:].repeat_interleave(2)])
    scheduler.sigmas, scheduler.timesteps = values, times


def levels_of(scheduler: Scheduler) -> tuple[float, ...]:
    """The levels s / alpha at which the network is called, in order, then 0."""
    places = (coordinates(scheduler, index) for index in range(len(scheduler.timesteps)))
    return (*(s / alpha for alpha, s in places), 0.0)


def solve_scheduled(
    denoise: DenoiseAt, noise: ImageNoise, schedulers: Sequence[Scheduler], observe: Observe | None = None
) -> Tensor:
    """x0 `(B, C, H, W)` from noise by a scheduler whose steps are set.

    One scheduler serves the whole batch, or each image has one of its own: a correction that looks at the state, as
    Time-Shift does, then looks at one image, and an image does not depend on its neighbours.
    """
    shared = len(schedulers) == 1
    takes_generator = "generator" in inspect.signature(schedulers[0].step).parameters
    x = noise.draw()
    x = x * _column([coordinates(scheduler, 0)[1] for scheduler in schedulers], x)
    for index in range(len(schedulers[0].timesteps)):
        places = [coordinates(scheduler, index) for scheduler in schedulers]
        alpha, s = (_column(values, x) for values in zip(*places, strict=True))
        levels = [s_i / alpha_i for alpha_i, s_i in places]
        if observe is not None:
            observe(index, x, alpha, s)
        x0 = denoise(x / alpha, levels[0] if shared else send(torch.tensor(levels), x.device))
        output = (x - alpha * x0) / s
        parts = []
        for row, scheduler in enumerate(schedulers):
            mine = slice(None) if shared else slice(row, row + 1)
            time = scheduler.timesteps[index]
            scheduler.scale_model_input(x[mine], time)  # a no-op here; some classes warn without the call
            extra = {"generator": noise.generators[mine]} if takes_generator else {}
            with _Sending() if takes_generator else nullcontext():
                parts.append(scheduler.step(output[mine], time, x[mine], **extra, return_dict=False)[0])
        x = torch.cat(parts)
    if observe is not None:
        observe(len(schedulers[0].timesteps), x, alpha * 0 + 1, s * 0)
    return x


class _Sending(TorchFunctionMode):
    """Within, diffusers' noise, which it draws on the CPU, goes to a device by a copy that nobody waits for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.to and len(args) == 2 and isinstance(args[1], torch.device):
            return send(*args)
        return func(*args, **(kwargs or {}))


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One number for all rows, or one a row, as `(1 or B, 1, 1, 1)`."""
    column = torch.tensor(values, dtype=torch.float64).to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
    return send(column, like.device)
