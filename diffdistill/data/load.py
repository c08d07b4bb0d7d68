"""`load_images`: from a DATA argument to one uint8 tensor."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffdistill.data.formats import open_source
from diffdistill.data.looking import refuse, unreadable
from diffdistill.data.order import batch_indices
from diffdistill.data.pixels import stack, to_model_range
from diffdistill.data.source import Source
from diffdistill.errors import DataError

COLOURS = {1: "grayscale (1 channel)", 3: "RGB (3 channels)"}


@dataclass(frozen=True)
class ImageSet:
    """A set of images, decoded once.

    images: uint8 (N, C, H, W), C is 1 (gray) or 3 (RGB). labels: int64 (N,), or None. texts: N captions, or None.
    class_names: names of the classes where the data has them. name: DATA as it was given.
    fingerprint: see `fingerprint`. classes: how many the whole set counts, where these are the first images of it.

    >>> from diffdistill.data import load_images
    >>> emoji: ImageSet = load_images("builtin:emoji", split="held_out")
    >>> len(emoji), emoji.images.shape, emoji.texts[0]
    (190, torch.Size([190, 3, 32, 32]), 'a noto style emoji of cow')
    >>> x0, labels = emoji.draw(size=4, seed=0, step=0)  # the first batch of a training
    >>> x0.shape, bool(x0.abs().max() <= 1)
    (torch.Size([4, 3, 32, 32]), True)
    """

    images: Tensor
    labels: Tensor | None
    texts: tuple[str, ...] | None
    class_names: tuple[str, ...] | None
    name: str
    fingerprint: str
    classes: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, size: int, seed: int, step: int, flip: bool = False) -> tuple[Tensor, Tensor | None]:
        """`(images (B, C, H, W) in [-1, 1], labels)` of one step, a function of (seed, step); half mirrored if `flip`.

        The mirroring is drawn from torch's own generator.
        """
        chosen = batch_indices(len(self.images), size, seed, step)
        x0 = to_model_range(self.images[chosen])
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


def load_images(
    data: str,
    *,
    split: str = "train",
    image_size: int | None = None,
    limit: int | None = None,
    channels: int | None = None,
) -> ImageSet:
    """Reads DATA: a folder, parquet, zip, npz or IDX path, `builtin:NAME`, or a Hub data set id.

    data: the path or name. split: of a set that has several (a set without is all `train`).
    image_size: resize the shorter side to so many pixels and cut out the middle; None: images must be of one size.
    limit: use the first so many images. channels: what the model takes, 1 or 3; None: any.
    Raises DataError, one sentence, for anything missing, unreadable or unfit.

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
    for key, value in (("image_size", image_size), ("limit", limit)):
        if value is not None and value < 1:
            raise DataError(f"{key} is {value}: it must be at least 1")
    try:
        source, count = opened(data, split, limit)
        pixels = stack(source.images, count, image_size, data)
    except OSError as error:
        raise unreadable(error, data) from error
    if channels is not None and channels != pixels.shape[1]:
        raise DataError(
            f"{data} is {COLOURS[pixels.shape[1]]}, but the model takes "
            f"{COLOURS.get(channels, f'{channels} channels')}: convert the images or choose another model"
        )
    labels = None if source.labels is None else source.labels[:count]
    texts = None if source.texts is None else source.texts[:count]
    return ImageSet(
        images=torch.from_numpy(pixels),
        labels=None if labels is None else torch.from_numpy(labels),
        texts=texts,
        class_names=source.class_names,
        name=data,
        fingerprint=fingerprint(pixels, labels, texts),
        classes=None if source.labels is None else int(source.labels.max()) + 1,
    )


def opened(data: str, split: str, limit: int | None) -> tuple[Source, int]:
    """A set, not decoded, and how many of its images are used; raises DataError, and OSError, see `unreadable`."""
    source = open_source(data, split)
    if source.count == 0:
        raise DataError(f"{data} holds no images")
    if limit is not None and limit > source.count:
        refuse(f"{data} has {source.count} images, but {limit} were asked for: lower the limit")
    return source, min(limit or source.count, source.count)


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
    if labels is not None:
        digest.update(b"labels" + labels.astype("<i8").tobytes())
    for text in texts or ():
        digest.update(b"text" + text.encode() + b"\0")
    return digest.hexdigest()
