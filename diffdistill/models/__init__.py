"""Networks that diffusers lacks, and parts that fit networks it has. Nothing is imported until it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.models.edm_dhariwal import DhariwalUNet
    from diffdistill.models.edm_song import SongUNet
    from diffdistill.models.scalelong import apply_scalelong, load_scaled, remove_scalelong
    from diffdistill.models.uvit import UViT

__all__ = ["DhariwalUNet", "SongUNet", "UViT", "apply_scalelong", "load_scaled", "remove_scalelong"]

_HOME = {
    "DhariwalUNet": "edm_dhariwal",
    "SongUNet": "edm_song",
    "UViT": "uvit",
    "apply_scalelong": "scalelong",
    "load_scaled": "scalelong",
    "remove_scalelong": "scalelong",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffdistill.models' has no attribute '{name}'")
    return getattr(import_module(f"diffdistill.models.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
