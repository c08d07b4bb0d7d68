"""AdaptiveMix: what lies between two images, the loss on linear features in closed form, a discriminator's term."""

import math

import pytest
import torch
from runs import settings, task
from small_methods import batch, build
from torch import nn

from diffdistill.errors import ConfigError
from diffdistill.matching.adaptive_mix import SPREAD, between, draw_mix, mixing_loss, parted
from diffdistill.matching.discriminators import AdversarialTerm
from diffdistill.matching.settings import Adversarial
from diffdistill.methods.dmd2 import DMD2
from diffdistill.training.randomness import seed_step


def pair(count=2000, seed=0):
    torch.manual_seed(seed)
    return torch.randn(count, 1, 4, 4), 1 + torch.randn(count, 1, 4, 4)


def test_linear_features_of_what_lies_between_lie_between():
    """-cos is -1 without n; with n of 0.05 rms, an angle of arctan 0.05: -1 / sqrt(1 + 0.05^2)."""
    real, fake = pair(200)
    f = nn.Conv2d(1, 3, 3, bias=False).double()
    share, none = torch.rand(200).double(), (torch.zeros_like(real).double(),) * 2
    m = between(real.double(), fake.double(), torch.zeros(200).double(), none, share)
    maps = [f(x) for x in (m, real.double(), fake.double())]
    torch.testing.assert_close(mixing_loss(*maps, share, torch.zeros_like(maps[0])), -torch.ones(200).double())
    noise = torch.randn(50, 20000).double()
    wide = torch.full((50, 20000), 7.0).double()
    losses = mixing_loss(wide, wide, wide, share[:50], noise)
    assert losses.mean().item() == pytest.approx(-1 / math.sqrt(1 + SPREAD**2), abs=2e-4)
    # f(x) = x^2 of 1 and -1 is 1 and 1, and 0 half way between, whose cosine is 0.
    one = torch.ones(1, 1, 2, 2)
    mixed = between(one, -one, torch.zeros(1), (one, one), torch.tensor([0.5])).square()
    assert mixing_loss(mixed, one, one, torch.tensor([0.5]), 0 * one).item() == 0


def test_the_target_is_a_constant():
    maps = [torch.randn(2, 3, requires_grad=True) for _ in range(3)]
    mixing_loss(*maps, torch.tensor([0.3, 0.6]), torch.randn(2, 3)).sum().backward()
    assert [one.grad is None for one in maps] == [False, True, True]


def test_what_lies_between_is_as_noisy_as_its_level():
    real, fake = pair()
    eps = torch.randn(2, *real.shape).unbind()
    for part in (0.0, 0.5, 0.9, 1.0):
        share, sigma = torch.full((2000,), part), torch.full((2000,), 3.0)
        m = between(real, fake, sigma, eps, share)
        clean = part * real + (1 - part) * fake
        assert (m - clean).std().item() == pytest.approx(3.0, rel=0.02)
    torch.testing.assert_close(m, real + 3 * eps[0])


def test_shares_are_uniform_and_noise_is_of_each_map():
    torch.manual_seed(0)
    mix = draw_mix(4000, 14, torch.device("cpu"))
    share, (first, second) = parted(mix, [torch.zeros(4000, 2, 1, 1), torch.zeros(4000, 3, 2, 2)])
    assert (first.shape, second.shape) == ((4000, 2, 1, 1), (4000, 3, 2, 2))
    assert torch.equal(second.flatten(1), mix[:, 3:])
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share.square().mean().item() == pytest.approx(1 / 3, abs=0.02)
    assert first.std().item() == pytest.approx(1, abs=0.02)


def test_a_discriminators_loss_has_the_term_and_moves_its_inner_layers():
    def losses(weight):
        method = build(DMD2(adversarial={"mix": weight, "taps": ("conv_in",)}))
        fake, cond = batch()
        real, _ = batch(2)
        torch.manual_seed(3)
        noise = method.critic_noise(fake, True)
        (_, _), (loss, figures) = method.critic_losses(fake, cond, real, noise)
        loss.backward()
        return loss.item(), figures, method.adversarial.discriminator.heads[0], noise

    plain, figures, head, noise = losses(0.0)
    assert noise.mix is None
    assert "discriminator/mix" not in figures
    with_term, figures, mixed, noise = losses(0.5)
    assert with_term == pytest.approx(plain + 0.5 * figures["discriminator/mix"].item(), rel=1e-5)
    assert -1 <= figures["discriminator/mix"] < -0.3
    assert torch.equal(head[-2].weight.grad, mixed[-2].weight.grad)  # the last layer reads no mixed image
    assert not torch.equal(head[0].weight.grad, mixed[0].weight.grad)
    assert noise.part(slice(1, 3)).mix.shape[0] == 2


def test_the_critics_features_are_moved_too(tmp_path):
    weights = []
    for mix in (0.0, 1.0):
        made = task(settings("dmd2", tmp_path, method={"adversarial": {"features": "critic", "mix": mix}}))
        seed_step(0, 0)
        made.update(0)
        weights.append(made.critic.network.conv_in.weight.detach().clone())
    assert not torch.equal(*weights)


def test_a_head_of_one_layer_on_a_frozen_map_is_refused():
    model = build(DMD2(adversarial=None)).teacher
    for features, taps in (("critic", ("mid_block",)), ("teacher", ("conv_in",))):
        AdversarialTerm(Adversarial(mix=1.0, features=features, taps=taps), model, build(DMD2()).critic)
    with pytest.raises(ConfigError, match="before its last, and one here has none"):
        AdversarialTerm(Adversarial(mix=1.0), model, build(DMD2()).critic)
