"""How the same arithmetic is made faster on a device: `speed` of a run's settings, applied to its networks.

Nothing here changes a weight, its name or its order in memory, so checkpoints, averages and adapters are as without.

- **regional compilation**: blocks of a class that repeats are compiled, one after the other, and not the network as a
  whole, which takes minutes (docs.pytorch.org, "Reducing torch.compile cold start compilation time with regional
  compilation"). As with attention the class of the block changes, to a subclass of the same name: hooks on a block,
  which discriminators read, run outside of what is compiled, and a copy of the network is a network of its own.
- **channels_last**: convolutions read and write images with their channels side by side, as tensor cores do
  (docs.pytorch.org, "Channels Last Memory Format in PyTorch"). Weights stay as they are.
- **TF32**: products of float32 matrices with 10 bits after the point on NVIDIA's tensor cores; convolutions in PyTorch
  take it anyway, unless told not to.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.config.parts import Speed
from diffdistill.errors import ConfigError
from diffdistill.sharding import how

BACKEND = "inductor"
# Of one block: widths, resolutions, batches, with and without gradients, of each role. PyTorch gives up after 8.
SHAPES = 128
TF32_FROM = 8  # compute capability: Ampere


@contextmanager
def kept_math() -> Iterator[None]:
    """What `fast_math` sets is of a process; afterwards it is as it was."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


def fast_math(tf32: bool, benchmark: bool = False) -> None:
    """float32 by TF32 or not, and cuDNN's fastest kernel by trying; within `kept_math`."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, benchmark


def speed_up(
    settings: Speed, device: torch.device, networks: Iterable[tuple[str, nn.Module]], exact: bool = False
) -> str:
    """Apply the settings to the process and to networks by their roles; what they became, for the record.

    exact: whether float32 was asked for by name, so that `tf32: auto` is off. ConfigError where blocks cannot be
    compiled.
    """
    on_cuda = device.type == "cuda"
    tensor_cores = on_cuda and torch.cuda.get_device_capability(device)[0] >= TF32_FROM
    tf32 = on_cuda and _chosen(settings.tf32, tensor_cores and not exact)
    benchmark = on_cuda and _chosen(settings.cudnn_benchmark, True)
    last = _chosen(settings.channels_last, on_cuda)
    if on_cuda:
        fast_math(tf32, benchmark)
    blocks, seen = 0, set[int]()
    for role, network in networks:
        if id(network) in seen:
            continue
        seen.add(id(network))
        if last:
            channels_last(network)
        if settings.compile == "regional" and role != "average":  # which is not in a step
            blocks += compile_blocks(network)
    said = {"compiled blocks": blocks, "channels_last": last, "tf32": tf32, "cudnn.benchmark": benchmark}
    return ", ".join(f"{name} {count}" if type(count) is int else name for name, count in said.items() if count) or "-"


def _chosen(setting: str | bool, auto: bool) -> bool:
    return auto if setting == "auto" else bool(setting)


def channels_last(network: nn.Module) -> None:
    """Let every convolution of a network read images whose channels lie side by side; what follows keeps that order,
    but for blocks of transformers, behind which it would be lost.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and _reorder not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_reorder)


def _reorder(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])


# ---- regional compilation


def compile_blocks(network: nn.Module) -> int:
    """Compile each repeated block of a network, when it is first called; how many there are.

    ConfigError for a network without such blocks, and for one whose weights are sharded.

    >>> from diffdistill import load_model
    >>> teacher = load_model("builtin:fashion_mnist_teacher")
    >>> names = list(teacher.state_dict())
    >>> compile_blocks(teacher.network), list(teacher.state_dict()) == names
    (15, True)
    """
    if how(network) is not None:
        raise ConfigError(
            "speed.compile 'regional' has not been tried with parallel.strategy=fsdp; set one of them to none or ddp"
        )
    blocks = repeated_blocks(network)
    if not blocks:
        raise ConfigError(
            f"speed.compile 'regional' finds no blocks that repeat in a {type(network).__name__}; set it to none"
        )
    _allow_shapes()
    for block in blocks:
        block.__class__ = _compiled(type(block))
    return len(blocks)


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost members of a network's lists that hold at least two layers with weights, and whose class repeats.

    Modules that themselves decide what is computed anew in the backward pass are passed over for what is in them:
    diffusers' `DownBlock2D` for its `ResnetBlock2D`.
    """
    found: list[nn.Module] = []
    _collect(network, found)
    counts = Counter(_name(block) for block in found)
    return [block for block in found if counts[_name(block)] > 1]


def _collect(module: nn.Module, found: list[nn.Module]) -> None:
    for child in module.children():
        listed = isinstance(module, nn.ModuleList | nn.ModuleDict)
        if listed and not hasattr(child, "gradient_checkpointing") and _layers(child) > 1:
            found.append(child)
        else:
            _collect(child, found)


def _layers(module: nn.Module) -> int:
    return sum(any(True for _ in one.parameters(recurse=False)) for one in module.modules())


def _name(block: nn.Module) -> str:
    return f"{type(block).__module__}.{type(block).__qualname__}"


def _allow_shapes() -> None:
    """The step keeps graphs for a second backward pass, which buffers that are given away would forbid."""
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch

    dynamo.recompile_limit = max(dynamo.recompile_limit, SHAPES)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 16 * SHAPES)
    functorch.donated_buffer = False


class _Compiled(nn.Module):
    """A block whose own `forward` was compiled, once for all blocks of its class."""

    _compiled_forward: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiled_forward(*args, **kwargs)


_SUBCLASSES: dict[type, Any] = {}


def _compiled(cls: type[nn.Module]) -> Any:
    if issubclass(cls, _Compiled):
        return cls
    if cls not in _SUBCLASSES:
        body = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        compiled = torch.compile(cls.forward, backend=BACKEND)
        _SUBCLASSES[cls] = type(cls.__name__, (_Compiled, cls), {**body, "_compiled_forward": compiled})
    return _SUBCLASSES[cls]
