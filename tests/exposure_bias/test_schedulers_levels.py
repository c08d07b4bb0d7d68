"""Corrections in the units of each family, against states whose level is known and against diffusers' own steps."""

import math
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from gaussian import VARIANCE

from diffdistill.parts.exposure_bias.corrections import read_corrections
from diffdistill.process import EDM
from diffdistill.schedulers import epsilon_scaling, level_statistic, time_shift_sampler


def clean_and_noise(variance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """An image of this variance and noise of variance 1, exactly, and without correlation."""
    x0, eps = torch.randn(2, 3 * 32 * 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 = (x0 - x0.mean()) / x0.std()
    eps = eps - eps.mean()
    eps = eps - (eps @ x0) / (x0 @ x0) * x0
    return (x0 * math.sqrt(variance)).reshape(1, 3, 32, 32), (eps / eps.std()).reshape(1, 3, 32, 32)


def levels_of(scheduler: Any, time: float) -> tuple[float, float]:
    """alpha and s of a time step, as the papers have them."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return 1 - time / 1000, time / 1000
    if isinstance(scheduler, EDMEulerScheduler):  # a thousand equal parts of ln sigma, from 0.002 to 80
        return 1.0, 0.002 * (80 / 0.002) ** (time / 1000)
    bar = float(scheduler.alphas_cumprod[int(time)])
    if isinstance(scheduler, EulerDiscreteScheduler):
        return 1.0, math.sqrt((1 - bar) / bar)
    return math.sqrt(bar), math.sqrt(1 - bar)


@pytest.mark.parametrize("variance", [0.25, 0.04])
@pytest.mark.parametrize(
    "plain",
    [
        DDIMScheduler(),
        EulerDiscreteScheduler(),
        DPMSolverMultistepScheduler(),
        EDMEulerScheduler(sigma_data=0.5),
        FlowMatchEulerDiscreteScheduler(),
    ],
    ids=["table", "ve", "vp", "edm", "flow"],
)
def test_a_state_of_a_known_level_is_given_its_label(plain: Any, variance: float) -> None:
    scheduler = time_shift_sampler(plain, window=40, cutoff=0, data_variance=variance)
    x0, eps = clean_and_noise(variance)
    for index in (4, 7):
        for offset in (-11, 9):
            scheduler.set_timesteps(10)
            probe = scheduler._time_shift
            nominal = probe._time(scheduler, index)
            true = round(nominal) + offset
            alpha, s = levels_of(plain, true)
            assert probe.after_step(scheduler, index, alpha * x0 + s * eps)
            assert scheduler.time_shifts[-1].time == pytest.approx(true, abs=0.51)  # candidates lie a step apart


@pytest.mark.parametrize("steps", [10, 20])
def test_the_papers_target_is_the_same_in_either_units(steps: int) -> None:
    """A VE state is a VP state over sqrt(abar): its share of noise, 1 - abar, is too (2305.15583, Algorithm 2)."""
    plain = EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="leading")
    scheduler = time_shift_sampler(plain, window=40, cutoff=0, statistic="paper")
    _, eps = clean_and_noise(VARIANCE)
    bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for index in range(2, steps - 1):
        scheduler.set_timesteps(steps)
        nominal = round(float(scheduler.timesteps[index]))
        wanted = nominal + 7
        vp = math.sqrt(1 - bars[wanted]) * eps  # a state that shows as much noise as that time step has
        scheduler._time_shift.after_step(scheduler, index, vp / math.sqrt(bars[nominal]))
        assert round(scheduler.time_shifts[-1].time) == wanted


def test_a_moved_state_is_what_unipc_is_without_its_corrector_there() -> None:
    """diffusers leaves the corrector out after the steps of `disable_corrector`; everything else is stock."""
    out = {i: (0.7 - 0.03 * i, 0.05 * (-1) ** i) for i in range(20)}  # eps = a x + b, something that bends
    _, start = clean_and_noise(VARIANCE)

    def loop(scheduler: Any, after: Any) -> torch.Tensor:
        x = start.clone()
        for i in range(20):
            a, b = out[i]
            x = scheduler.step(a * x + b, scheduler.timesteps[i], x).prev_sample
            after(i)
        return x

    ours = time_shift_sampler(UniPCMultistepScheduler(), window=60, cutoff=200)
    ours.set_timesteps(20)
    found = loop(ours, lambda i: None)
    moved = {shift.evaluation for shift in ours.time_shifts if shift.time != shift.nominal}
    assert 3 < len(moved) < 19

    def reference(disabled: list[int]) -> torch.Tensor:
        stock = UniPCMultistepScheduler(disable_corrector=disabled)
        stock.set_timesteps(20)

        def move(i: int) -> None:
            if i + 1 in moved:
                stock.sigmas[i + 1], stock.timesteps[i + 1] = ours.sigmas[i + 1], ours.timesteps[i + 1]

        return loop(stock, move)

    torch.testing.assert_close(found, reference([i - 1 for i in moved]), rtol=1e-9, atol=1e-9)
    assert (found - reference([])).abs().max() > 1e-3


def test_continuous_labels_are_a_quarter_of_ln_sigma_after_a_move_too() -> None:
    settings = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
    plain = EulerDiscreteScheduler(**settings, sigma_min=0.02, sigma_max=80.0)
    scheduler = time_shift_sampler(plain, window=80, cutoff=0)
    for one in (plain, scheduler):
        one.set_timesteps(10)
    x0, eps = clean_and_noise(VARIANCE)
    index = 6
    assert scheduler._time_shift.after_step(scheduler, index, x0 + 1.1 * float(plain.sigmas[index]) * eps)
    assert scheduler.sigmas[index] > plain.sigmas[index]
    for one in (plain, scheduler):
        torch.testing.assert_close(one.timesteps, 0.25 * one.sigmas[:-1].log(), rtol=1e-5, atol=1e-6)


def test_both_stages_of_a_heun_step_have_the_factor_of_the_step() -> None:
    """2308.15321, b + k i: i counts solver steps from the clean end, not calls of the network. Else stock Heun."""
    b, k, steps = 1.01, 0.004, 8
    ours, stock = epsilon_scaling(HeunDiscreteScheduler(), b=b, k=k), HeunDiscreteScheduler()
    for one in (ours, stock):
        one.set_timesteps(steps)
    _, eps = clean_and_noise(VARIANCE)
    x = y = eps * float(stock.init_noise_sigma)
    for call, t in enumerate(stock.timesteps):
        lam = b + k * (steps - 1 - call // 2)  # every step but the last is two calls
        x = ours.step(0.3 * x + 0.1, t, x).prev_sample
        y = stock.step((0.3 * y + 0.1) / lam, t, y).prev_sample
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sigma_data", [0.3, 0.5])
def test_the_data_variance_of_an_edm_network_is_that_of_its_data(sigma_data: float) -> None:
    """sigma_data is the deviation of the data (2206.00364); what Time-Shift compares with is `level_statistic`."""
    corrections = read_corrections(None, EDM(sigma_data), "heun", 10, None, "40,300", None)
    x0, _ = clean_and_noise(sigma_data**2)
    assert corrections.data_variance == pytest.approx(level_statistic(x0), rel=1e-5)
