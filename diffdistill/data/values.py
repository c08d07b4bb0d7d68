"""Values of pictures in arrays: any type and range that can mean one thing only, as uint8 from 0 to 255."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from diffdistill.data.looking import say
from diffdistill.errors import DataError

if TYPE_CHECKING:
    import numpy as np

ROWS = 1024  # pictures that are converted at a time
DARK = 32  # of 255, below which nothing can be seen
ROUNDED = "rounded"
HALF, FULL16 = 127, 65535
ROUNDING = 1e-6  # beyond 0 or 1 by no more than this is the rounding of what made the fractions
BELOW = -0.5  # fractions of -1 to 1 go lower; of 0 to 1 with a few negatives, as sharpening leaves them, do not
REACH = 0.9  # of 1: values that go no further may be of -0.5 to 0.5, or less their mean


def as_bytes(array: "np.ndarray", name: str) -> "np.ndarray":
    """The array as uint8, of its shape.

    | values | are taken |
    |---|---|
    | whole, 0 to 255, of any type | as they are |
    | fractions from 0 to 1, or 1e-6 beyond | times 255, rounded |
    | fractions from -1 to 1, some below -0.5 | (x + 1) * 127.5, rounded |
    | fractions from 0 to 255, some above 127, and no picture from 0 to 1 | rounded |
    | uint16, some above 32767 | divided by 257, as pictures of 16 bits are |

    Of another type than uint8 one sentence says which it was. DataError for anything else: values that are no finite
    numbers, other ranges, fractions with a few negatives, 0 and 1 alone, what would be black all over, booleans and
    what is no number.

    >>> import numpy as np
    >>> as_bytes(np.array([0, 0.25, 1], np.float32), "mine")
    array([  0,  64, 255], dtype=uint8)
    """
    import numpy as np

    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "fiu" or not array.size:
        raise DataError(f"{name} is of type {array.dtype}: pictures are whole numbers, 0 to 255, or fractions")
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(low) or not np.isfinite(high):
        wrong = array.size - int(np.isfinite(array).sum())
        raise DataError(f"{name} has {wrong} values that are no finite numbers: mend them, or take the pictures out")
    fractions = array.dtype.kind == "f" and any((part % 1).any() for part in _parts(array))
    meant = _meaning(low, high, fractions, array.dtype == np.dtype("u2").newbyteorder(array.dtype.byteorder))
    if meant is None:
        raise DataError(f"{name} is of type {array.dtype}, {_advice(low, high, fractions)}")
    how, function = meant
    if how == ROUNDED:
        _check_each(array, low, high, name)
    if how:
        say(f"{name} is of type {array.dtype} with values from {low:.4g} to {high:.4g}, {how}")
    result = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), ROWS):
        part = array[start : start + ROWS]
        result[start : start + ROWS] = np.rint(function(part.astype(np.float64)))
    return result


def _parts(array: "np.ndarray") -> "list[np.ndarray]":
    return [array[start : start + ROWS] for start in range(0, len(array), ROWS)]


def _meaning(
    low: float, high: float, fractions: bool, sixteen: bool
) -> "tuple[str, Callable[[np.ndarray], np.ndarray]] | None":
    """What is said of values, and how they become 0 to 255; None where they may mean several things, or nothing."""
    if low >= 0 and high <= 255 and high > 1 and not fractions:
        return "taken as they are", lambda x: x
    if low >= -ROUNDING and fractions and DARK / 255 <= high <= 1 + ROUNDING:
        return "taken times 255", lambda x: x * 255
    if low < BELOW and fractions and REACH <= max(-low, high) <= 1 + ROUNDING:
        return "taken as (x + 1) * 127.5", lambda x: (x + 1) * 127.5
    if low >= 0 and fractions and HALF < high <= 255:
        return ROUNDED, lambda x: x
    if sixteen and high > FULL16 // 2:
        return "divided by 257", lambda x: x / 257
    return None


def _check_each(array: "np.ndarray", low: float, high: float, name: str) -> None:
    """DataError for a picture from 0 to 1 among those from 0 to 255, which would be black."""
    for start, part in zip(range(0, len(array), ROWS), _parts(array), strict=True):
        highest = part.max(axis=tuple(range(1, part.ndim)))
        for place in ((highest >= DARK / 255) & (highest <= 1 + ROUNDING)).nonzero()[0]:
            if (part[place] % 1).any():
                raise DataError(
                    f"{name} is of type {array.dtype}, with values from {low:.4g} to {high:.4g}, and image "
                    f"{start + place} goes up to {highest[place]:.4g} alone: bring all pictures to one range"
                )


def _advice(low: float, high: float, fractions: bool) -> str:
    between = f"with values from {low:.4g} to {high:.4g}"
    if low >= 0 and high <= 1 and not fractions:
        return f"and holds no value but {low:g} and {high:g}: multiply it by 255 if 1 is white"
    if low >= 0 and high <= 1:
        return f"{between}, which is nearly black from 0 to 1: bring it to the whole range"
    if BELOW <= low < 0 and fractions and high <= 1 + ROUNDING:
        return (
            f"{between}, which may mean several things: cut them to 0 to 1 if 0 is black, or bring them to -1 to 1 if "
            "-1 is"
        )
    return f"{between}, which may mean several things: bring them to 0 to 255, and save them as uint8"
