"""Networks that lend each other the memory of their weights until they are sharded, or known not to be."""

import copy

import pytest
import torch
from runs import settings, task
from tiny import tiny_unet, tiny_uvit
from torch import nn

from diffdistill import processes
from diffdistill.borrowed import borrowing, own
from diffdistill.models import apply_scalelong
from diffdistill.pipelines.network import clone_network
from diffdistill.training.sharded import plan


def memory(network):
    return {weight.data_ptr() for weight in network.parameters()}


def scaled(network):
    apply_scalelong(network, mode="ls")
    return network


NETWORKS = {
    "unet": lambda: (tiny_unet(4), 3),
    "uvit": lambda: (tiny_uvit(None), None),
    "scalelong": lambda: (scaled(tiny_unet(None)), None),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_borrowing_clone_is_the_clone_and_draws_as_much(kind):
    network, classes = NETWORKS[kind]()
    torch.manual_seed(1)
    expected, after = clone_network(network, classes).state_dict(), torch.rand(4)
    torch.manual_seed(1)
    lent = clone_network(network, classes, borrowing=True)
    assert torch.equal(torch.rand(4), after)  # what is drawn next, heads say, is the same
    assert memory(lent) <= memory(network)
    assert all(weight.requires_grad for weight in lent.parameters())
    state = lent.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, state[name]) for name, value in expected.items())


def test_what_has_its_own_is_moved_alone():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = borrowing(network).requires_grad_(False)
    assert memory(average) == memory(network)
    before = copy.deepcopy(network.state_dict())
    assert own(average) is average
    assert not memory(average) & memory(network)
    with torch.no_grad():
        for weight in average.parameters():
            weight.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.requires_grad for weight in network.parameters())


def test_a_network_that_uses_a_weight_twice_borrows_none():
    network = tiny_unet(None)
    network.conv_norm_out.bias = network.conv_norm_out.weight
    assert not memory(clone_network(network, None, borrowing=True)) & memory(network)


def test_what_might_have_been_sharded_and_is_not_has_its_own_memory(tmp_path, monkeypatch):
    """auto, two processes, networks that fit: the steps are those of a run that was never to be sharded."""
    ends = []
    for may in (False, True):
        monkeypatch.setattr(plan, "may_shard", lambda config, device, may=may: may)
        monkeypatch.setattr("diffdistill.training.kinds.images.may_shard", plan.may_shard)
        monkeypatch.setattr(processes, "most", lambda word: word)
        made = task(settings("dmd2", tmp_path, critic={"updates_per_step": 1}))
        roles = [made.method.teacher, made.student, made.method.critic, made.ema.module]
        assert len(set().union(*map(memory, roles))) == sum(len(memory(role)) for role in roles)
        for step in range(2):
            torch.manual_seed(step)
            made.update(step)
        ends.append([tensor for part in roles for tensor in part.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
