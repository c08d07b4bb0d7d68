"""One-step generators from diffusion models.

Importing this package loads nothing heavy and changes nothing: `Denoiser` and with it torch come at first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.denoiser import Denoiser

__version__ = "0.1.0"
__all__ = ["Denoiser", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Denoiser":
        from diffdistill.denoiser import Denoiser

        return Denoiser
    raise AttributeError(f"module 'diffdistill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
