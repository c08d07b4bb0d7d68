"""Time-Shift under F-PNDM against a recursion written from 2202.09778 and 2305.15583, on Gaussian data.

The exact denoiser is linear, so a state is a multiple of unit noise and the whole run is arithmetic on one number.
"""

import math

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from gaussian import VARIANCE, run

from diffdistill.schedulers import time_shift_sampler

ABAR = np.append(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000)), 1.0)  # 1 at t = -1
SETTINGS = {"timestep_spacing": "trailing", "set_alpha_to_one": True}


def unit_noise() -> torch.Tensor:
    noise = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = noise - noise.mean()
    return noise / noise.std()


def noise_of(x: float, t: int) -> float:
    """E[eps | x] = s x / (alpha^2 v + s^2)."""
    return math.sqrt(1 - ABAR[t]) * x / (ABAR[t] * VARIANCE + 1 - ABAR[t])


def transfer(x: float, t: int, end: int, e: float) -> float:
    """2202.09778, eq. 11: alpha' x0 + s' e with x0 = (x - s e) / alpha."""
    x0 = (x - math.sqrt(1 - ABAR[t]) * e) / math.sqrt(ABAR[t])
    return math.sqrt(ABAR[end]) * x0 + math.sqrt(1 - ABAR[end]) * e


def nearest(x: float, nominal: int, low: int, high: int, window: int, statistic: str) -> int:
    times = np.arange(max(nominal - window // 2, low), min(nominal + window // 2, high) + 1)
    signal = VARIANCE if statistic == "corrected" else 0.0
    return int(times[np.abs(ABAR[times] * signal + 1 - ABAR[times] - x * x).argmin()])


def fpndm(steps: int, window: int, cutoff: int, statistic: str) -> tuple[float, list[int]]:
    """The last state over unit noise, and the time of every multistep evaluation."""
    stride = 1000 // steps
    grid = [*range(999, -1, -stride), -1]
    x, label, labels, history = 1.0, 999, [], []
    for i in range(steps):
        end = grid[i + 1]
        if i < 3:
            middle = end + stride // 2
            e1 = noise_of(x, label)
            e2 = noise_of(transfer(x, label, middle, e1), middle)
            e3 = noise_of(transfer(x, label, middle, e2), middle)
            e4 = noise_of(transfer(x, label, end, e3), end)
            history.append(e1)
            e = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        else:
            labels.append(label)
            history.append(noise_of(x, label))
            e = float(np.dot([55, -59, 37, -9], history[:-5:-1])) / 24
        x = transfer(x, label, end, e)
        before, label = label, end
        if 3 < i + 1 < steps and end >= cutoff and window:
            label = nearest(x, end, grid[i + 2] + 1, before - 1, window, statistic)
    return x, labels


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize(("window", "statistic"), [(0, "corrected"), (16, "corrected"), (16, "paper"), (60, "paper")])
def test_fpndm_moves_as_the_recursion_does(steps: int, window: int, statistic: str) -> None:
    scheduler = time_shift_sampler(PNDMScheduler(**SETTINGS), window=window, cutoff=100, statistic=statistic)
    found = run(scheduler, unit_noise(), steps)
    expected, labels = fpndm(steps, window, 100, statistic)
    assert [int(t) for t in scheduler.timesteps[12:]] == labels
    if window:
        assert labels != list(range(999 - 3 * (1000 // steps), -1, -(1000 // steps))), "something was moved"
    torch.testing.assert_close(found, expected * unit_noise(), rtol=1e-3, atol=1e-3)
