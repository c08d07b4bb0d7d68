"""The Time-Shift sampler: its statistic, its choices against a closed-form recursion, and what it must not touch."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from gaussian import VARIANCE, run

from diffdistill.errors import ConfigError
from diffdistill.schedulers import epsilon_scaling, level_statistic, time_shift_sampler

ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
PLAIN = {"clip_sample": False}
SHIFTABLE = [
    DDIMScheduler(**PLAIN),
    DDPMScheduler(**PLAIN),
    PNDMScheduler(),
    PNDMScheduler(skip_prk_steps=True),
    EulerDiscreteScheduler(),
    EulerAncestralDiscreteScheduler(),
    HeunDiscreteScheduler(),
    DPMSolverMultistepScheduler(),
    UniPCMultistepScheduler(),
    DEISMultistepScheduler(),
    EDMEulerScheduler(),
    FlowMatchEulerDiscreteScheduler(),
]
NAMES = [type(scheduler).__name__ for scheduler in SHIFTABLE]


def unit_noise(batch: int = 1) -> torch.Tensor:
    """Noise whose variance is exactly 1 and stays exact under a linear sampler: the population, without sampling."""
    noise = torch.randn(batch, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = noise - noise.mean()
    return noise / noise.var(correction=1).sqrt()


def drift(scheduler: Any, steps: int, gamma: float = 1.0) -> float:
    return abs(math.log(float(run(scheduler, unit_noise(), steps, gamma=gamma).var()) / VARIANCE))


# ---- the statistic


def test_variance_is_around_the_mean_of_each_image() -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    brightness = torch.arange(4.0).reshape(4, 1, 1, 1)
    assert level_statistic(x + brightness) == pytest.approx(level_statistic(x), rel=1e-5)
    assert level_statistic(x) == pytest.approx(float(x[0].var() + x[1].var() + x[2].var() + x[3].var()) / 4, rel=1e-6)
    assert level_statistic(x.bfloat16()) == pytest.approx(level_statistic(x), rel=1e-2)


@pytest.mark.parametrize("size", [(64, 64), (63, 65)])
def test_haar_sees_the_noise_and_not_the_picture(size: tuple[int, int]) -> None:
    height, width = size
    smooth = torch.sin(torch.linspace(0, 6, height))[:, None] * torch.cos(torch.linspace(0, 5, width))
    picture = smooth.expand(8, 3, height, width)
    noise = torch.randn(8, 3, *size, generator=torch.Generator().manual_seed(0))
    assert level_statistic(picture, "haar") < 1e-4 < 0.1 < level_statistic(picture)
    for s in (0.2, 1.5):
        assert level_statistic(picture + s * noise, "haar") == pytest.approx(s**2, rel=0.05)
    with pytest.raises(ConfigError, match="haar statistic needs images"):
        level_statistic(torch.zeros(2, 16, 64), "haar")


# ---- its choices


def shifted_ddim(steps: int, window: int, cutoff: int, statistic: str) -> tuple[float, list[int]]:
    """2305.15583, Algorithm 2, on a variance: the label moves, the destination does not."""
    stride = 1000 // steps
    variance, label, labels = 1.0, (steps - 1) * stride, []
    for i in range(steps):
        nominal = (steps - 1 - i) * stride
        bar = ALPHA_BAR[label]
        bar_next = ALPHA_BAR[nominal - stride] if nominal >= stride else 1.0
        alpha, s = math.sqrt(bar), math.sqrt(1 - bar)
        eps = (1 - alpha * alpha * VARIANCE / (alpha**2 * VARIANCE + s**2)) / s
        a = math.sqrt(bar_next) / alpha
        variance = (a - (a * s - math.sqrt(1 - bar_next)) * eps) ** 2 * variance
        previous, label = label, nominal - stride
        if i < steps - 1 and label >= cutoff:
            low, high = max(label - window // 2, label - stride + 1), min(label + window // 2, previous - 1)
            low = max(low, 0)
            share = VARIANCE if statistic == "corrected" else 0.0
            expected = ALPHA_BAR[low : high + 1] * share + 1 - ALPHA_BAR[low : high + 1]
            label = low + int(np.abs(expected - variance).argmin())
        labels.append(label)
    return variance / VARIANCE, labels[:-1]


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("statistic", ["corrected", "paper"])
def test_ddim_moves_as_the_recursion_does(steps: int, statistic: str) -> None:
    scheduler = time_shift_sampler(DDIMScheduler(**PLAIN), window=40, cutoff=100, statistic=statistic)
    found = float(run(scheduler, unit_noise(), steps).var()) / VARIANCE
    expected, labels = shifted_ddim(steps, 40, 100, statistic)
    assert [int(t) for t in scheduler.timesteps[1:]] == labels
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("gamma", [1.0, 0.98])
@pytest.mark.parametrize(
    "plain",
    [DDIMScheduler(**PLAIN), EulerDiscreteScheduler(), EDMEulerScheduler()],
    ids=["ddim", "euler", "edm_euler"],
)
def test_the_corrected_target_helps_and_the_papers_does_not(plain: Any, gamma: float, steps: int) -> None:
    before = drift(plain, steps, gamma)
    assert drift(time_shift_sampler(plain, window=40, cutoff=100), steps, gamma) < before
    assert drift(time_shift_sampler(plain, window=40, cutoff=100, statistic="paper"), steps, gamma) > before


@pytest.mark.parametrize("plain", [DDPMScheduler(**PLAIN), EulerAncestralDiscreteScheduler()], ids=["ddpm", "euler_a"])
def test_ancestral_samplers_gain_too(plain: Any) -> None:
    def found(scheduler: Any) -> float:
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(16, 3, 32, 32, generator=generator)
        return abs(math.log(float(run(scheduler, noise, 20, generator=generator).var()) / VARIANCE))

    assert found(time_shift_sampler(plain, window=40, cutoff=100)) < 0.7 * found(plain)


def test_states_below_the_cutoff_stay_and_most_choices_are_inside_the_window() -> None:
    scheduler = time_shift_sampler(DDIMScheduler(**PLAIN), window=40, cutoff=300)
    run(scheduler, unit_noise(), 20)
    assert [shift.nominal for shift in scheduler.time_shifts] == list(range(900, 299, -50))
    assert [int(t) for t in scheduler.timesteps[-6:]] == [250, 200, 150, 100, 50, 0]
    assert any(shift.time != shift.nominal for shift in scheduler.time_shifts)
    # Noise of variance 1 is a little more than the schedule's noisiest states have, which clips the first choices.
    assert not any(shift.clipped for shift in scheduler.time_shifts if shift.nominal < 800)
    paper = time_shift_sampler(DDIMScheduler(**PLAIN), window=20, cutoff=300, statistic="paper")
    run(paper, unit_noise(), 20)
    assert sum(shift.clipped for shift in paper.time_shifts) > len(paper.time_shifts) / 2


@pytest.mark.parametrize("plain", SHIFTABLE, ids=NAMES)
def test_labels_fall_strictly_and_the_network_sees_them(plain: Any) -> None:
    """A window wider than the stride, and a statistic that pulls hard."""
    scheduler = time_shift_sampler(plain, window=120, cutoff=50, statistic="paper")
    seen: list[float] = []
    step = scheduler.step

    def record(out: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> Any:
        seen.append(float(t))
        return step(out, t, x)

    scheduler.step = record
    run(scheduler, unit_noise().float(), 20)
    assert any(shift.time != shift.nominal for shift in scheduler.time_shifts)
    plain.set_timesteps(20)
    assert scheduler.timesteps.tolist() != plain.timesteps.tolist()
    # Second stages saw the level before it was moved.
    assert seen[:: scheduler.order] == scheduler.timesteps[:: scheduler.order].tolist()
    assert seen[0] == float(plain.timesteps[0])
    if hasattr(scheduler, "sigmas"):
        levels = scheduler.sigmas[:-1]
        levels = levels if scheduler.order == 1 else torch.cat([levels[:1], levels[1::2]])
        assert (levels.diff() < 0).all()
    elif not isinstance(scheduler, PNDMScheduler):
        assert (scheduler.timesteps.diff() < 0).all()
    scheduler.set_timesteps(20)
    assert torch.equal(scheduler.timesteps, plain.timesteps), "a new run starts from the schedule"
    assert scheduler.time_shifts == []


@pytest.mark.parametrize("steps", [7, 20])
def test_heun_moves_both_entries_of_a_level(steps: int) -> None:
    scheduler = time_shift_sampler(HeunDiscreteScheduler(), window=80, cutoff=50)
    run(scheduler, unit_noise(), steps)
    assert any(shift.time != shift.nominal for shift in scheduler.time_shifts)
    assert all(shift.evaluation % 2 == 0 for shift in scheduler.time_shifts)
    for entries in (scheduler.sigmas[1:-1], scheduler.timesteps[1:]):
        assert torch.equal(entries[0::2], entries[1::2])


def test_pndm_starts_after_its_warm_up() -> None:
    for plain, first in ((PNDMScheduler(), 13), (PNDMScheduler(skip_prk_steps=True), 3)):
        scheduler = time_shift_sampler(plain, window=20, cutoff=0)
        run(scheduler, unit_noise(), 20)
        assert scheduler.time_shifts[0].evaluation == first


def test_unipc_does_not_correct_a_state_that_was_moved() -> None:
    scheduler = time_shift_sampler(UniPCMultistepScheduler(), window=80, cutoff=0)
    scheduler.set_timesteps(20)
    shift = scheduler._time_shift
    assert shift.after_step(scheduler, 5, unit_noise() * 0.5)
    assert scheduler.last_sample is None


@pytest.mark.parametrize("plain", [DDIMScheduler(**PLAIN), DDPMScheduler(**PLAIN), EulerDiscreteScheduler()])
def test_a_loop_over_a_copy_is_told_so(plain: Any) -> None:
    scheduler = time_shift_sampler(plain, window=80, cutoff=0, statistic="paper")
    scheduler.set_timesteps(20)
    x = unit_noise() * float(scheduler.init_noise_sigma)
    stale = [t.clone() for t in scheduler.timesteps]

    def loop(x: torch.Tensor) -> None:
        for t in stale:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(x * 0.9, t, x).prev_sample

    with pytest.raises(ConfigError, match=r"iterate over scheduler\.timesteps itself"):
        loop(x)


def test_both_corrections_at_once_in_either_order() -> None:
    plain = DDIMScheduler(**PLAIN)
    both = epsilon_scaling(time_shift_sampler(plain, window=40, cutoff=100), b=1.005)
    other = time_shift_sampler(epsilon_scaling(plain, b=1.005), window=40, cutoff=100)
    assert torch.equal(run(both, unit_noise(), 20), run(other, unit_noise(), 20))
    assert both.timesteps.tolist() == other.timesteps.tolist()


def test_time_shift_feeds_back_and_takes_the_lever_from_epsilon_scaling() -> None:
    """A state that lambda made noisier is labelled noisier: b from 1 to 1.01 halves the drift alone, and moves it by a
    hundredth beside a Time-Shift sampler. So b must be fitted with the sampler on, or one of them left out.
    """
    plain = DDIMScheduler(**PLAIN)
    shifted = time_shift_sampler(plain, window=40, cutoff=100)
    assert drift(epsilon_scaling(plain, b=1.01), 20) < 0.6 * drift(plain, 20)
    assert drift(epsilon_scaling(shifted, b=1.01), 20) == pytest.approx(drift(shifted, 20), rel=0.01)


@pytest.mark.parametrize("steps", [10, 20])
def test_heun_overshoots_less(steps: int) -> None:
    plain = HeunDiscreteScheduler()
    assert drift(time_shift_sampler(plain, window=40, cutoff=100), steps) < 0.65 * drift(plain, steps)


def test_ddpm_with_time_steps_of_ones_own() -> None:
    scheduler = time_shift_sampler(DDPMScheduler(**PLAIN), window=40, cutoff=100, statistic="paper")
    scheduler.set_timesteps(timesteps=[900, 700, 500, 300, 100])
    x = unit_noise().float()
    for t in scheduler.timesteps:
        x = scheduler.step(x * 0.9, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
    assert torch.isfinite(x).all()
    assert [shift.nominal for shift in scheduler.time_shifts] == [700, 500, 300, 100]


@pytest.mark.gpu
@pytest.mark.parametrize("plain", [DDIMScheduler(**PLAIN), EulerDiscreteScheduler(), UniPCMultistepScheduler()])
def test_on_a_gpu_it_moves_the_same_states(plain: Any) -> None:
    scheduler = epsilon_scaling(time_shift_sampler(plain, window=40, cutoff=100), b=1.005)
    expected = run(scheduler, unit_noise().float(), 20)
    moved = list(scheduler.time_shifts)
    found = run(scheduler, unit_noise().float().cuda(), 20)
    assert scheduler.time_shifts == moved
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
