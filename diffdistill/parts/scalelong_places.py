"""ScaleLong: where the long skips of a network arrive, and the hooks that scale them there.

Hooks are torch's, not those of diffusers' HookRegistry: a `copy.deepcopy` of a module with such a registry runs the
*original's* forward and weights, so that a moving average of the network would silently be wrong.
"""

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffdistill.errors import ConfigError


class Arrival(NamedTuple):
    """A module that takes long skips. `indices` number them from the input side: 1 the shallowest, N the deepest."""

    module: Any
    argument: str
    position: int
    indices: tuple[int, ...]


class Site(NamedTuple):
    """A residual block of a UNet that reads concat(hidden, skip); the last `channels` channels are skip `index`."""

    resnet: Any
    channels: int
    number: int


def find_arrivals(network: nn.Module) -> list[Arrival]:
    """In the order of the forward pass, deepest skip first. ConfigError if there are no long skips.

    UNets of diffusers hand every up block a tuple of skips, the last `len(resnets)` of those left, so within a tuple
    the shallowest is first. U-ViT and its relatives hand a block with a `skip_linear` one skip.
    """
    takers: list[tuple[nn.Module, str, int]] = []
    up_blocks = getattr(network, "up_blocks", None)
    if isinstance(up_blocks, nn.ModuleList) and hasattr(network, "conv_in"):
        for block in up_blocks:
            if "res_hidden_states_tuple" in parameters_of(block) and hasattr(block, "resnets"):
                resnets: Any = block.resnets
                takers.append((block, "res_hidden_states_tuple", len(resnets)))
    else:
        for module in network.modules():
            if getattr(module, "skip_linear", None) is not None and "skip" in parameters_of(module):
                takers.append((module, "skip", 1))
    if not takers:
        raise ConfigError(
            f"{type(network).__name__} has no long skip connections that ScaleLong can reach; it is for UNets of "
            "diffusers, U-ViT, and transformers whose blocks take a skip"
        )
    return list(_numbered(takers))


def _numbered(takers: list[tuple[nn.Module, str, int]]) -> Iterator[Arrival]:
    left = sum(count for _, _, count in takers)
    for module, argument, count in takers:
        yield Arrival(
            module, argument, parameters_of(module).index(argument), tuple(range(left - count + 1, left + 1))
        )
        left -= count


def parameters_of(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)


def is_concatenated_plainly(module: nn.Module) -> bool:
    """Whether `skip_linear` reads concat(h, skip) as it is, so that a constant folds into its weight."""
    return getattr(module, "skip_linear", None) is not None and getattr(module, "skip_norm", None) is None


def find_sites(network: Any, arrivals: list[Arrival]) -> list[Site]:
    """The residual blocks behind the arrivals. ConfigError unless each has a GroupNorm and a convolution as shortcut.

    The width of a skip is that of the encoder module that made it: conv_in, every resnet, every downsampler.
    """
    makers = [network.conv_in] if hasattr(network, "conv_in") else []
    for block in getattr(network, "down_blocks", ()):
        makers += [*getattr(block, "resnets", ()), *(getattr(block, "downsamplers", None) or ())]
    resnets = [resnet for arrival in arrivals for resnet in getattr(arrival.module, "resnets", ())]
    usable = 0 < len(resnets) == len(makers) and all(
        isinstance(getattr(resnet, "norm1", None), nn.GroupNorm)
        and getattr(resnet, "conv_shortcut", None) is not None
        and getattr(maker, "out_channels", resnet.in_channels) < resnet.in_channels
        for resnet, maker in zip(resnets, reversed(makers), strict=True)
    )
    if not usable:
        raise ConfigError(
            f"position post_norm is for UNets whose up blocks have GroupNorm and a shortcut convolution, which "
            f"{type(network).__name__} has not; use position pre_norm"
        )
    count = len(makers)
    return [Site(resnet, makers[count - 1 - j].out_channels, count - j) for j, resnet in enumerate(resnets)]


class ScaleArgument:
    """Before a module's forward: scale the skip, or every skip of a tuple, that it is given.

    An object and not a closure, so that a deep copy of the network refers to its own copy of the gates.
    """

    def __init__(self, scale: Any, arrival: Arrival):
        self.scale, self.indices = scale, arrival.indices
        self.argument, self.position = arrival.argument, arrival.position

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        given = kwargs[self.argument] if self.argument in kwargs else args[self.position]
        if isinstance(given, tuple):
            skips = zip(given, self.indices, strict=True)
            scaled: Any = tuple(None if s is None else s * self.scale.gate(s, i) for s, i in skips)
        else:
            scaled = given * self.scale.gate(given, self.indices[0])
        if self.argument in kwargs:
            return args, kwargs | {self.argument: scaled}
        return (*args[: self.position], scaled, *args[self.position + 1 :]), kwargs


class ScaleChannels:
    """Scale the last channels, the skip's, of what a norm returns (`after`) or a shortcut is given.

    The gate looks at the input, where the skip is still as the encoder made it.
    """

    def __init__(self, scale: Any, site: Site):
        self.scale, self.channels, self.number = scale, site.channels, site.number

    def __call__(self, module: nn.Module, args: tuple[Tensor], output: Tensor | None = None) -> Tensor:
        hidden = args[0].shape[1] - self.channels
        target = args[0] if output is None else output
        gate = self.scale.gate(args[0][:, hidden:], self.number)
        return torch.cat([target[:, :hidden], target[:, hidden:] * gate], dim=1)
