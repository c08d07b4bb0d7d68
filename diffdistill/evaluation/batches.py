"""Images to measure, from batches of any size."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from diffdistill.data.rows import Rows
from diffdistill.errors import DataError
from diffdistill.evaluation.resize import check_images

Batches = Tensor | Rows | Iterable[Tensor] | Iterable[tuple[Tensor, Tensor | None]]


def labelled(batches: Batches, labels: Tensor | None, limit: int | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(images, labels) of each batch, the first `limit` images; DataError where there are fewer."""
    done = 0
    for batch in batches.split(1000) if isinstance(batches, Tensor | Rows) else batches:
        images, own = batch if isinstance(batch, tuple) else (batch, None)
        check_images(images)
        if own is None and labels is not None:
            own = labels[done : done + len(images)]
        keep = len(images) if limit is None else min(len(images), limit - done)
        if keep:
            yield images[:keep], None if own is None else own[:keep]
        done += keep
        if done == limit:
            return
    if limit is not None:
        raise DataError(f"{limit} images were asked for and there are {done}: lower the number or give more images")


def rebatched(
    pairs: Iterable[tuple[Tensor, Tensor | None]], size: int, resizes: bool
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The same images in batches of exactly `size`, so that features do not depend on the caller's batches.

    A batch ends early where the shape changes; an extractor that `resizes` by a chosen mode may see several sizes.
    """
    images: list[Tensor] = []
    labels: list[Tensor | None] = []
    shape = None

    def joined() -> tuple[Tensor, Tensor | None]:
        known = [x for x in labels if x is not None]
        return torch.cat(images), torch.cat(known) if len(known) == len(labels) else None

    for batch, own in pairs:
        if shape is not None and batch.shape[1:] != shape:
            if batch.shape[2:] != shape[1:] and not resizes:
                sizes = " and ".join("x".join(map(str, s[-2:])) for s in (shape, batch.shape))
                raise DataError(f"the images have sizes {sizes} (H x W): choose --fid-mode tf or clean")
            if images:
                yield joined()
            images, labels = [], []
        shape = batch.shape[1:]
        images.append(batch)
        labels.append(own)
        while sum(map(len, images)) >= size:
            whole, known = joined()
            yield whole[:size], None if known is None else known[:size]
            images, labels = [whole[size:]], [None if known is None else known[size:]]
    if sum(map(len, images)):
        yield joined()
