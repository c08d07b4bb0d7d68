"""One-step generators from diffusion models.

    run = diffdistill.distill("fashion_mnist/dmd2", output_dir="runs/mine", student__steps=2)

Importing this package loads nothing heavy and changes nothing: its names, and with them torch, come at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.api import align, distill, train
    from diffdistill.denoiser import Denoiser
    from diffdistill.evaluation.run import evaluate
    from diffdistill.pipelines.load import load_model
    from diffdistill.sampling.run import sample

__version__ = "0.1.0"
__all__ = ["Denoiser", "__version__", "align", "distill", "evaluate", "load_model", "sample", "train"]

_HOMES = {
    "Denoiser": "diffdistill.denoiser",
    "align": "diffdistill.api",
    "distill": "diffdistill.api",
    "evaluate": "diffdistill.evaluation.run",
    "load_model": "diffdistill.pipelines.load",
    "sample": "diffdistill.sampling.run",
    "train": "diffdistill.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'diffdistill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
