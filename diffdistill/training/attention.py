"""The attention kernels of a run: one policy for all its networks, and what was seen to run."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from diffdistill.denoiser import Denoiser
from diffdistill.parts.attention.kernels import Context, set_attention

Networks = dict[str, tuple[nn.Module, Callable[[], Tensor] | None]]
"""By role: the module whose layers attend, and a pass of it to watch; None: one image, as a UNet is called."""


def layers_of(denoisers: dict[str, Denoiser]) -> Networks:
    """The layers that attend in each denoiser."""
    return {role: (model.layers, model.example_pass) for role, model in denoisers.items()}


def choose_attention(networks: Networks, policy: str, context: Context) -> str:
    """Let every network attend by `policy`; the kernels seen to run, for the record.

    context: the autocast of the passes. Raises ConfigError where a kernel asked for by name does not run.
    """
    chosen: dict[int, Any] = {}  # roles may share their layers
    for layers, example in networks.values():
        if id(layers) not in chosen:
            chosen[id(layers)] = set_attention(layers, policy, run=example, context=context)
    by_role = {role: str(chosen[id(layers)]) for role, (layers, _) in networks.items()}
    if len(set(by_role.values())) == 1:
        return next(iter(by_role.values()))
    return "; ".join(f"{role} {kernels}" for role, kernels in by_role.items())
