"""Low-rank adapters of several roles on one copy of frozen weights (2106.09685): W + (alpha / rank) B A.

An adapter is a forward hook on its layers, so the network's tree, names and state dict stay as they are, the teacher
is the network itself, and changing the role costs one assignment. A block that checkpointing computes anew remembers
the role it was first computed in: student, teacher and critic may have their passes in one graph.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from torch.utils.checkpoint import checkpoint

from diffdistill.loading import load_whole
from diffdistill.models.lora_targets import check_targets, target_layers

SEPARATOR = "/"  # parameters of torch may not have dots in their names


class LowRank(nn.Module):
    """The matrices A `(rank, in)` and B `(out, rank)` of one role's layers, float32.

    Of convolutions A has their kernel and B is 1x1. B is 0: at the start the network is unchanged. A is drawn as a
    linear layer's weights are, or from a Gaussian of that standard deviation.
    """

    def __init__(
        self, network: nn.Module, rank: int, alpha: float | None, targets: Sequence[str], std: float | None = None
    ):
        super().__init__()
        check_targets(network, targets)
        self.scale = (rank if alpha is None else alpha) / rank
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, layer in target_layers(network, targets).items():
            out, *shape = shape_of(layer)
            down = torch.empty(rank, *shape)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5)) if std is None else nn.init.normal_(down, std=std)
            key = name.replace(".", SEPARATOR)
            self.down[key] = nn.Parameter(down.to(layer.weight.device))
            self.up[key] = nn.Parameter(torch.zeros(out, rank, *[1] * (len(shape) - 1), device=layer.weight.device))

    @property
    def layers(self) -> list[str]:
        return [key.replace(SEPARATOR, ".") for key in self.down]

    def output(self, name: str, layer: nn.Module, x: Tensor) -> Tensor | None:
        """What the adapter adds to the output of a layer; None if it has none there."""
        key = name.replace(".", SEPARATOR)
        if key not in self.down:
            return None
        down, up = self.down[key], self.up[key]
        # Autocast casts by itself, and keeps one copy for all layers; on the meta device there is none.
        if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
            x = x.to(down.dtype)
        if isinstance(layer, nn.Conv2d):
            inner = conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
            return self.scale * conv2d(inner, up)
        return self.scale * linear(linear(x, down), up)

    def change(self, name: str) -> Tensor:
        """(alpha / rank) B A in the shape of the layer's weight; B is scaled first, as in `tensors`: who fuses those
        has these numbers to the last bit.
        """
        key = name.replace(".", SEPARATOR)
        down, up = self.down[key], self.up[key]
        return ((self.scale * up).flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def shape_of(layer: Any) -> tuple[int, ...]:
    """`(out, in, ...)` of a layer's weight, which may be packed (`quantize`)."""
    return (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else tuple(layer.weight.shape)


class SharedWeights:
    """A frozen network that several adapters use in turn; `active` is the one in use, None for the network itself."""

    def __init__(self, network: Any):
        self.network = network.requires_grad_(False)
        self.active: LowRank | None = None
        self._hooked: set[str] = set()

    def __deepcopy__(self, _memo: Any) -> "SharedWeights":
        return self

    def adapted(
        self, rank: int, alpha: float | None, targets: Sequence[str], std: float | None = None
    ) -> "AdaptedNetwork":
        """The network with a new adapter."""
        low_rank = LowRank(self.network, rank, alpha, targets, std)
        for name in low_rank.layers:
            if name not in self._hooked:
                self.network.get_submodule(name).register_forward_hook(self._hook(name))
                self._hooked.add(name)
        return AdaptedNetwork(self, low_rank)

    def _hook(self, name: str) -> Callable[..., Tensor | None]:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            more = None if self.active is None else self.active.output(name, layer, inputs[0])
            return None if more is None else output + more.to(output.dtype)

        return add

    @contextmanager
    def using(self, low_rank: LowRank | None) -> Iterator[None]:
        before, self.active = self.active, low_rank
        try:
            yield
        finally:
            self.active = before

    def checkpointed(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """What diffusers calls a block with where activations are computed anew: in the role of the first time."""
        role = self.active

        def again(*values: Any) -> Any:
            with self.using(role):
                return function(*values)

        return checkpoint(again, *inputs, use_reentrant=False)


class AdaptedNetwork(nn.Module):
    """A network with one adapter in use: its parameters are the adapter's, its layers are shared."""

    def __init__(self, shared: SharedWeights, low_rank: LowRank):
        super().__init__()
        self.shared, self.low_rank = shared, low_rank

    @property
    def config(self) -> Any:
        return self.shared.network.config

    @property
    def shared_layers(self) -> nn.Module:
        """The module that names of layers belong to."""
        return self.shared.network

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with self.shared.using(self.low_rank):
            return self.shared.network(*inputs, **named)

    @torch.no_grad()
    def merged(self, source: Path) -> Any:
        """A plain network: the weights in `source`, read anew in float32, and the adapter's product added to them.

        The shared weights may be bfloat16, in which a small change would be lost.
        """
        fresh = load_whole(type(self.shared.network), source)
        for name in self.low_rank.layers:
            fresh.get_submodule(name).weight.add_(self.low_rank.change(name).cpu())
        return fresh

    def tensors(self) -> dict[str, Tensor]:
        """A and B by the names of peft, B with alpha / rank in it, so that a reader needs no alpha."""
        low_rank, tensors = self.low_rank, {}
        for name, key in zip(low_rank.layers, low_rank.down, strict=True):
            tensors[f"{name}.lora_A.weight"] = low_rank.down[key].detach().cpu().contiguous()
            tensors[f"{name}.lora_B.weight"] = (low_rank.scale * low_rank.up[key].detach()).cpu().contiguous()
        return tensors
