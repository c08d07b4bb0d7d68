"""Weights that move within the backward pass end where those end that move after it."""

import copy

import pytest
import torch
from torch import nn

from diffdistill.errors import NonFiniteError
from diffdistill.optimizers import Optimizer
from diffdistill.training.optim.in_backward import BackwardUpdater
from diffdistill.training.optim.updater import Updater

SETTINGS = {"max_grad_norm": None, "warmup_steps": 3, "weight_decay": 0.1}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten())


def train(kind, module, **settings):
    """Three steps; the figures of each."""
    updater = kind("student", module.parameters(), Optimizer(**SETTINGS | settings), 10)
    found = []
    for step in range(3):
        updater.begin(step)
        x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        hidden = module(x)
        module[2](hidden.view(5, 4, 4, 4)).square().mean().backward()  # the last layer is used twice
        found.append(updater.step(step))
    return found, updater


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_weights_and_the_state_are_those_of_a_step_after_the_pass(name):
    after, within = network(), network()
    expected, one = train(Updater, after, name=name)
    figures, other = train(BackwardUpdater, within, name=name)
    assert not torch.equal(after[0].weight, network()[0].weight)
    for mine, theirs in zip(within.parameters(), after.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.grad is None
        states = other.optimizer.state[mine], one.optimizer.state[theirs]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    for mine, theirs in zip(figures, expected, strict=True):
        assert float(mine["student/grad_norm"]) == pytest.approx(float(theirs["student/grad_norm"]), rel=1e-6)
        assert mine["student/learning_rate"] == theirs["student/learning_rate"]


def test_no_two_gradients_are_held_at_once():
    module, seen = network(), []
    updater = BackwardUpdater("student", module.parameters(), Optimizer(max_grad_norm=None), 10)
    updater.optimizer.register_step_pre_hook(
        lambda *_: seen.append(sum(p.grad is not None for p in module.parameters()))
    )
    updater.begin(0)
    module(torch.randn(1, 2, 4, 4)).sum().backward()
    assert seen == [1] * 4


def test_a_gradient_that_is_not_finite_stops_the_step():
    module = network()
    before = copy.deepcopy(module.state_dict())
    updater = BackwardUpdater("critic", module.parameters(), Optimizer(max_grad_norm=None), 10)
    updater.begin(7)
    with pytest.raises(NonFiniteError, match="gradient of the critic is not finite at step 7"):
        (module(torch.randn(1, 2, 4, 4)).sum() * float("nan")).backward()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
