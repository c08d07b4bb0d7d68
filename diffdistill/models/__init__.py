"""Networks that diffusers lacks, and parts that fit networks it has. Nothing is imported until it is used."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.models.uvit import UViT
    from diffdistill.parts.edm.networks import DhariwalUNet, SongUNet
    from diffdistill.parts.scalelong import apply_scalelong, load_scaled, remove_scalelong

__all__ = ["DhariwalUNet", "SongUNet", "UViT", "apply_scalelong", "load_scaled", "remove_scalelong"]

_HOME = {
    "DhariwalUNet": "diffdistill.parts.edm.networks",
    "SongUNet": "diffdistill.parts.edm.networks",
    "UViT": "diffdistill.models.uvit",
    "apply_scalelong": "diffdistill.parts.scalelong",
    "load_scaled": "diffdistill.parts.scalelong",
    "remove_scalelong": "diffdistill.parts.scalelong",
    # Pipelines of diffusers look for these beside the class of a network that a folder names.
    "ConfigMixin": "diffusers",
    "ModelMixin": "diffusers",
}
# What folders saved before call the module of an EDM network.
for _name in ("edm_song", "edm_dhariwal"):
    sys.modules[f"{__name__}.{_name}"] = sys.modules[__name__]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffdistill.models' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
