"""Schedulers of diffusers around a denoiser, against closed forms for Gaussian data."""

import json
import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.parts.exposure_bias.corrections import NONE, Corrections
from diffdistill.process import EDM, VP, Flow
from diffdistill.sampling.generate import generate, sample_batch
from diffdistill.sampling.noise import ImageNoise
from diffdistill.sampling.plan import plan_sampling
from diffdistill.sampling.sampler import SAMPLERS
from diffdistill.sampling.scheduled import (
    betas_of,
    levels_of,
    make_scheduler,
    set_steps,
    solve_scheduled,
)
from diffdistill.schedulers import epsilon_scaling
from tests.worlds.tiny import tiny_teacher, tiny_unet

V = 0.25  # variance of the data, N(0, V) in every pixel
LINEAR = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
LEADING = {"beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "leading"}
SHAPE = (3, 16, 16)
CORRECTABLE = {name: row for name, row in SAMPLERS.rows().items() if row.scheduler is not None}
OURS = [name for name, row in CORRECTABLE.items() if row.run is not None]
SCHEDULED = [name for name, row in CORRECTABLE.items() if row.run is None]


def gaussian(x, sigma):
    """The exact denoiser of N(0, V): D = V x / (V + sigma^2)."""
    return x * (V / (V + sigma**2))


def ddim_gain(steps, b=1.0):
    """DDIM is linear here: x0 = gain * noise. Recursion of section 8.1: x' = (A - c g / b) x, A = a' / a."""
    alpha_bar = torch.cumprod(1 - LINEAR, 0)
    times = [i * (1000 // steps) for i in range(steps)][::-1]
    gain = math.sqrt(1 - float(alpha_bar[times[0]]))
    for t, following in zip(times, [*times[1:], None], strict=True):
        a, s = math.sqrt(alpha_bar[t]), math.sqrt(1 - alpha_bar[t])
        after = 1.0 if following is None else float(alpha_bar[following])
        eps = (1 - a * a * V / (a * a * V + s * s)) / s / b
        gain *= math.sqrt(after) * (1 - s * eps) / a + math.sqrt(1 - after) * eps
    return gain


def run(scheduler, steps, count=4, denoise=gaussian, seed=0):
    scheduler.set_timesteps(steps)
    noise = ImageNoise(seed, range(count), SHAPE)
    return solve_scheduled(denoise, noise, [scheduler])


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("b", [1.0, 1.023])
def test_ddim_with_an_exact_denoiser_is_its_closed_form(steps, b):
    plain = DDIMScheduler(**LEADING, clip_sample=False)
    # diffusers' last step ends at abar = 1, set_alpha_to_one.
    x = run(epsilon_scaling(plain, b=b) if b != 1 else plain, steps)
    noise = ImageNoise(0, range(4), SHAPE).draw()
    torch.testing.assert_close(x, ddim_gain(steps, b) * noise, rtol=2e-4, atol=2e-5)


def test_the_published_figures_of_the_closed_form():
    """Final variance over the data's, section 8.2: DDIM loses variance, a divisor of 1.023 restores it at 20 steps."""
    found = [ddim_gain(steps) ** 2 / V for steps in (10, 20, 50, 100)]
    assert found == pytest.approx([0.5598, 0.7524, 0.8928, 0.9447], abs=2e-4)
    assert ddim_gain(20, 1.023) ** 2 / V == pytest.approx(1.0011, abs=2e-4)


def test_euler_is_ddim_and_ddpm_has_its_own_variance():
    euler = run(EulerDiscreteScheduler(**LEADING), 20)
    ddim = run(DDIMScheduler(**LEADING, clip_sample=False), 20)
    # They differ in the units of the state and in the very first one: alpha of a state that holds noise alone.
    torch.testing.assert_close(euler / euler.std(), ddim / ddim.std(), rtol=1e-3, atol=1e-4)
    ddpm = run(DDPMScheduler(**LEADING, clip_sample=False), 20, count=64)
    entries = 64 * math.prod(SHAPE)
    assert float(ddpm.var()) / V == pytest.approx(0.6130, rel=4 * math.sqrt(2 / entries))


@pytest.mark.parametrize("process", [EDM(), EDM(sigma_min=0.01, sigma_max=30.0), Flow()])
def test_the_schedule_spans_the_levels_of_the_network(process):
    betas = torch.tensor(betas_of(process), dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0)
    levels = ((1 - alpha_bar) / alpha_bar).sqrt()
    assert float(levels[0]) == pytest.approx(process.sigma_min, rel=1e-6)
    assert float(levels[-1]) == pytest.approx(process.sigma_max, rel=1e-6)
    steps = betas.diff()
    assert steps.max() / steps.min() == pytest.approx(1, rel=1e-6)  # linear in t


def test_a_network_with_a_schedule_keeps_it():
    process = VP(torch.cumprod(1 - LINEAR, 0), "epsilon")
    torch.testing.assert_close(torch.tensor(betas_of(process), dtype=torch.float64), LINEAR, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULED)
def test_every_scheduler_tends_to_the_data(name):
    few, many = (abs(float(run(make_scheduler(name, EDM()), n, 32).var().log()) - math.log(V)) for n in (20, 100))
    assert many < 0.5 * few + 0.02
    assert many < 0.15


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_sampler_of_ours_and_its_scheduler_agree(name, steps):
    model = tiny_teacher()
    plan = plan_sampling(model, sampler=name, steps=steps)
    ours, theirs = (sample_batch(model, plan, 3, range(3), 16, observe) for observe in (None, lambda *state: None))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_levels_given_to_a_scheduler_are_visited():
    scheduler = make_scheduler("heun", EDM())
    set_steps(scheduler, 3, (80.0, 3.0, 0.002, 0.0))
    assert levels_of(scheduler) == pytest.approx((80.0, 3.0, 3.0, 0.002, 0.002, 0.0))


def test_fpndm_costs_nine_more_and_its_start_has_four_calls_a_step():
    plan = plan_sampling(tiny_teacher(), sampler="fpndm", steps=10)
    assert (plan.steps, plan.evaluations) == (10, 19)
    assert plan_sampling(tiny_teacher(), sampler="vp_ddim", steps=10).evaluations == 10


CORRECTED = [
    Corrections(b=1.01),
    Corrections(window=80, cutoff=100, data_variance=0.3),
    Corrections(b=1.01, window=80, cutoff=100, data_variance=0.3),
]


@pytest.mark.parametrize("name", list(CORRECTABLE))
@pytest.mark.parametrize("wanted", CORRECTED, ids=["scaled", "shifted", "both"])
def test_a_corrected_image_does_not_depend_on_its_neighbours(name, wanted):
    model = tiny_teacher()
    plan = replace(plan_sampling(model, sampler=name, steps=5), corrections=wanted)
    plain = plan_sampling(model, sampler=name, steps=5)
    many = sample_batch(model, plan, 1, range(20), 64)
    few = sample_batch(model, plan, 1, range(17, 20), 16)
    assert torch.equal(many[17:], few)
    before = sample_batch(model, plain, 1, range(17, 20), 16)
    assert not torch.allclose(few, before, atol=1e-5)


def test_a_correction_by_one_is_none():
    model = tiny_teacher()
    plain = plan_sampling(model, sampler="heun", steps=3)
    assert plan_sampling(model, sampler="heun", steps=3, epsilon_scaling="1") == plain
    assert plan_sampling(model, sampler="heun", steps=3, epsilon_scaling="0,1", time_shift_sampler="0,0") == plain


def test_a_slope_divides_most_where_there_is_most_noise():
    """`K,B`: lambda = K i + B, i = 0 at the clean end: the first of 3 steps is divided by 1 + 2 K."""
    model = tiny_teacher()
    plan = plan_sampling(model, sampler="vp_ddim", steps=3, epsilon_scaling="0.01,1.002")
    assert (plan.corrections.k, plan.corrections.b) == (0.01, 1.002)
    scheduler, plain = plan.scheduler(model), plan_sampling(model, sampler="vp_ddim", steps=3).scheduler(model)
    x, eps = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)
    for index, lam in enumerate((1.022, 1.012, 1.002)):
        t = plain.timesteps[index]
        torch.testing.assert_close(scheduler.step(eps, t, x).prev_sample, plain.step(eps / lam, t, x).prev_sample)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sampler": "fpndm", "steps": 3}, "steps is 3; sampler 'fpndm' takes 4 to 1000"),
        ({"sampler": "deis", "steps": 1001}, "takes 1 to 1000"),
        ({"sampler": "consistency", "epsilon_scaling": "1.01"}, "no correction fits it"),
        ({"epsilon_scaling": "0"}, "lambda must be above 0"),
        ({"epsilon_scaling": "-0.1,1.1", "steps": 20}, "divides the first of 20 steps by -0.8"),
        ({"time_shift_sampler": "5000,100"}, "does not fit the schedule"),
        ({"epsilon_scaling": "1.01", "calibration": "x.json"}, "--calibration goes with 'auto'"),
        ({"epsilon_scaling": "auto"}, "not loaded from a folder"),
    ],
)
def test_what_cannot_be_is_one_sentence(settings, sentence):
    with pytest.raises(ConfigError, match=sentence) as refused:
        plan_sampling(tiny_teacher(), **settings)
    assert "\n" not in str(refused.value)


def test_a_student_has_no_steps_to_correct():
    student = Denoiser(tiny_unet(3), EDM(), metadata={"role": "student", "levels": [2.5]})
    with pytest.raises(ConfigError, match="a student makes its images in its own few calls"):
        plan_sampling(student, epsilon_scaling="1.01")


def test_generate_takes_the_words_of_the_command_line():
    model = tiny_teacher()
    wanted = {"num_images": 2, "sampler": "euler", "steps": 4}
    one, _ = next(generate(model, **wanted, epsilon_scaling="1.02"))
    plan = replace(plan_sampling(model, sampler="euler", steps=4), corrections=Corrections(b=1.02))
    two = sample_batch(model, plan, 0, range(2), 64)
    assert torch.equal(one, ((two + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))


def test_corrections_are_plain_data():
    assert json.loads(json.dumps(Corrections(b=1.01, source="given").record()))["b"] == 1.01
    assert NONE.record() is None
