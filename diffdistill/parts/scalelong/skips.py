"""Where a network's long skips arrive: which module takes them, by which argument, and which skip is which."""

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

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
    found: list[tuple[nn.Module, str, int]] = []
    up_blocks = getattr(network, "up_blocks", None)
    if isinstance(up_blocks, nn.ModuleList) and hasattr(network, "conv_in"):
        for block in up_blocks:
            if "res_hidden_states_tuple" in parameters_of(block) and hasattr(block, "resnets"):
                resnets: Any = block.resnets
                found.append((block, "res_hidden_states_tuple", len(resnets)))
    else:
        for module in network.modules():
            if getattr(module, "skip_linear", None) is not None and "skip" in parameters_of(module):
                found.append((module, "skip", 1))
    if not found:
        raise ConfigError(
            f"{type(network).__name__} has no long skip connections that ScaleLong can reach; it is for UNets of "
            "diffusers, U-ViT, and transformers whose blocks take a skip"
        )
    return list(_numbered(found))


def _numbered(found: list[tuple[nn.Module, str, int]]) -> Iterator[Arrival]:
    left = sum(count for _, _, count in found)
    for module, argument, count in found:
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
