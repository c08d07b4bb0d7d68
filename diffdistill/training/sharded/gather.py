"""A sharded network as a plain one, in the memory of the leader's CPU: to be published."""

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from diffdistill import processes
from diffdistill.sharding import how, whole
from diffdistill.training.signals import uninterrupted

_plain: "WeakKeyDictionary[nn.Module, tuple[str, nn.Module]]" = WeakKeyDictionary()


def remember(network: nn.Module, name: str) -> None:
    """Before a network is sharded: what it is without its weights. name: its own among those of the run."""
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
        for weight in network.parameters()
    }
    _plain[network] = f"whole {name}", copy.deepcopy(network, memo)
    processes.serve(f"whole {name}", lambda: _gathered(network))


def plain_network(network: Any) -> Any:
    """The network itself where it is not sharded; else a plain copy of it for the leader, on the CPU.

    One tensor is gathered after the other, and the leader alone keeps it. All must ask for it, or the leader at work.
    """
    if how(network) is None:
        return network
    with uninterrupted():
        return processes.call(_plain[network][0])


def _gathered(network: nn.Module) -> nn.Module:
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        value = whole(tensor.detach())
        if processes.leader():
            tensors[name] = value.cpu()
    plain = copy.deepcopy(_plain[network][1])
    if processes.leader():
        plain.load_state_dict(tensors, assign=True)
    return plain


def plain_model(model: Any) -> Any:
    """A model whose network is as `plain_network` has it."""
    if how(model.network) is None:
        return model
    plain = copy.copy(model)
    plain._modules = dict(model._modules)
    plain.network = plain_network(model.network)
    return plain
