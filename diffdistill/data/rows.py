"""Images that are not in memory: what takes their place may be asked for rows, as a tensor of all of them may be."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Images(Protocol):
    """What a set of images is asked for: a uint8 tensor (N, C, H, W), or `Rows` that lie elsewhere."""

    @property
    def shape(self) -> torch.Size: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Tensor: ...
    def split(self, size: int, /) -> Iterable[Tensor]: ...


class Rows(ABC):
    """Rows of one shape and type that are read when they are asked for.

    shape: `(N, ...)`; dtype: of all. A subclass reads rows at given places; indices are those of a tensor's first
    axis.

    >>> class Squares(Rows):
    ...     def take(self, places):
    ...         return torch.tensor([[place**2] for place in places])
    >>> squares = Squares((10, 1))
    >>> squares[torch.tensor([3, -1])], squares[2], len(squares), [len(part) for part in squares.split(4)]
    (tensor([[ 9],
            [81]]), tensor([4]), 10, [4, 4, 2])
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype = torch.uint8):
        self.shape, self.dtype = torch.Size(shape), dtype

    @abstractmethod
    def take(self, places: list[int]) -> Tensor:
        """The rows at places from 0 to N - 1, in the order asked for, in memory of their own."""

    def ahead(self, places: list[int]) -> None:
        """These rows are wanted next: begin to read them, where that can be done beside other work."""
        return None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, int | np.integer):
            return self.take(self._places([int(index)]))[0]
        if isinstance(index, slice):
            return self.take(list(range(*index.indices(len(self)))))
        chosen = torch.as_tensor(index)
        if chosen.dtype == torch.bool:
            chosen = chosen.nonzero()[:, 0]
        return self.take(self._places(chosen.tolist()))

    def _places(self, index: list[int]) -> list[int]:
        places = [place + len(self) if place < 0 else place for place in index]
        if any(not 0 <= place < len(self) for place in places):
            raise IndexError(f"a place is out of the range of {len(self)} rows")
        return places

    def split(self, size: int) -> Iterator[Tensor]:
        """Parts of `size` rows, one after the other; the next one is begun while one is looked at."""
        starts = range(0, len(self), size)
        for start in starts:
            part = self[start : start + size]
            self.ahead(list(range(start + size, min(start + 2 * size, len(self)))))
            yield part


class Coloured(Rows):
    """Gray images as RGB."""

    def __init__(self, images: Images):
        count, _, height, width = images.shape
        super().__init__((count, 3, height, width))
        self.images = images

    def take(self, places: list[int]) -> Tensor:
        return self.images[torch.tensor(places, dtype=torch.int64)].expand(-1, 3, -1, -1).contiguous()

    def ahead(self, places: list[int]) -> None:
        ahead(self.images, places)


def rows_read(images: Images, chosen: Tensor, rows: slice | None) -> Tensor:
    """The chosen images; of those that are not in memory `rows` alone, of which this process has a use, the others
    being zeros.
    """
    if rows is None or not isinstance(images, Rows) or len(chosen[rows]) == len(chosen):
        return images[chosen]
    whole = torch.zeros(len(chosen), *images.shape[1:], dtype=images.dtype)
    if len(chosen[rows]):
        whole[rows] = images[chosen[rows]]
    return whole


def ahead(images: Images, places: list[int]) -> None:
    """Tell images which are wanted next; those in memory are there already."""
    if isinstance(images, Rows) and places:
        images.ahead(places)
