"""Ensembles of rewards: one scale, the least, the mean less the variance; their gradients; what is refused."""

import pytest
import torch

from diffdistill.errors import ConfigError, DataError
from diffdistill.methods.base import Reward as Settings
from diffdistill.rewards import CallableReward, EnsembleReward, measure_scales, term
from diffdistill.rewards.term import RewardTerm
from diffdistill.section import plain


def pixel(number):
    """The value of one pixel: a reward of its own for each."""
    return CallableReward(lambda images, prompts: images.flatten(1)[:, number], f"pixel {number}")


TERMS = {"a": (1.0, pixel(0)), "b": (1.0, pixel(1)), "c": (2.0, pixel(2))}
SCALES = {"a": (0.5, 0.1), "b": (0.2, 0.4), "c": (0.0, 2.0)}
IMAGES = torch.tensor([[0.7, 0.2, 1.0, 0.0], [0.4, 0.6, 0.5, 0.0]]).reshape(2, 1, 2, 2)
Z = torch.tensor([[2.0, 0.0, 1.0], [-1.0, 1.0, 0.5]])  # what they are on one scale, times their weights


@pytest.mark.parametrize("combine", ["sum", "worst", "uncertainty"])
def test_members_are_combined_on_one_scale(combine):
    reward = EnsembleReward(TERMS, combine, SCALES, disagreement=0.3)
    wanted = {
        "sum": Z.sum(1), "worst": Z.min(1).values,
        "uncertainty": Z.mean(1) - 0.3 * ((Z - Z.mean(1, keepdim=True)) ** 2).mean(1),
    }[combine]  # fmt: skip
    torch.testing.assert_close(reward(IMAGES), wanted)
    assert reward.name == f"{combine} of a, b, c"


def test_only_the_least_has_a_gradient_and_a_disagreement_is_closed():
    def gradient(combine, disagreement=0.5):
        leaf = IMAGES.clone().requires_grad_()
        EnsembleReward(TERMS, combine, SCALES, disagreement)(leaf).sum().backward()
        return leaf.grad.flatten(1)[:, :3] * torch.tensor([0.1, 0.4, 1.0])  # d / dz

    torch.testing.assert_close(gradient("worst"), torch.tensor([[0.0, 1, 0], [1, 0, 0]]))
    torch.testing.assert_close(gradient("uncertainty"), 1 / 3 - (Z - Z.mean(1, keepdim=True)) / 3)


def test_the_members_scores_are_logged_in_their_own_units():
    _, figures = RewardTerm(EnsembleReward(TERMS, "worst", SCALES), 1.0).gradient(2 * IMAGES - 1)
    found = {name: float(value) for name, value in figures.items()}
    wanted = {"reward/a": 0.55, "reward/b": 0.4, "reward/c": 0.75, "reward/score": -0.5}
    assert found == pytest.approx(wanted, abs=1e-5)


def test_scales_are_measured_and_make_scores_standard():
    images = torch.rand(50, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    rewards = {name: reward for name, (_, reward) in TERMS.items()}
    scales = measure_scales(rewards, images)
    for name, reward in rewards.items():
        z = EnsembleReward({name: (1.0, reward)}, "sum", scales)(images)
        assert z.mean().item() == pytest.approx(0, abs=1e-5)
        assert z.std(correction=0).item() == pytest.approx(1, rel=1e-5)
    with pytest.raises(DataError, match="the reward a scores all 3 images alike; give images that differ"):
        measure_scales(rewards, torch.ones(3, 1, 2, 2))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"name": "clip", "combine": "worst", "scales": {"clip": (0, 1)}},
            "combine=worst and scales compare rewards, and there is one",
        ),
        (
            {"sum": {"clip": 1.0}, "combine": "uncertainty"},
            "combine=uncertainty and scales compare rewards, and there is one",
        ),
        ({"sum": {"clip": 1.0, "aesthetic": 1.0}, "combine": "worst"}, "scales lacks clip; measure mean and standard"),
        ({"sum": {"clip": 1.0, "aesthetic": 1.0}, "scales": {"clip": (25, 4)}}, "scales lacks aesthetic"),
    ],
)
def test_what_cannot_be_compared_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Settings(weight=1.0, **given)
    members = dict.fromkeys(given.get("sum", {"clip": 1.0}), TERMS["a"])
    with pytest.raises(ConfigError):
        EnsembleReward(members, given.get("combine", "sum"), given.get("scales", {}))


def test_a_runs_settings_make_the_ensemble(monkeypatch):
    monkeypatch.setattr(term, "load_reward", lambda name, batch_size: TERMS[name][1])
    given = {"sum": {"a": 1.0, "b": 1.0, "c": 2.0}, "combine": "uncertainty", "scales": SCALES, "disagreement": 0.3}
    made = term.reward_term(plain(Settings(weight=1.0, **given), term.RewardSettings)).reward
    torch.testing.assert_close(made(IMAGES), EnsembleReward(TERMS, "uncertainty", SCALES, 0.3)(IMAGES))
