"""Some rows of a stream of any length, no more the first than the last."""

import numpy as np
import torch
from torch import Tensor

from diffdistill.data.order import splitmix_array

GOLDEN = 0x9E3779B97F4A7C15


class StreamSample:
    """Of the images that pass, `room` at random, and which those are; all, where they fit.

    Each image has a random rank by its place alone, and the lowest ranks stay: the same ones whatever the batches.
    """

    def __init__(self, room: int):
        self.room = room
        self.seen = 0
        self._parts: list[tuple[Tensor, ...]] = []  # ranks, places, columns
        self._kept = 0
        self._bound = np.iinfo(np.int64).max

    def add(self, *columns: Tensor) -> None:
        """Rows of the next images: of every column as many."""
        count = len(columns[0])
        places = torch.arange(self.seen, self.seen + count)
        ranks = torch.from_numpy(ranks_of(places.numpy()))
        self.seen += count
        stay = ranks <= self._bound
        self._parts.append((ranks[stay], places[stay], *(column[stay] for column in columns)))
        self._kept += int(stay.sum())
        if self._kept > self.room + max(self.room // 4, count):
            self._prune()

    def rows(self) -> tuple[Tensor, ...]:
        """Places `(M,)`, in order, and the columns at them."""
        self._prune()
        _, places, *columns = self._parts[0]
        order = places.argsort()
        return places[order], *(column[order] for column in columns)

    def _prune(self) -> None:
        whole = tuple(torch.cat(column) for column in zip(*self._parts, strict=True))
        if len(whole[0]) > self.room:
            chosen = whole[0].argsort()[: self.room]
            whole = tuple(column[chosen] for column in whole)
            self._bound = int(whole[0].max())
        self._parts, self._kept = [whole], len(whole[0])


def ranks_of(places: np.ndarray) -> np.ndarray:
    """Random numbers of places, int64: of different places different ones."""
    return splitmix_array((places.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)).view(np.int64)
