"""Images, labels and texts from any DATA: one reader, one tensor, one order."""

from diffdistill.data.load import ImageSet, fingerprint, load_images
from diffdistill.data.order import batch_indices
from diffdistill.data.pixels import to_model_range, to_uint8

__all__ = ["ImageSet", "batch_indices", "fingerprint", "load_images", "to_model_range", "to_uint8"]
