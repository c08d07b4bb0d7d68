"""Losses of the critic and of the discriminator."""

import copy
import math

import pytest
import torch
from tiny import tiny_teacher

from diffdistill.losses import denoising_loss, discriminator_loss, feature_r1
from diffdistill.matching.discriminators import Discriminator


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


def test_feature_r1_is_the_squared_gradient_in_units_of_the_features_rms():
    # l = w . f, so ||dl/df||^2 = ||w||^2, and f = 3 everywhere has rms 3.
    torch.manual_seed(0)
    w = torch.randn(2, 4, 4, requires_grad=True)
    feature = torch.full((5, 2, 4, 4), 3.0, requires_grad=True)
    penalty = feature_r1((feature * w).flatten(1).sum(1), feature)
    torch.testing.assert_close(penalty, (9 * w.square().sum()).expand(5))
    (gradient,) = torch.autograd.grad(penalty.mean(), w)
    torch.testing.assert_close(gradient, 18 * w)


def test_r1_does_not_depend_on_the_scale_of_the_features():
    torch.manual_seed(0)
    feature, w = torch.randn(6, 2, 3, 3), torch.randn(2, 3, 3)

    def penalty(scale):
        leaf = (scale * feature).requires_grad_()
        return feature_r1(torch.tanh((leaf / scale * w).flatten(1).sum(1)), leaf)

    torch.testing.assert_close(penalty(1.0), penalty(40.0))


@pytest.mark.parametrize("autocast", [False, True])
def test_r1_of_heads_is_exact_in_any_precision(autocast):
    """Against central differences in float64, each coordinate of each head's input."""
    torch.manual_seed(0)
    network = tiny_teacher()
    discriminator = Discriminator(network, ("down_blocks.0", "mid_block"))
    features = network.features(
        torch.randn(2, 1, 8, 8), torch.ones(2), torch.zeros(2, dtype=torch.long), discriminator.taps
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = discriminator.r1([f.detach() for f in features])
    wants = []
    for head, feature in zip(copy.deepcopy(discriminator).double().heads, features, strict=True):
        f, squares = feature.detach().double(), 0.0
        flat, h = f.flatten(1), 1e-5
        for k in range(flat.shape[1]):
            step = torch.zeros_like(flat)
            step[:, k] = h
            up, down = head((flat + step).view_as(f)), head((flat - step).view_as(f))
            squares = squares + ((up - down) / (2 * h)).square()
        wants.append(f.square().flatten(1).mean(1) * squares)
    torch.testing.assert_close(got.double(), torch.stack(wants).mean(0).detach(), rtol=1e-4, atol=1e-8)
