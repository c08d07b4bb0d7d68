"""One-step generators from diffusion models.

Importing this package loads nothing heavy and changes nothing: what it offers, and with it torch, comes at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.denoiser import Denoiser
    from diffdistill.pipelines.load import load_model
    from diffdistill.sampling.run import sample

__version__ = "0.1.0"
__all__ = ["Denoiser", "__version__", "load_model", "sample"]

_HOME = {
    "Denoiser": "diffdistill.denoiser",
    "load_model": "diffdistill.pipelines.load",
    "sample": "diffdistill.sampling.run",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'diffdistill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
