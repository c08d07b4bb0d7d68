"""Images that are decoded as they are drawn: for sets that fit neither memory nor disk."""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import torch
from torch import Tensor

from diffdistill.data.decoder import Decoded
from diffdistill.data.looking import unreadable
from diffdistill.data.pixels import COLOURS, fit_array, several_sizes
from diffdistill.data.rows import Rows
from diffdistill.data.source import Entries, Entry
from diffdistill.data.workers import IMAGES, PART, Workers, usual_workers
from diffdistill.errors import DataError

AHEAD = 2  # lots of rows that are begun before they are wanted
AHEAD_BYTES = 1 << 28  # and bytes of them, decoded, from which on it is one lot


class Streamed(Rows):
    """Encoded images, decoded by workers when they are asked for, or ahead of that.

    first: the name of an image of that shape. Raises DataError, as reading a set does, where an image cannot be read,
    has other sizes, or is RGB among gray ones.
    """

    def __init__(
        self,
        entries: Entries,
        shape: Sequence[int],
        image_size: int | None,
        name: str,
        first: str,
        workers: int | None,
    ):
        super().__init__(shape)
        self.entries, self.image_size, self.name, self.first = entries, image_size, name, first
        self.workers = Workers(usual_workers() if workers is None else max(1, workers))
        self._asked: OrderedDict[tuple[int, ...], list[tuple[list[Entry], Future[Decoded]]]] = OrderedDict()

    def take(self, places: list[int]) -> Tensor:
        rows = np.empty((len(places), *self.shape[1:]), np.uint8)
        done = 0
        for entries, future in self._asked.pop(tuple(places), None) or self._ask(places):
            decoded = future.result()
            for (label, _), image in zip(entries, decoded.images, strict=False):
                rows[done] = self._row(image, label)
                done += 1
            if decoded.error is not None:
                raise DataError(decoded.error)
        return torch.from_numpy(rows)

    def ahead(self, places: list[int]) -> None:
        key = tuple(places)
        if not places or key in self._asked:
            return
        most = AHEAD if AHEAD * len(places) * self._row_bytes() <= AHEAD_BYTES else 1
        while len(self._asked) >= most:  # nobody came for it: another order is drawn now
            for _, future in self._asked.popitem(last=False)[1]:
                future.cancel()
        self._asked[key] = self._ask(places)

    def _ask(self, places: list[int]) -> list[tuple[list[Entry], "Future[Decoded]"]]:
        even = -(-len(places) // (2 * self.workers.count))
        size = max(1, min(even, IMAGES, PART // self._row_bytes()))
        try:
            entries = list(self.entries.at(places))
        except OSError as error:
            raise unreadable(error, self.name) from error
        parts = [entries[start : start + size] for start in range(0, len(entries), size)]
        return [(part, self.workers.submit(part, self.image_size)) for part in parts]

    def _row(self, image: np.ndarray, label: str) -> np.ndarray:
        channels, height, width = self.shape[1:]
        if image.shape[:2] != (height, width):
            raise DataError(several_sizes(self.name, self.first, (height, width), label, image.shape))
        if image.shape[2] > channels:
            raise DataError(
                f"{label} is {COLOURS[image.shape[2]]} in a set that looked {COLOURS[channels]}: set data.keep to "
                "disk or memory, which look at all images first, or convert them to one"
            )
        return image.transpose(2, 0, 1)

    def _row_bytes(self) -> int:
        return int(np.prod(self.shape[1:]))


class FromArray(Rows):
    """Images of an array (N, H, W, C), brought to one size as they are asked for."""

    def __init__(self, images: np.ndarray, count: int, image_size: int | None):
        height, width = images.shape[1:3] if image_size is None else (image_size, image_size)
        super().__init__((count, images.shape[3], height, width))
        self.images = images

    def take(self, places: list[int]) -> Tensor:
        size, images = tuple(self.shape[2:]), self.images
        fitted = [images[i] if images.shape[1:3] == size else fit_array(images[i], size[0]) for i in places]
        rows = np.empty((len(places), *self.shape[1:]), np.uint8)
        for row, image in zip(rows, fitted, strict=True):
            row[:] = image.transpose(2, 0, 1)
        return torch.from_numpy(rows)
