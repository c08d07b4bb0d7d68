"""The layer that writes a network's output: which it is, and that it computes in float32."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

LAST_LAYERS = ("conv_out", "out_conv", "proj_out")
"""What diffusers' networks and EDM's call the layer that writes their output."""


def last_layer(network: nn.Module) -> nn.Module | None:
    """The layer that writes a network's output; None if it goes by no known name."""
    for name in LAST_LAYERS:
        layer = getattr(network, name, None)
        if isinstance(layer, nn.Module):
            return layer
    decoder = getattr(network, "dec", None)  # EDM's DDPM++
    names = [name for name in decoder if name.endswith("_aux_conv")] if isinstance(decoder, nn.ModuleDict) else []
    return decoder[names[-1]] if names else None  # type: ignore[index]


@contextlib.contextmanager
def float32_output(network: nn.Module) -> Iterator[None]:
    """Within, the network's last layer computes in float32, under autocast and after layers of half precision too.

    Teacher and critic differ by a few per cent, and an output that is rounded to bfloat16 keeps eight bits of each.
    """
    layer = last_layer(network)
    if layer is None:
        yield
        return
    outside: list[Any] = []

    def enter(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        outside.append(torch.autocast(inputs[0].device.type, enabled=False))
        outside[-1].__enter__()
        return tuple(x.float() if x.element_size() < 4 else x for x in inputs)

    def leave(_layer: nn.Module, _inputs: Any, _output: Any) -> None:
        if outside:  # called too where the pass before it was broken off
            outside.pop().__exit__(None, None, None)

    handles = layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
