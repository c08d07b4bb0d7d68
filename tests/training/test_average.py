"""The moving average of a network: parameters by its decay, buffers as they are now."""

import pytest
import torch
from runs import settings, task
from torch import nn

from diffdistill.training.optim.updater import Ema


def test_parameters_are_averaged_and_buffers_are_copied():
    network = nn.BatchNorm1d(3)
    ema = Ema(network, decay=0.5)
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.running_mean.fill_(7.0)
    ema.update(network)
    # The first update has the decay (1 + 0) / (10 + 0) of the warm-up: a tenth of the old 1, nine of the new 3.
    torch.testing.assert_close(ema.module.weight, torch.full((3,), 0.1 * 1 + 0.9 * 3))
    torch.testing.assert_close(ema.module.running_mean, torch.full((3,), 7.0))
    torch.testing.assert_close(network.weight, torch.full((3,), 3.0))
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.5])
def test_the_warm_up_of_the_decay_ends_at_its_value(decay):
    network = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(0.0)
    ema = Ema(network, decay)
    expected = 0.0
    for n in range(12):
        with torch.no_grad():
            network.weight.fill_(float(n * n))
        ema.update(network)
        now = min(decay, (1 + n) / (10 + n))
        expected = now * expected + (1 - now) * n * n
        assert ema.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_what_a_teachers_training_keeps_is_its_average(tmp_path):
    made = task(settings("train", tmp_path))
    before = [p.detach().clone() for p in made.averaged().parameters()]
    torch.manual_seed(0)
    made.update(0)
    kept, network = list(made.averaged().parameters()), list(made.model.parameters())
    moved = [i for i, p in enumerate(network) if not torch.equal(p, before[i])]
    assert moved
    for i in moved:
        torch.testing.assert_close(kept[i], 0.1 * before[i] + 0.9 * network[i])
