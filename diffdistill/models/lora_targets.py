"""Which layers of a network low-rank adapters go on, for every way of adding them."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from diffdistill.errors import ConfigError


def target_layers(network: nn.Module, targets: Sequence[str]) -> dict[str, Any]:
    """Linear layers and convolutions whose name is a target or ends in `.target`, by name."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and any(name == target or name.endswith(f".{target}") for target in targets)
    }


def check_targets(network: nn.Module, targets: Sequence[str]) -> None:
    """Every target names at least one layer that can be adapted: a linear or convolutional one."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            ends = sorted({name.rpartition(".")[2] for name in layers if not name.rpartition(".")[2].isdigit()})
            near = get_close_matches(target, ends, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"names of layers end in {', '.join(ends)}"
            raise ConfigError(f"LoRA target '{target}' matches no linear or convolutional layer; {hint}")
