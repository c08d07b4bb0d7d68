"""Levels, first inputs and critic losses of diffusion and flow networks: closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from diffdistill.errors import ConfigError
from diffdistill.losses import denoising_loss, native_weight, score_gap_gradient
from diffdistill.pipelines.scheduler_config import LCM_TIME_SCALE
from diffdistill.process import EDM, PURE_NOISE, VP, Flow, Level, LevelLaw, per_sample

TABLE = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
KINDS = ("epsilon", "v_prediction", "sample")


def networks():
    return [EDM(), Flow(), *(VP(TABLE, kind) for kind in KINDS)]


def test_a_level_and_its_training_step_are_inverse_to_the_last_bit():
    process = VP(TABLE, "epsilon")
    steps = torch.arange(1000)
    assert torch.equal(process.time(process.level_at(steps)), steps.float())
    between = torch.tensor([0.25, 3.5, 998.75])
    torch.testing.assert_close(process.time(process.level_at(between)), between, rtol=0, atol=2e-3)
    sigma = ((1 - TABLE.double()) / TABLE.double()).sqrt().float()
    torch.testing.assert_close(process.level_at(steps), sigma, rtol=1e-6, atol=0)


def test_pure_noise_of_a_flow_is_time_one_to_the_last_bit():
    process, z, u = Flow(), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    sigma = process.level_at(torch.full((2,), 1000.0))
    assert sigma.tolist() == [PURE_NOISE] * 2
    x = z * process.start_scale(PURE_NOISE)
    seen, time = process.to_network(x, sigma)
    assert time.tolist() == [1000.0] * 2
    assert torch.equal(seen, z)
    torch.testing.assert_close(process.to_x0(u, x, sigma), z - u, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", networks()[1:], ids=lambda p: f"{type(p).__name__}-{getattr(p, 'kind', '')}")
@pytest.mark.parametrize("sigma", [0.5, 3.0, 14.0])
def test_a_student_begins_with_unit_noise_at_every_level(process, sigma):
    z = torch.randn(2, 4, 8, 8)
    seen, _ = process.to_network(z * process.start_scale(sigma), torch.full((2,), sigma))
    torch.testing.assert_close(seen, z)


@pytest.mark.parametrize("process", networks(), ids=lambda p: f"{type(p).__name__}-{getattr(p, 'kind', '')}")
def test_the_critics_loss_is_the_squared_error_of_its_own_output(process):
    """Of EDM's network: the error of F, for its weight is 1 / c_out^2."""
    x0, eps, output = torch.randn(3, 5, 4, 8, 8).double()
    sigma = torch.tensor([0.1, 0.5, 1.0, 3.0, 12.0], dtype=torch.float64)
    x_t = x0 + per_sample(sigma, x0) * eps
    target = process.from_x0(x0, x_t, sigma)
    loss = denoising_loss(process.to_x0(output, x_t, sigma), x0, sigma, weight=native_weight(process, sigma))
    torch.testing.assert_close(loss, (output - target).square().flatten(1).mean(1), rtol=1e-9, atol=1e-9)


def test_the_law_timestep_is_uniform_in_the_networks_steps():
    process = VP(TABLE, "epsilon")
    law = LevelLaw(Level(law="timestep", u_min=0.02, u_max=0.98), process.sigma_min, process.sigma_max, process)
    u, sigma = law.draw(2000)
    time = process.time(sigma)
    torch.testing.assert_close(time, 999 * (0.02 + 0.96 * u), rtol=0, atol=5e-3)
    for other in (EDM(), Flow(), None):
        with pytest.raises(ConfigError, match="use 'shifted' for a flow"):
            LevelLaw(Level(law="timestep"), process=other)


def test_the_stock_scheduler_of_few_steps_adds_nothing_to_x0():
    """LCM's boundary factors at our scale of time: 0 and 1 in float32, so its x0 is the network's."""
    scheduler = LCMScheduler(timestep_scaling=LCM_TIME_SCALE)
    for t in (1, 20, 399, 999):
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(torch.tensor(t))
        assert float(out) == 1.0
        assert float(skip) < 1e-17


@pytest.mark.parametrize("process", [VP(TABLE, "epsilon"), Flow()], ids=["epsilon", "flow"])
@pytest.mark.parametrize("sigma", [0.2, 2.0, 14.0])
def test_dmds_gradient_is_free_of_the_level_in_the_networks_own_output(process, sigma):
    """(D_F - D_T) / mean |x0 - D_T| = (e_T - e_F) / mean |e - e_T|, for epsilon and for a flow's eps - x0."""
    x0, eps, of_teacher, of_critic = torch.randn(4, 3, 4, 8, 8)
    level = torch.full((3,), sigma)
    x_t = x0 + sigma * eps
    teacher, critic = (process.to_x0(output, x_t, level) for output in (of_teacher, of_critic))
    target = process.from_x0(x0, x_t, level)
    expected = (of_teacher - of_critic) / (target - of_teacher).abs().mean(dim=(1, 2, 3), keepdim=True)
    found = score_gap_gradient(x0, teacher, critic, level_weight="dmd")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
