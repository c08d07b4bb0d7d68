"""Images, labels, texts and pairs from any DATA: one reader, one tensor, one order. Nothing is imported until used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.data.load import ImageSet, fingerprint, load_images
    from diffdistill.data.order import batch_indices
    from diffdistill.data.pixels import to_model_range, to_uint8

__all__ = ["ImageSet", "batch_indices", "fingerprint", "load_images", "to_model_range", "to_uint8"]

_HOME = dict.fromkeys(("ImageSet", "fingerprint", "load_images"), "load")
_HOME |= {"batch_indices": "order", "to_model_range": "pixels", "to_uint8": "pixels"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffdistill.data' has no attribute '{name}'")
    return getattr(import_module(f"diffdistill.data.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
