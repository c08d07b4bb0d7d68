"""Networks that diffusers lacks, and parts that fit networks it has. Nothing is imported until it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.models.uvit import UViT
    from diffdistill.parts.edm.dhariwal import DhariwalUNet
    from diffdistill.parts.edm.song import SongUNet
    from diffdistill.parts.scalelong.scaling import apply_scalelong, load_scaled, remove_scalelong

__all__ = ["DhariwalUNet", "SongUNet", "UViT", "apply_scalelong", "load_scaled", "remove_scalelong"]

_HOME = {
    "DhariwalUNet": "diffdistill.parts.edm.dhariwal",
    "SongUNet": "diffdistill.parts.edm.song",
    "UViT": "diffdistill.models.uvit",
    "apply_scalelong": "diffdistill.parts.scalelong.scaling",
    "load_scaled": "diffdistill.parts.scalelong.scaling",
    "remove_scalelong": "diffdistill.parts.scalelong.scaling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffdistill.models' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
