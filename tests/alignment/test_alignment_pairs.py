"""Denoising losses of pairs: noise and time shared, and the three spaces of the error."""

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from diffdistill.alignment import noise_pairs, paired_denoising_losses
from diffdistill.errors import ConfigError
from diffdistill.process import per_sample, x0_from_prediction

SCHEDULERS = {
    "epsilon": DDPMScheduler(),
    "v_prediction": DDPMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear"),
    "sample": DDPMScheduler(prediction_type="sample"),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@pytest.fixture
def latents():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 2, 4, 4, generator=generator), torch.randn(3, 2, 4, 4, generator=generator)


def seeded():
    return torch.Generator().manual_seed(2)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_noise_and_time_are_shared_within_a_pair_and_differ_between_pairs(kind, latents):
    pairs = noise_pairs(SCHEDULERS[kind], *latents, generator=seeded())
    for value in (pairs.eps, pairs.t, pairs.alpha, pairs.sigma):
        first, second = value.chunk(2)
        assert torch.equal(first, second)
        assert len(first.unique(dim=0)) == 3
    a, s = per_sample(pairs.alpha, pairs.x_t), per_sample(pairs.sigma, pairs.x_t)
    torch.testing.assert_close(pairs.x_t, (a * torch.cat(latents) + s * pairs.eps).float())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noise_and_target_are_those_of_the_scheduler(kind, latents):
    scheduler = SCHEDULERS[kind]
    pairs = noise_pairs(scheduler, *latents, generator=seeded())
    both = torch.cat(latents)
    torch.testing.assert_close(pairs.x_t, scheduler.add_noise(both, pairs.eps, pairs.t))
    velocity = scheduler.get_velocity(both, pairs.eps, pairs.t)
    torch.testing.assert_close(
        pairs.target, {"epsilon": pairs.eps, "v_prediction": velocity, "sample": both}[kind], rtol=1e-5, atol=1e-6
    )


def test_the_flow_is_that_of_the_scheduler(latents):
    scheduler = SCHEDULERS["flow"]
    pairs = noise_pairs(scheduler, *latents, u=torch.tensor([0.2, 0.5, 0.9]))
    # The median of the law is s = 1/2, which the shift 3 makes 3/4.
    assert pairs.sigma[1].item() == pytest.approx(0.75)
    assert pairs.t[1].item() == pytest.approx(750)
    torch.testing.assert_close(pairs.target, pairs.eps - torch.cat(latents))
    assert noise_pairs(scheduler, *latents, u=torch.full((3,), 0.5), shift=1.0).sigma[0].item() == pytest.approx(0.5)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_error_in_another_space_is_that_of_the_converted_prediction(kind, latents):
    pairs = noise_pairs(SCHEDULERS[kind], *latents, u=torch.tensor([0.2, 0.5, 0.9]), generator=seeded())
    wrong = (pairs.target + 0.1 * torch.randn_like(pairs.target)).double()
    a, s = per_sample(pairs.alpha, wrong), per_sample(pairs.sigma, wrong)
    x_t = a * torch.cat(latents).double() + s * pairs.eps.double()
    x0 = x0_from_prediction(wrong, x_t, a, s, kind)
    eps = (x_t - a * x0) / s
    for space, error in (
        ("x0", x0 - torch.cat(latents)),
        ("epsilon", eps - pairs.eps),
        ("native", wrong - pairs.target),
    ):
        l_w, l_l = pairs.losses(wrong.float(), space)
        torch.testing.assert_close(torch.cat([l_w, l_l]).double(), error.square().mean((1, 2, 3)), rtol=1e-4, atol=0)


def test_the_flow_identity(latents):
    """|eps^ - eps|^2 = (1 - s)^2 |v^ - v|^2 and |x0^ - x0|^2 = s^2 |v^ - v|^2."""
    pairs = noise_pairs(SCHEDULERS["flow"], *latents, generator=seeded())
    prediction = torch.randn_like(pairs.target)
    native, eps, x0 = (torch.cat(pairs.losses(prediction, space)) for space in ("native", "epsilon", "x0"))
    s = pairs.t / 1000
    torch.testing.assert_close(eps, (1 - s) ** 2 * native)
    torch.testing.assert_close(x0, s**2 * native)


def test_the_model_is_called_once_with_wanted_images_first(latents):
    calls = []

    def model(x, t, cond):
        calls.append((x, t, cond))
        return torch.zeros_like(x)

    l_w, l_l, t = paired_denoising_losses(model, SCHEDULERS["epsilon"], *latents, "cond", generator=seeded())
    ((x, times, cond),) = calls
    assert cond == "cond"
    assert torch.equal(times, torch.cat([t, t]))
    pairs = noise_pairs(SCHEDULERS["epsilon"], *latents, generator=seeded())
    assert torch.equal(x, pairs.x_t)
    # The same noise in both: a network that says 0 has the same error, whatever the images.
    torch.testing.assert_close(l_w, l_l)
    torch.testing.assert_close(l_w, pairs.eps[:3].square().mean((1, 2, 3)))


def test_identical_images_have_identical_losses(latents):
    l_w, l_l, _ = paired_denoising_losses(
        lambda x, t, c: x.tanh(), SCHEDULERS["flow"], latents[0], latents[0], generator=seeded(), loss_space="x0"
    )
    assert torch.equal(l_w, l_l)


def test_a_part_is_those_pairs(latents):
    pairs = noise_pairs(SCHEDULERS["v_prediction"], *latents, generator=seeded())
    prediction = pairs.x_t * 0.3
    l_w, l_l = pairs.losses(prediction)
    part = pairs.part(slice(1, 3))
    p_w, p_l = part.losses(part.x_t * 0.3)
    assert torch.equal(torch.stack([p_w, p_l]), torch.stack([l_w[1:], l_l[1:]]))


def test_an_euler_scheduler_has_the_same_levels(latents):
    one, two = (
        noise_pairs(cls(beta_schedule="scaled_linear"), *latents, u=torch.tensor([0.1, 0.5, 1.0]), generator=seeded())
        for cls in (EulerDiscreteScheduler, DDPMScheduler)
    )
    assert torch.equal(one.x_t, two.x_t)
    assert one.t.tolist() == [100, 500, 999] * 2


def test_what_does_not_fit_is_said(latents):
    with pytest.raises(ConfigError, match="must have one shape"):
        noise_pairs(SCHEDULERS["epsilon"], latents[0], latents[1][..., :2])
    with pytest.raises(ConfigError, match="use native, epsilon or x0"):
        noise_pairs(SCHEDULERS["epsilon"], *latents).losses(torch.zeros(6, 2, 4, 4), "v")
