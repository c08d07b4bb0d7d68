"""One More Step: its best answer is E[x0 | c], which mends the mean of what a sampler makes and not its spread."""

import pytest
import torch
from diffusers import DDIMScheduler

from diffdistill.errors import ConfigError, DataError
from diffdistill.sampling.one_more_step import OneMoreStep, one_more_step_loss, train_one_more_step

MEANS = torch.tensor([[0.8, -0.3], [-0.5, 0.4], [0.1, 0.9]])  # of three classes and two channels


def drawn(count, generator):
    labels = torch.randint(3, (count,), generator=generator)
    spread = 0.3 * torch.randn(count, 1, 1, 1, generator=generator)
    return (MEANS[labels][:, :, None, None] + spread).expand(-1, -1, 4, 4), labels


def test_what_is_learned_is_the_mean_of_each_class_whatever_the_noise():
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    psi = OneMoreStep((2, 4, 4), classes=3, side=2)
    losses = train_one_more_step(psi, (drawn(256, g) for _ in range(200)), steps=200, learning_rate=0.05)
    z = torch.randn(3, 2, 4, 4, generator=g)
    guess = psi(z, torch.arange(3)).detach()
    torch.testing.assert_close(guess, MEANS[:, :, None, None].expand(-1, -1, 4, 4), atol=0.06, rtol=0)
    assert losses[-1] == pytest.approx(0.09, abs=0.03)  # what is left is the spread within a class, 0.3^2


def test_the_mean_of_each_class_is_where_the_gradient_vanishes():
    g = torch.Generator().manual_seed(0)
    psi = OneMoreStep((2, 4, 4), classes=3, side=1)
    x0, labels = drawn(3000, g)
    with torch.no_grad():
        for label in range(3):
            psi.of_condition.weight[label] = x0[labels == label].mean((0, 2, 3))
    one_more_step_loss(psi, x0, labels).backward()
    assert float(psi.of_condition.weight.grad.abs().max()) < 1e-6
    assert float(psi.of_noise.weight.grad.abs().max()) < 0.02  # z is independent of x0: of 3000, 0.006


def test_features_and_guidance_and_the_noises_factor(tmp_path):
    torch.manual_seed(0)
    psi = OneMoreStep((1, 8, 6), features=5, side=3, width=4)
    for parameter in psi.parameters():
        torch.nn.init.normal_(parameter)
    z, noise, cond, null = torch.randn(2, 1, 8, 6), torch.randn(2, 1, 8, 6), torch.randn(2, 5), torch.zeros(2, 5)
    abar = 0.00466
    plain, guided = psi(z, cond), psi(z, null) + 3 * (psi(z, cond) - psi(z, null))
    start = psi.start(z, noise, cond, abar)
    torch.testing.assert_close(start, abar**0.5 * plain + 0.99767 * noise, rtol=1e-4, atol=1e-4)  # 0.9977: the root
    start = psi.start(z, noise, cond, abar, null=null, guidance_scale=3.0)
    torch.testing.assert_close(start, abar**0.5 * guided + (1 - abar) ** 0.5 * noise)
    psi.save_pretrained(tmp_path)
    torch.testing.assert_close(OneMoreStep.from_pretrained(tmp_path)(z, cond), plain)


def test_what_does_not_fit_is_told():
    with pytest.raises(ConfigError, match="was given classes and features"):
        OneMoreStep((1, 4, 4), classes=2, features=2)
    with pytest.raises(ConfigError, match="side is 5, and the image is 4x8"):
        OneMoreStep((1, 4, 8), side=5)
    with pytest.raises(ConfigError, match="was trained with conditions; give one"):
        OneMoreStep((1, 4, 4), classes=2, side=1)(torch.zeros(1, 1, 4, 4))
    with pytest.raises(DataError, match="1 batches were given for 2 steps"):
        train_one_more_step(OneMoreStep((1, 4, 4), side=1), [(torch.zeros(1, 1, 4, 4), None)], steps=2)


def test_it_mends_the_mean_and_not_the_spread():
    """Stock DDIM, Stable Diffusion's table, exact noise predictions of N(8, 32^2); each step is affine in x."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="leading",
    )  # fmt: skip
    scheduler.set_timesteps(4)
    psi = OneMoreStep((1, 1, 1), side=1)
    torch.nn.init.constant_(psi.mean, 8.0)
    abar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[0])])
    units = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)  # no noise, and one unit of it

    def made(x):
        x = x.double()
        for t in scheduler.timesteps:
            a = float(scheduler.alphas_cumprod[int(t)])
            x = scheduler.step((1 - a) ** 0.5 * (x - a**0.5 * 8) / (a * 32**2 + 1 - a), t, x).prev_sample
        middle, moved = x.flatten().tolist()
        return middle, abs(moved - middle) / 32

    plain, mended = made(units), made(psi.start(torch.zeros(2, 1, 1, 1), units, None, abar))
    assert plain[0] < 2
    assert mended[0] == pytest.approx(8, abs=0.01)
    assert mended[1] == pytest.approx(plain[1] * (1 - abar) ** 0.5, rel=1e-4)
    assert plain[1] == pytest.approx(0.131, abs=6e-4)
