"""Two modes: Epsilon Scaling must widen each mode, and not move weight between them.

A variance that is too small can be mended the wrong way, by mixing modes; the Gaussian tests would not see it.
"""

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor

from diffdistill.parts.exposure_bias.coordinates import position
from diffdistill.schedulers import coordinates, epsilon_scaling, time_shift_sampler

WEIGHTS, CENTRES, VARIANCE = (0.3, 0.7), (-0.5, 0.5), 0.01


def posterior_mean(x: Tensor, alpha: float, s: float) -> Tensor:
    """E[x0 | x] of the mixture, x = alpha x0 + s eps, in closed form."""
    total = alpha**2 * VARIANCE + s**2
    logits = [
        math.log(weight) - (x - alpha * centre) ** 2 / (2 * total)
        for weight, centre in zip(WEIGHTS, CENTRES, strict=True)
    ]
    share = torch.stack(logits).softmax(dim=0)
    means = [centre + alpha * VARIANCE / total * (x - alpha * centre) for centre in CENTRES]
    return share[0] * means[0] + share[1] * means[1]


def sample(scheduler: Any, steps: int) -> Tensor:
    """Quantiles of the normal distribution through a deterministic sampler: no Monte Carlo error."""
    count = 20_001
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x = (torch.special.ndtri(quantiles)).reshape(1, 1, 1, count)
    scheduler.set_timesteps(steps)
    x = x * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        alpha, s = coordinates(scheduler, position(scheduler, t))
        scheduler.scale_model_input(x, t)
        x = scheduler.step((x - alpha * posterior_mean(x, alpha, s)) / s, t, x).prev_sample
    return x.flatten()


def describe(x: Tensor) -> tuple[float, float]:
    """Weight of the first mode, and the variance within the modes."""
    first = x < 0
    within = torch.cat([x[first] - x[first].mean(), x[~first] - x[~first].mean()])
    return float(first.double().mean()), float(within.var())


EULER = EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02)
DDIM = DDIMScheduler(clip_sample=False)


@pytest.mark.parametrize(("plain", "steps"), [(DDIM, 20), (DDIM, 50), (EULER, 50)])
def test_scaling_widens_the_modes_and_keeps_their_weights(plain: Any, steps: int) -> None:
    weight, variance = describe(sample(plain, steps))
    scaled_weight, scaled_variance = describe(sample(epsilon_scaling(plain, b=1.005), steps))
    assert variance < scaled_variance < VARIANCE
    assert scaled_weight == pytest.approx(weight, abs=0.01)
    assert scaled_weight == pytest.approx(WEIGHTS[0], abs=0.01)


@pytest.mark.parametrize(("plain", "steps"), [(DDIM, 20), (DDIM, 50), (EULER, 50)])
def test_the_time_shift_sampler_does_too(plain: Any, steps: int) -> None:
    mean = sum(weight * centre for weight, centre in zip(WEIGHTS, CENTRES, strict=True))
    total = sum(weight * centre**2 for weight, centre in zip(WEIGHTS, CENTRES, strict=True)) - mean**2 + VARIANCE
    shifted = time_shift_sampler(plain, window=40, cutoff=100, data_variance=total)
    weight, variance = describe(sample(plain, steps))
    shifted_weight, shifted_variance = describe(sample(shifted, steps))
    assert variance < shifted_variance < VARIANCE
    assert shifted_weight == pytest.approx(weight, abs=0.02)
    assert shifted_weight == pytest.approx(WEIGHTS[0], abs=0.01)
