"""Precisions a model is held and computed in, by name; no torch before one is asked for.

Whatever the precision of a network, its levels, its first and last arithmetic (`process`), the layer that writes its
output, samplers, and images are float32.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffdistill.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
OWN = "own"


@dataclass(frozen=True)
class Precision:
    """Of the parts of a model, each a name of torch. `OWN`, of a network: as its files have it, which loses nothing,
    for one that is copied before it is cast.
    """

    network: str = "float32"
    encoders: str = "float32"
    vae: str = "float32"

    @classmethod
    def of(cls, name: "str | Precision | None", device: "str | torch.device") -> "Precision":
        """All parts in the precision of that name on a device; None: float32. ConfigError for one that cannot be.

        >>> Precision.of("bfloat16", "cpu").vae
        'bfloat16'
        >>> Precision.of("int4", "cpu")
        Traceback (most recent call last):
        diffdistill.errors.ConfigError: dtype 'int4' is unknown; choose of auto, float32, bfloat16, float16
        """
        if isinstance(name, Precision):
            return name
        chosen = chosen_name(name, device)
        return cls(chosen, chosen, chosen)


def chosen_name(name: str | None, device: "str | torch.device") -> str:
    """What a name of `PRECISIONS` means on a device: auto is bfloat16 where `fast_bf16` says so, else float32."""
    import torch

    from diffdistill.devices import fast_bf16

    if name is None:
        return "float32"
    if name not in PRECISIONS:
        raise ConfigError(f"dtype '{name:.40}' is unknown; choose of {', '.join(PRECISIONS)}")
    place = torch.device(device)
    if name == "auto":
        return "bfloat16" if fast_bf16(place.type) else "float32"
    if name != "float32" and (problem := lacking(getattr(torch, name), place)) is not None:
        raise ConfigError(f"dtype '{name}' is not computed by {place.type} here ({problem}); use float32 or auto")
    return name


def lacking(dtype: "torch.dtype", device: "torch.device") -> str | None:
    """What a device says that cannot compute in a precision: one call of each kind of layer that networks have."""
    import torch
    from torch.nn import functional

    try:
        with torch.no_grad():
            x = torch.ones(1, 4, 4, 4, dtype=dtype, device=device)
            x = functional.conv2d(x, torch.ones(4, 4, 1, 1, dtype=dtype, device=device))
            x = functional.interpolate(functional.silu(functional.group_norm(x, 2)), scale_factor=2.0)
            words = functional.layer_norm(x.flatten(2), (64,))
            words = functional.scaled_dot_product_attention(words, words, words)
            functional.gelu(functional.linear(words, torch.ones(4, 64, dtype=dtype, device=device))).float().sum()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return " ".join(str(error).split())[:100]
    return None


def dtype_of(network: "nn.Module") -> "torch.dtype":
    """What a network takes and computes in: the precision of its first weight that is a floating number."""
    import torch

    return next((weight.dtype for weight in network.parameters() if weight.is_floating_point()), torch.float32)


def name_of(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")
