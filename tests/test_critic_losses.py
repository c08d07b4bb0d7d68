"""Losses of the critic and of the discriminator."""

import math

import pytest
import torch

from diffdistill.losses import approximate_r1, denoising_loss, discriminator_loss


def test_denoising_loss_of_an_untrained_preconditioned_network_is_about_one():
    torch.manual_seed(0)
    sigma = torch.tensor([0.05, 0.5, 5.0]).repeat_interleave(200)
    x0 = 0.5 * torch.randn(600, 1, 8, 8)
    s = sigma.reshape(-1, 1, 1, 1)
    skip = 0.25 / (s**2 + 0.25)
    loss = denoising_loss(skip * (x0 + s * torch.randn_like(x0)), x0, sigma)
    assert loss.shape == (600,)
    torch.testing.assert_close(loss.reshape(3, 200).mean(1), torch.ones(3), rtol=0.02, atol=0)


def test_the_critics_loss_does_not_reach_the_student():
    x0 = torch.ones(2, 1, 2, 2, requires_grad=True)
    prediction = torch.zeros(2, 1, 2, 2, requires_grad=True)
    denoising_loss(prediction, x0, torch.ones(2)).sum().backward()
    assert x0.grad is None
    assert prediction.grad is not None


def test_the_discriminators_optimum_is_the_log_ratio():
    # One point with real mass 0.7 and fake mass 0.2: the gradient vanishes at log 3.5.
    logit = torch.tensor(math.log(0.7 / 0.2), requires_grad=True)
    other = torch.tensor(50.0)
    loss = 0.7 * discriminator_loss(logit, -other) + 0.2 * discriminator_loss(other, logit)
    loss.backward()
    assert logit.grad.abs() < 1e-6


def test_approximate_r1_is_the_squared_gradient_norm():
    torch.manual_seed(0)
    direction, x = torch.randn(1, 1, 4, 4), torch.randn(4000, 1, 4, 4)

    def discriminator(x):
        return 3.0 + (x * direction).flatten(1).sum(1)

    generator = torch.Generator().manual_seed(0)
    penalty = approximate_r1(discriminator, x, std=0.1, generator=generator)
    assert penalty.shape == (4000,)
    assert penalty.mean().item() == pytest.approx(direction.square().sum().item(), rel=0.1)
    generator.manual_seed(0)
    torch.testing.assert_close(
        penalty, approximate_r1(discriminator, x, discriminator(x), std=0.1, generator=generator)
    )
