"""What a file may ask for before it is believed: memory for what its header announces, or for what it unpacks to."""

from typing import TYPE_CHECKING

from diffdistill.data.looking import refuse
from diffdistill.errors import DataError
from diffdistill.machine import total_memory

if TYPE_CHECKING:
    import numpy as np

FREE = 1 << 27  # bytes that anything may unpack to
DISK_GB = 500.0  # of caches of decoded images and of latents, together, in 1e9 bytes, where nothing is said of them
DISK_SHARE = 0.5  # and of the disk that they and nothing else take, then
RATIO = 200  # times its own size, beyond that; pictures and numbers pack five times, a bomb a thousand times


def check_pixels(height: int, width: int, name: str) -> None:
    """DataError for pictures that have no pixels, which an array can announce."""
    if height < 1 or width < 1:
        raise DataError(f"{name} holds images of {width}x{height} pixels: give some with pixels")


def check_range(pixels: "np.ndarray", name: str) -> None:
    """DataError for pictures of the values 0 and 1 alone, of 255: they were cut from fractions, or are masks."""
    if pixels.size and pixels.max() == 1:
        refuse(
            f"{name} holds no value but 0 and 1, and images go to 255: multiply them by 255, before they become uint8"
        )


def check_size(unpacked: int, packed: int, name: str) -> None:
    """DataError where `packed` bytes of a file announce so many that they cannot be pictures, or do not fit here."""
    if unpacked > FREE and unpacked > RATIO * packed:
        raise DataError(
            f"{name} announces {unpacked:.3g} bytes and is packed in {packed}: no pictures pack so well, it is "
            "damaged or made to fill the memory; take another"
        )
    if unpacked > total_memory():
        raise DataError(
            f"{name} takes {unpacked / 1e9:.1f} GB of memory, this machine has {total_memory() / 1e9:.1f} GB: "
            "give a smaller set"
        )
