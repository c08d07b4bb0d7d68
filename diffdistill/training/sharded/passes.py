"""Passes of a sharded network: under its own precision, and made by all processes where the leader alone wants one.

The leader draws, measures and compares while the others wait; its network's weights lie on all of them. So each pass
that it makes is announced, and the others make it too, on the same inputs, for the sake of their weights: its result
is that of one process, and no process ever holds all of the weights.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill import processes
from diffdistill.sharding import Sharding
from diffdistill.training.signals import uninterrupted

Tensors = dict[str, Tensor]


def watch(network: nn.Module, name: str, sharding: Sharding) -> None:
    """Let the passes of a network that was sharded be as said above; name: its own among those of the run."""
    passes = _Passes(network, f"pass of {name}", sharding)
    network.register_forward_pre_hook(passes.begin, prepend=True, with_kwargs=True)
    network.register_forward_hook(passes.end, always_call=True)


class _Passes:
    def __init__(self, network: nn.Module, service: str, sharding: Sharding):
        self.network, self.service, self.sharding = network, service, sharding
        self.open: list[ExitStack] = []
        self.inputs: Tensors | None = None
        processes.serve(service, self.join)

    def begin(self, _network: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        stack, kind = ExitStack(), self.sharding.device.type
        if processes.leading():
            stack.enter_context(uninterrupted())
            self.inputs = {}
            said = packed([list(inputs), named], self.inputs)
            autocast = str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
            processes.call(self.service, said, autocast if torch.is_autocast_enabled(kind) else None)
        if self.sharding.dtype is not None and not torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, self.sharding.dtype, cache_enabled=False))
        self.open.append(stack)

    def end(self, _network: nn.Module, _inputs: Any, _output: Any) -> None:
        if self.open:  # empty where the hook before it failed
            self.open.pop().close()

    @torch.no_grad()
    def join(self, said: Any, autocast: str | None) -> None:
        """The pass that the leader is about to make, in the others."""
        tensors = processes.handed(self.inputs, 0)
        self.inputs = None
        if processes.leader():
            return
        device = self.sharding.device
        inputs, named = unpacked(said, {name: value.to(device) for name, value in tensors.items()})
        dtype = getattr(torch, autocast or "bfloat16")
        with torch.autocast(device.type, dtype, enabled=autocast is not None, cache_enabled=False):
            self.network(*inputs, **named)


def packed(value: Any, tensors: Tensors) -> Any:
    """A value as JSON has it; its tensors go into `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": {key: packed(entry, tensors) for key, entry in value.items()}}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [packed(entry, tensors) for entry in value]}
    return {"plain": value}


def unpacked(said: Any, tensors: Tensors) -> Any:
    """The inverse of `packed`."""
    ((kind, value),) = said.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: unpacked(entry, tensors) for key, entry in value.items()}
    if kind in ("list", "tuple"):
        entries = [unpacked(entry, tensors) for entry in value]
        return tuple(entries) if kind == "tuple" else entries
    return value
