"""Scheduled sampling: how much, when, at which level, and the variance of what is made, in closed form."""

import math

import pytest
import torch
from runs import settings

from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.objectives.scheduled import ScheduledSampling
from diffdistill.process import karras_levels
from diffdistill.training.device import Device
from diffdistill.training.tasks.scheduled import ScheduledTask, level_above

S = 0.25  # of the data


def gaussian(count=4000):
    images = S * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return ImageSet(((images + 1) * 127.5).round().clamp(0, 255).byte(), None, None, None, "gaussian", "0" * 64)


def task(folder, monkeypatch, level=0.3, **objective):
    """Of a network that is the Gaussian's exact denoiser, D = s^2 x / (s^2 + sigma^2); its calls are recorded."""
    law = {"law": "uniform", "sigma_min": level, "sigma_max": level * 1.0001}
    made = {"name": "scheduled_sampling", "steps": 8} | objective
    config = settings("train", folder, objective=made, level=law, train_batch_size=2000, class_dropout=0.0)
    built, calls = ScheduledTask(config, gaussian(), Device("no")), []

    def forward(self, x_t, sigma, cond=None):
        calls.append((x_t, sigma, torch.is_grad_enabled()))
        zero = sum(p.sum() for p in self.parameters()) * 0
        return S**2 / (S**2 + sigma.reshape(-1, 1, 1, 1) ** 2) * x_t + zero

    monkeypatch.setattr(Denoiser, "forward", forward)
    return built, calls


def test_half_of_the_images_are_the_models_own_after_mu_ln_mu_epochs():
    whole = ScheduledSampling(most=1.0)
    assert [round(whole.own_part(e), 3) for e in (0, 5, 30, 10000)] == [0.077, 0.112, 0.504, 1.0]
    assert whole.own_part(12 * math.log(12)) == pytest.approx(0.5)
    assert ScheduledSampling().own_part(10000) == 0.5


def test_the_level_above_is_the_samplers():
    levels = karras_levels(8, 0.002, 80.0)
    torch.testing.assert_close(level_above(levels[1:], 8, 0.002, 80.0), levels[:-1])
    assert level_above(levels[:1], 8, 0.002, 80.0) == levels[0]
    assert level_above(torch.tensor([100.0]), 8, 0.002, 80.0) == 100.0


def test_what_is_made_has_the_variance_of_a_sampler(tmp_path, monkeypatch):
    """var x_t = s^4 / (s^2 + sigma'^2) + sigma^2 of the model's own, s^2 + sigma^2 of the data."""
    for most, own in ((1.0, True), (0.0, False)):
        made, calls = task(tmp_path, monkeypatch, most=most)
        metrics = made.update(10**6)
        assert metrics["own_part"] == most
        (_, above, graph), (x_t, sigma, trained) = calls
        assert (graph, trained) == (False, True)
        torch.testing.assert_close(above, level_above(sigma, 8, 0.002, 80.0))
        s2, a2 = gaussian().images.float().div(127.5).var().item(), above[0].item() ** 2
        kept = S**2 / (S**2 + a2)
        wanted = kept**2 * (s2 + a2) if own else s2
        assert x_t.var().item() == pytest.approx(wanted + 0.3**2, rel=0.02)
    assert kept**2 * (s2 + a2) == pytest.approx(S**4 / (S**2 + a2), rel=0.02)  # the closed form


def test_a_part_of_the_batch_is_made_and_the_target_stays_the_data(tmp_path, monkeypatch):
    made, calls = task(tmp_path, monkeypatch, most=0.4)
    metrics = made.update(10**6)
    x0 = made.data.draw(2000, 0, 10**6)[0]
    x_t, sigma, _ = calls[1]
    s = sigma.reshape(-1, 1, 1, 1)
    error = (S**2 / (S**2 + s**2) * x_t - x0).square()
    weight = (s**2 + 0.5**2) / (s * 0.5) ** 2
    assert metrics["loss"].item() == pytest.approx((weight * error).mean().item(), rel=1e-4)
    # Noised data is one sigma^2 from x0, what the model made (s^2 a^2 / (s^2 + a^2)) more, a the level above.
    above = calls[0][1][0].item() ** 2
    wanted = 1 + 0.4 * S**2 * above / (S**2 + above) / 0.3**2
    assert ((x_t - x0) / s).square().mean().item() == pytest.approx(wanted, rel=0.02)
    assert ((x_t - x0) / s).flatten(1).square().mean(1).min() < 0.9  # and a part of it is noised data
    # So the best denoiser of it is that of data of less variance, (1 - p) s^2 + p s^4 / (s^2 + a^2).
    less = 0.6 * S**2 + 0.4 * S**4 / (S**2 + above)
    best = (x_t * x0).mean() / x_t.square().mean()
    assert best.item() == pytest.approx(less / (less + 0.3**2), rel=0.02)
    whole, _ = task(tmp_path, monkeypatch, most=1.0)
    assert whole.update(60)["own_part"] == pytest.approx(0.504, abs=1e-3)  # 60 steps of half of the data
