"""Networks whose weights lie in parts on several processes (torch's `fully_shard`), and what their tensors are.

A sharded weight is a DTensor: each process holds some of its rows, of it, of its gradient, of its moments and of its
average. A block's weights are gathered for its pass and let go after it. Gradients are summed over the processes, not
averaged: the losses here are divided by the batch of all. Nothing else of a network changes: its names, its hooks, its
state dict are as they were.

No torch is imported before it is needed.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffdistill import processes

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

ROOTS = "_diffdistill_sharding"  # where a sharded network remembers how


@dataclass(frozen=True)
class Sharding:
    """How a network is sharded.

    device: where it computes. dtype: of the weights in its passes, which then are under autocast to it; None: as they
    are stored, where the rest of these notes speak of float32. reduced: dtype in which gradients are summed. offload:
    whether the parts wait in the memory of the CPU. recompute: whether the activations of blocks are computed anew.
    """

    device: "torch.device"
    dtype: "torch.dtype | None" = None
    reduced: "torch.dtype | None" = None
    offload: bool = False
    recompute: bool = False


def is_sharded(tensor: object) -> bool:
    return hasattr(tensor, "full_tensor") and hasattr(tensor, "placements")


def local(tensor: "Tensor") -> "Tensor":
    """The part of a tensor that this process holds, in the same memory; all of one that is not sharded.

    >>> import torch
    >>> local(torch.ones(2))
    tensor([1., 1.])
    """
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: "Tensor") -> "Tensor":
    """All of a tensor, which all processes must ask for at once."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def part_of(tensor: "Tensor", like: "Tensor") -> "Tensor":
    """Of a tensor that every process has, the part that lies here of one that is sharded as `like`; no talk."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)


def how(network: "nn.Module") -> Sharding | None:
    """How a network is sharded; None: it is not."""
    return getattr(network, ROOTS, None)


def device_of(network: "nn.Module") -> "torch.device":
    """Where a network computes; its sharded weights may wait elsewhere."""
    sharding = how(network)
    return next(network.parameters()).device if sharding is None else sharding.device


def shard(network: "nn.Module", sharding: Sharding, last: "nn.Module | None" = None) -> None:
    """Shard a network in place, each of its blocks by itself; all processes must have the same.

    last: the layer that writes its output, which computes in float32 whatever the rest does.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    on_gpu = sharding.device.type != "cpu"
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(sharding.device.type, (processes.size(),)),
        "reshard_after_forward": True,
        "offload_policy": CPUOffloadPolicy(pin_memory=on_gpu) if sharding.offload else OffloadPolicy(),
    }
    exact = MixedPrecisionPolicy(reduce_dtype=sharding.reduced, cast_forward_inputs=False)
    half = MixedPrecisionPolicy(sharding.dtype, sharding.reduced, cast_forward_inputs=False)
    if sharding.recompute:
        for block in outer_blocks(network):
            _recompute(block)
    if last is not None:
        fully_shard(last, mp_policy=exact, **settings)
    for block in reversed(blocks_of(network)):  # those within others come after them in the network's order
        if block is not last:
            fully_shard(block, mp_policy=half, **settings)
    fully_shard(network, mp_policy=half, **settings)
    root: Any = network
    # Of the four ways of torch to divide, this one asks no more of a backend than a sum: gloo has no other.
    for module in root.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    setattr(network, ROOTS, sharding)


def blocks_of(network: "nn.Module") -> "list[nn.Module]":
    """The blocks of a network that are sharded each by itself, in its order.

    Those of the classes that diffusers says are repeated or not to be split, the members of the network's own lists,
    and its middle block. Blocks within blocks are fine: each has the weights that those within it have not.
    """
    from torch import nn

    named = {*(getattr(network, "_no_split_modules", None) or ()), *(getattr(network, "_repeated_blocks", None) or ())}
    chosen = {id(block) for block in outer_blocks(network)}
    return [
        module
        for module in network.modules()
        if module is not network
        and not isinstance(module, nn.ModuleList | nn.ModuleDict)
        and (id(module) in chosen or type(module).__name__ in named)
        and any(True for _ in module.parameters())
    ]


def outer_blocks(network: "nn.Module") -> "list[nn.Module]":
    """The blocks of a network that lie in no other one."""
    from torch import nn

    blocks: list[nn.Module] = []
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList):
            blocks += list(child)
        elif isinstance(child, nn.ModuleDict):
            blocks += list(child.values())
        elif name.startswith("mid"):
            blocks.append(child)
    return [block for block in blocks if any(True for _ in block.parameters())]


def _recompute(block: Any) -> None:
    """Let a block compute its activations anew in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    forward = block.forward

    def again(*inputs: Any, **named: Any) -> Any:
        import torch

        if not torch.is_grad_enabled():
            return forward(*inputs, **named)
        return checkpoint(forward, *inputs, use_reentrant=False, **named)

    block.forward = again


class Ended(Exception):
    """Raised within a pass that ends early: the rest of it is not needed."""


@contextlib.contextmanager
def tapped(network: "nn.Module", taps: "Mapping[str, nn.Module]", outputs: "Mapping[str, Tensor]") -> Iterator[None]:
    """Within, passes of a network give `outputs`, by name, of the modules `taps` too, and may be broken off there.

    A gradient that begins at a tap needs the weights of every sharded block around it, so what a tap gave is a result
    of these too; and a pass that `Ended` breaks off leaves each of them in order, as a whole one does. Nothing for a
    plain network.
    """
    if how(network) is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        for module in network.modules():
            inside = {id(inner) for inner in module.modules()} - {id(module)}
            names = [name for name, tap in taps.items() if id(tap) in inside]
            if names and hasattr(module, "unshard"):
                stack.enter_context(_giving(module, names, outputs))
        yield


@contextlib.contextmanager
def _giving(module: Any, names: "Sequence[str]", outputs: "Mapping[str, Tensor]") -> Iterator[None]:
    """Within, torch's hooks after a module's own forward see what the taps gave beside its output, or in its place."""
    own, forward = module.__dict__.get("forward"), module.forward
    ended: list[Ended] = []

    def with_taps(*inputs: Any, **named: Any) -> Any:
        ended.clear()
        output = None
        try:
            output = forward(*inputs, **named)
        except Ended as end:
            ended.append(end)
        return output, [outputs[name] for name in names if name in outputs]

    def without(_module: Any, _inputs: Any, output: Any) -> Any:
        if ended:
            raise ended.pop()
        return output[0]

    module.forward = with_taps
    handle = module.register_forward_hook(without)
    try:
        yield
    finally:
        handle.remove()
        if own is None:
            del module.forward
        else:
            module.forward = own
