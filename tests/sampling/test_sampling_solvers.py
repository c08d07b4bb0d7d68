"""The samplers against closed forms and against the schedulers of diffusers."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from diffusers.utils.torch_utils import randn_tensor

from diffdistill.errors import ConfigError
from diffdistill.sampling.levels import angular, karras
from diffdistill.sampling.noise import ImageNoise, image_seed
from diffdistill.sampling.sampler import SAMPLERS
from diffdistill.sampling.samplers.consistency import consistency
from diffdistill.sampling.samplers.ddpm import ddpm
from diffdistill.sampling.samplers.dpm_solver import dpm_solver
from diffdistill.sampling.samplers.euler import euler
from diffdistill.sampling.samplers.heun import heun

SHAPE = (2, 3, 4, 4)
LOW, HIGH = 0.002, 80.0


class Gaussian:
    """Data N(mean, diag(variance)) with its exact denoiser and the exact flow of its ODE, float64."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.mean = torch.randn(SHAPE[1:], generator=generator, dtype=torch.float64) * 0.5
        self.variance = torch.rand(SHAPE[1:], generator=generator, dtype=torch.float64) + 0.05

    def denoise(self, x, sigma):
        return self.mean + (x - self.mean) * self.variance / (self.variance + sigma**2)

    def flow(self, x, start, end):
        ratio = (self.variance + end**2) / (self.variance + start**2)
        return self.mean + (x - self.mean) * ratio.sqrt()


def normal(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("solve", "order"), [(euler, 1), (heun, 2), (dpm_solver, 2)])
def test_ode_solvers_converge_to_the_exact_flow_at_their_order(solve, order):
    data, noise = Gaussian(), normal(*SHAPE)
    exact = data.flow(noise * HIGH, HIGH, LOW)
    errors = []
    for steps in (256, 512, 1024):
        levels = karras(steps, LOW, HIGH)[:-1]  # stop at LOW: the last step to 0 is first order by design
        errors.append((solve(data.denoise, noise * HIGH, levels) - exact).abs().max().item())
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert rates[-1] == pytest.approx(order, abs=0.1), (errors, rates)


@pytest.mark.parametrize("name", ["heun", "euler", "ddim", "dpm_solver"])
def test_down_to_zero_every_ode_solver_lands_on_the_same_sample(name):
    data, noise = Gaussian(), normal(*SHAPE)
    exact = data.flow(noise * HIGH, HIGH, 0.0)
    row = SAMPLERS.get(name)
    found = row.run(data.denoise, noise * HIGH, row.levels(2000, LOW, HIGH), None)
    assert (found - exact).abs().max() < 5e-3


def test_ancestral_sampling_keeps_the_marginal_of_each_level():
    """With the data at one point, x at level sigma is exactly N(point, sigma^2) after every step."""
    point, sigma, following = 0.3, 2.0, 0.7
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    one = torch.ones_like(zero)

    def response(first, second):
        levels = [sigma, following]
        return ddpm(lambda x, s: torch.full_like(x, point), sigma * first, levels, lambda: second).item()

    constant = response(zero, zero)
    variance = (response(one, zero) - constant) ** 2 + (response(zero, one) - constant) ** 2
    assert variance == pytest.approx(following**2, rel=1e-12)
    # The rest is linear in the first noise around the point: x = point + sigma z.
    shifted = response(torch.full_like(zero, point / sigma), zero)
    assert shifted == pytest.approx(point, rel=1e-12)


def test_ancestral_sampling_draws_the_data_distribution():
    data = Gaussian()
    noise = ImageNoise(3, range(1500), SHAPE[1:])
    found = ddpm(data.denoise, noise.draw() * HIGH, karras(200, LOW, HIGH), noise.draw)
    assert (found.mean(0) - data.mean).abs().max() < 0.08
    assert (found.var(0) / data.variance - 1).abs().max() < 0.15


@pytest.mark.parametrize("name", [name for name, row in SAMPLERS.rows().items() if row.run is not None])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_documented_number_of_evaluations_is_what_a_sampler_uses(name, steps):
    calls = []

    def denoise(x, sigma):
        assert sigma > 0
        calls.append(sigma)
        return x * 0.1

    row, noise = SAMPLERS.get(name), ImageNoise(0, [0], (1, 2, 2))
    row.run(denoise, noise.draw() * HIGH, row.levels(steps, LOW, HIGH), noise.draw)
    assert len(calls) == row.evaluations(steps)


def test_the_default_teacher_sampler_is_the_35_evaluations_of_edm():
    heun_row = SAMPLERS.get("heun")
    assert heun_row.evaluations(heun_row.steps) == 35


@pytest.mark.parametrize("levels", [karras, angular])
@pytest.mark.parametrize("steps", [1, 2, 18, 4000])
def test_levels_fall_from_the_highest_to_zero(levels, steps):
    found = levels(steps, LOW, HIGH)
    assert len(found) == steps + 1
    assert found[0] == pytest.approx(HIGH)
    assert found[-1] == 0.0
    assert all(a > b for a, b in pairwise(found))
    assert found[-2] >= LOW * (1 - 1e-9)


def test_ddim_in_its_textbook_form_is_euler_in_sigma_units():
    """2010.02502, eq. 12 with eta = 0, in the coordinates alpha x0 + s eps of the cosine process."""
    data, noise = Gaussian(), normal(*SHAPE)
    levels = angular(10, LOW, HIGH)
    times = [math.atan(sigma) for sigma in levels]
    z = noise * math.sin(times[0])
    for time, following in pairwise(times):
        x0 = data.denoise(z / math.cos(time), math.tan(time))
        eps = (z - math.cos(time) * x0) / math.sin(time)
        z = math.cos(following) * x0 + math.sin(following) * eps
    ours = SAMPLERS.get("ddim").run(data.denoise, noise * levels[0], levels, None)
    assert torch.allclose(ours, z, atol=1e-10)


class Network:
    """A fixed non-linear F inside EDM's preconditioning, as the schedulers of diffusers want it."""

    sigma_data = 0.5

    def raw(self, scaled, sigma):
        return torch.tanh(scaled * 1.7 + 0.3 * math.log(sigma)) - 0.2 * scaled.flip(-1)

    def denoise(self, x, sigma):
        total = sigma**2 + self.sigma_data**2
        raw = self.raw(x / math.sqrt(total), sigma)
        return self.sigma_data**2 / total * x + sigma * self.sigma_data / math.sqrt(total) * raw


def stock(scheduler, noise, steps, generator=None):
    """Run a scheduler of diffusers from the same initial noise."""
    network = Network()
    scheduler.set_timesteps(steps)
    x = noise * scheduler.sigmas[0]
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1].tolist(), strict=True):
        scaled = scheduler.scale_model_input(x, t)
        extra = {} if generator is None else {"generator": generator}
        x = scheduler.step(network.raw(scaled, sigma), t, x, **extra).prev_sample
    return x


@pytest.mark.parametrize("steps", [4, 10, 20])
@pytest.mark.parametrize(
    ("name", "scheduler"), [("euler", EDMEulerScheduler), ("dpm_solver", EDMDPMSolverMultistepScheduler)]
)
def test_solvers_agree_with_diffusers(name, scheduler, steps):
    noise = normal(*SHAPE, dtype=torch.float32)
    ours = SAMPLERS.get(name).run(Network().denoise, noise * HIGH, karras(steps, LOW, HIGH), None)
    theirs = stock(scheduler(sigma_min=LOW, sigma_max=HIGH), noise, steps)
    assert (ours - theirs).abs().max() < 2e-5


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_student_steps_are_those_of_the_stock_scheduler(steps):
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=2520, sigma_min=0.0, sigma_max=2.5, rho=2.0)
    indices = range(SHAPE[0])
    ours_noise = ImageNoise(5, indices, SHAPE[1:])
    generators = [torch.Generator().manual_seed(seed) for seed in ours_noise.seeds]
    theirs = stock(scheduler, randn_tensor(SHAPE, generator=generators), steps, generators)
    levels = [2.5 * ((2519 - k * (2520 // steps)) / 2519) ** 2 for k in range(steps)]
    ours = consistency(Network().denoise, ours_noise.draw() * 2.5, [*levels, 0.0], ours_noise.draw)
    assert (ours - theirs).abs().max() < 1e-5


def test_noise_of_an_image_is_what_diffusers_draws_with_its_generator():
    noise = ImageNoise(7, [3, 1, 2], (1, 5, 5))
    generators = [torch.Generator().manual_seed(image_seed(7, i)) for i in (3, 1, 2)]
    for _ in range(3):
        assert torch.equal(noise.draw(), randn_tensor((3, 1, 5, 5), generator=generators))


def test_noise_of_an_image_does_not_depend_on_its_company():
    together = ImageNoise(7, range(10), (3, 2, 2))
    alone = ImageNoise(7, [6], (3, 2, 2))
    for _ in range(2):
        assert torch.equal(together.draw()[6:7], alone.draw())


def test_seeds_do_not_overlap():
    seeds = {image_seed(seed, i) for seed in range(10) for i in range(1000)}
    assert len(seeds) == 10_000
    assert image_seed(0, 5) == 5
    assert 0 <= image_seed(123456789, 987654321) < 2**32


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_seeds_that_repeat_others_are_refused(seed):
    assert image_seed(2**32 - 1, 0) < 2**32
    with pytest.raises(ConfigError, match=rf"^the seed is {seed}, and seeds of images are 0 to 4294967295; give one"):
        image_seed(seed, 0)
