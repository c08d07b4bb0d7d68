"""`load_images`: from a DATA argument to its images, labels and texts."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from diffdistill import processes
from diffdistill.data.cached import cached_images, labels_of, texts_of
from diffdistill.data.identity import with_labels
from diffdistill.data.keep import PLACES, choose
from diffdistill.data.looking import say, unreadable
from diffdistill.data.order import batch_indices
from diffdistill.data.pixels import COLOURS, stack, to_model_range
from diffdistill.data.rows import Images, Rows, ahead, rows_read
from diffdistill.data.source import Entries
from diffdistill.data.stream import FromArray, Streamed
from diffdistill.data.wanted import Wanted
from diffdistill.data.workers import in_order
from diffdistill.errors import DataError

AHEAD = 2  # steps whose images are decoded while one is trained, where they are not kept
Pixels = TypeVar("Pixels", bound=Images, covariant=True)


@dataclass(frozen=True)
class ImageSet(Generic[Pixels]):
    """A set of images.

    images: uint8 (N, C, H, W), C is 1 (gray) or 3 (RGB): a tensor, or `Rows` that are read as they are asked for.
    labels: int64 (N,), or None. texts: N captions, or None. class_names: names of the classes where the data has them.
    name: DATA as it was given. fingerprint: see `fingerprint`; `files-...` where not all images were decoded. classes:
    how many the whole set counts, where these are the first images of it. origin: what was asked for.

    >>> from diffdistill.data import load_images
    >>> emoji: ImageSet = load_images("builtin:emoji", split="held_out")
    >>> len(emoji), emoji.images.shape, emoji.texts[0]
    (190, torch.Size([190, 3, 32, 32]), 'a noto style emoji of cow')
    >>> x0, labels = emoji.draw(size=4, seed=0, step=0)  # the first batch of a training
    >>> x0.shape, bool(x0.abs().max() <= 1)
    (torch.Size([4, 3, 32, 32]), True)
    """

    images: Pixels
    labels: Tensor | None
    texts: tuple[str, ...] | None
    class_names: tuple[str, ...] | None
    name: str
    fingerprint: str
    classes: int | None = None
    origin: Wanted | None = None

    def __len__(self) -> int:
        return len(self.images)

    def draw(
        self, size: int, seed: int, step: int, flip: bool = False, rows: slice | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`(images (B, C, H, W) in [-1, 1], labels)` of one step, a function of (seed, step); half mirrored if `flip`.

        The mirroring is drawn from torch's own generator. rows: the images that are looked at, as of one of several
        processes; of images that are not in memory the others are not read, and come black. None: all.
        """
        chosen = batch_indices(len(self.images), size, seed, step)
        x0 = to_model_range(rows_read(self.images, chosen, rows))
        for later in range(step + 1, step + 1 + AHEAD if isinstance(self.images, Rows) else step + 1):
            following = batch_indices(len(self.images), size, seed, later)
            ahead(self.images, following[rows or slice(0, size)].tolist())
        if flip:
            x0 = torch.where(torch.rand(size, 1, 1, 1) < 0.5, x0.flip(-1), x0)
        return x0, None if self.labels is None else self.labels[chosen]

    @property
    def num_classes(self) -> int | None:
        """Number of classes: of the names where there are some, else the highest label and one, also of images that
        `limit` left out.
        """
        if self.labels is None:
            return None
        return len(self.class_names) if self.class_names else max(int(self.labels.max()) + 1, self.classes or 0)


@overload
def load_images(
    data: str,
    *,
    split: str = "train",
    image_size: int | None = None,
    limit: int | None = None,
    channels: int | None = None,
    keep: Literal["memory"] = "memory",
    workers: int | None = None,
    captions: str | None = None,
) -> ImageSet[Tensor]: ...


@overload
def load_images(
    data: str,
    *,
    split: str = "train",
    image_size: int | None = None,
    limit: int | None = None,
    channels: int | None = None,
    keep: str,
    workers: int | None = None,
    disk_gb: float | None = None,
    captions: str | None = None,
) -> ImageSet[Images]: ...


def load_images(
    data: str,
    *,
    split: str = "train",
    image_size: int | None = None,
    limit: int | None = None,
    channels: int | None = None,
    keep: str = "memory",
    workers: int | None = None,
    disk_gb: float | None = None,
    captions: str | None = None,
) -> ImageSet[Images]:
    """Reads DATA: a folder, parquet, zip, npz or IDX path, `builtin:NAME`, or a Hub data set id.

    data: the path or name. split: of a set that has several (a set without is all `train`).
    image_size: resize the shorter side to so many pixels and cut out the middle; None: images must be of one size.
    limit: use the first so many images. channels: what the model takes, 1 or 3; None: any.
    keep: where decoded images are: `memory`, a tensor; `disk`, a cache that later calls find; `source`, decoded as
    they are asked for; `auto`, see `choose`. Of several processes that call together, all get the same. workers:
    processes that decode; None: as many as there are cores; 0: none but this. disk_gb: what
    caches may take; None: 500, or half of what would be free without them.
    Raises DataError, one sentence, for anything missing, unreadable or unfit; DiskError where a cache has no room.

    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pixels = np.zeros((5, 8, 12, 3), np.uint8)
    ...     np.savez(f"{folder}/mine.npz", images=pixels, labels=[0, 1, 1, 2, 2])
    ...     mine = load_images(f"{folder}/mine.npz", image_size=4)  # the middle 8x8, made 4x4
    >>> mine.images.shape, mine.num_classes
    (torch.Size([5, 3, 4, 4]), 3)
    >>> load_images("builtin:emoji", split="held_out", channels=1)
    Traceback (most recent call last):
    diffdistill.errors.DataError: builtin:emoji is RGB (3 channels), but the model takes grayscale (1 channel): ...
    """
    if keep not in PLACES:
        raise DataError(f"keep is {keep!r}: choose {', '.join(PLACES)}")
    for key, value in (("image_size", image_size), ("limit", limit)):
        if value is not None and value < 1:
            raise DataError(f"{key} is {value}: it must be at least 1")
    wanted = Wanted(data, split, image_size, limit, captions)
    try:
        where = processes.lead(lambda: choose(wanted, disk_gb)) if keep == "auto" else keep
        images = _kept(wanted, where, channels, workers, disk_gb)
    except OSError as error:
        raise unreadable(error, data) from error
    have = images.images.shape[1]
    if channels is not None and channels != have:
        raise DataError(
            f"{data} is {COLOURS[have]}, but the model takes {COLOURS.get(channels, f'{channels} channels')}: convert "
            "the images or choose another model"
        )
    return images


def _kept(
    wanted: Wanted, where: str, channels: int | None, workers: int | None, disk_gb: float | None
) -> ImageSet[Any]:
    if where == "disk":
        return _on_disk(wanted, workers, disk_gb)
    return _streamed(wanted, channels, workers) if where == "source" else _in_memory(wanted, workers)


def _in_memory(wanted: Wanted, workers: int | None) -> ImageSet[Tensor]:
    decoded = partial(in_order, workers=workers)
    pixels = stack(wanted.images, wanted.count, wanted.image_size, wanted.data, decoded)
    digest = fingerprint(pixels, wanted.labels, wanted.texts)
    return _as_set(wanted, torch.from_numpy(pixels), digest)


def _streamed(wanted: Wanted, channels: int | None, workers: int | None) -> ImageSet[Rows]:
    """channels: what the model takes; of a set that looked gray and is taken as RGB all images become RGB."""
    source = wanted.images
    rows: Rows | None = None
    if isinstance(source, np.ndarray):
        rows = FromArray(source, wanted.count, wanted.image_size)
    elif isinstance(source, Entries):
        height, width, found = wanted.looked_at()
        shape = (wanted.count, max(found, 3 if channels == 3 else 1), height, width)
        rows = Streamed(source, shape, wanted.image_size, wanted.data, wanted.first[0], workers)
    if rows is None:
        raise DataError(
            f"{wanted.data} is of a kind that is read from its start to its end alone: set data.keep to memory or disk"
        )
    return _as_set(wanted, rows, wanted.content(wanted.labels, wanted.texts))


def _on_disk(wanted: Wanted, workers: int | None, disk_gb: float | None) -> ImageSet[Rows]:
    """The images of the cache; of a set that is in one already nothing is opened."""
    stored = cached_images(wanted, workers, disk_gb)
    wanted.know(stored.about.get("content"))
    about, labels, names = stored.about, labels_of(stored), stored.about["class_names"]
    if not wanted.is_open:  # else its reader has just said it
        for sentence in about["said"]:
            say(sentence)
    return ImageSet(
        images=stored,
        labels=None if labels is None else torch.from_numpy(labels),
        texts=texts_of(stored),
        class_names=None if names is None else tuple(names),
        name=wanted.data,
        fingerprint=about["fingerprint"],
        classes=about["classes"],
        origin=wanted,
    )


def _as_set(wanted: Wanted, images: Any, digest: str) -> ImageSet[Any]:
    return ImageSet(
        images=images,
        labels=None if wanted.labels is None else torch.from_numpy(wanted.labels),
        texts=wanted.texts,
        class_names=wanted.source.class_names,
        name=wanted.data,
        fingerprint=digest,
        classes=wanted.classes,
        origin=wanted,
    )


def fingerprint(images: np.ndarray, labels: np.ndarray | None, texts: tuple[str, ...] | None = None) -> str:
    """SHA-256 of the shape (int64, little-endian), the pixels (N, C, H, W), labels (int64) and texts (UTF-8).

    images: uint8 (N, C, H, W); labels: (N,). Equal where two sets are, whatever format or place they were read from.

    >>> import hashlib
    >>> import numpy as np
    >>> images = np.arange(2 * 3 * 8 * 8, dtype=np.uint8).reshape(2, 3, 8, 8)
    >>> content = np.array([2, 3, 8, 8], "<i8").tobytes() + images.tobytes()
    >>> fingerprint(images, None) == hashlib.sha256(content).hexdigest()
    True
    """
    digest = hashlib.sha256(np.asarray(images.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(images).data)
    with_labels(digest, labels, texts)
    return digest.hexdigest()
