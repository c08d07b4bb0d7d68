"""A network that is right about Gaussian data: x0 ~ N(0, v), so D(x) = alpha v / (alpha^2 v + s^2) x, times gamma.

Everything a deterministic solver does with it is linear in x: the gain of a run on x = 1 is its exact result.
"""

from typing import Any

import torch
from torch import Tensor

from diffdistill.parts.exposure_bias.coordinates import family, position
from diffdistill.schedulers import coordinates

VARIANCE = 0.25


def output_for(scheduler: Any, denoised: Tensor, x: Tensor, alpha: float, s: float) -> Tensor:
    """What a network of the scheduler's prediction type says when it means `denoised`."""
    kind = scheduler.config.get("prediction_type", "flow")
    if family(scheduler) == "edm":
        data = scheduler.config.sigma_data
        total = s**2 + data**2
        out = (denoised - data**2 / total * x) / (s * data / total**0.5)
        return out if kind == "epsilon" else -out
    if kind == "sample":
        return denoised
    epsilon = (x - alpha * denoised) / s
    if kind == "epsilon":
        return epsilon
    if kind == "v_prediction":
        return (alpha * epsilon - s * denoised) / (alpha**2 + s**2) ** 0.5
    return (x - denoised) / s  # flow: eps - x0 with alpha + s = 1


def denoise(x: Tensor, alpha: float, s: float, variance: float = VARIANCE, gamma: float = 1.0) -> Tensor:
    return gamma * alpha * variance / (alpha**2 * variance + s**2) * x


def run(
    scheduler: Any, x: Tensor, steps: int, *, variance: float = VARIANCE, gamma: float = 1.0, **options: Any
) -> Tensor:
    """The whole loop of a pipeline from unit noise `x`; `options` go to `step`."""
    scheduler.set_timesteps(steps, device=x.device)
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for t in scheduler.timesteps:
        alpha, s = coordinates(scheduler, position(scheduler, t))
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        out = output_for(scheduler, denoise(x, alpha, s, variance, gamma), x, alpha, s)
        x = scheduler.step(out, t, x, **options).prev_sample
    return x


def final_variance(scheduler: Any, steps: int, *, variance: float = VARIANCE, gamma: float = 1.0) -> float:
    """Variance after a deterministic run, over the data's: 1 is right. The population's value, no sampling."""
    gain = run(scheduler, torch.ones(1, 1, 1, 1, dtype=torch.float64), steps, variance=variance, gamma=gamma)
    return float(gain) ** 2 / variance
