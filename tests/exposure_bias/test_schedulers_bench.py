"""What the corrections cost: the time they add to a step of the bundled model, over the time of that step."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler

from diffdistill import Denoiser
from diffdistill.schedulers import epsilon_scaling, time_shift_sampler

STEPS, ROUNDS = 20, 15


def solver_seconds(scheduler: Any, out: torch.Tensor) -> float:
    """Least seconds of one `scale_model_input` and `step` in a whole run."""
    runs = []
    for _ in range(ROUNDS):
        scheduler.set_timesteps(STEPS)
        x = torch.randn(out.shape) * float(scheduler.init_noise_sigma)
        start = time.perf_counter()
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(out, t, x).prev_sample
        runs.append((time.perf_counter() - start) / STEPS)
    return min(runs)


def network_seconds(network: Callable[[], Any]) -> float:
    network()
    runs = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        network()
        runs.append(time.perf_counter() - start)
    return min(runs)


@pytest.mark.bench
@pytest.mark.parametrize("batch", [1, 16, 64])
@pytest.mark.parametrize("plain", [EDMEulerScheduler(), EulerDiscreteScheduler(prediction_type="v_prediction")])
def test_corrections_cost_at_most_two_percent_of_a_step(plain: Any, batch: int) -> None:
    denoiser = Denoiser.from_pretrained("builtin:fashion_mnist_teacher").eval()
    x, sigma, labels = torch.randn(batch, 1, 28, 28), torch.full((batch,), 1.0), torch.zeros(batch, dtype=torch.long)
    with torch.no_grad():
        network = network_seconds(lambda: denoiser(x, sigma, labels))
        base = solver_seconds(plain, x)
        scaled = epsilon_scaling(plain, knots=[(-4.0, 1.01), (0.0, 1.005), (6.0, 1.0)])
        both = time_shift_sampler(scaled, window=40, cutoff=0)
        for name, scheduler in (("epsilon scaling", scaled), ("with time shift", both)):
            added = (solver_seconds(scheduler, x) - base) / (network + base)
            print(f"{type(plain).__name__} batch {batch} {name}: {added:.2%} of {1e3 * (network + base):.2f} ms")
            assert added <= 0.02
