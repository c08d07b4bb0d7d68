"""Which images are wanted: of what DATA, which split, how large and how many, and what a cache of them is called."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import PIL
from PIL import features

from diffdistill.data.formats import known_place, open_source
from diffdistill.data.identity import content_of, files_of, state_of, with_labels
from diffdistill.data.looking import looking, refuse, unreadable
from diffdistill.data.pixels import decode, fit_array
from diffdistill.data.source import Entries, Entry, Source
from diffdistill.data.stored import digest_of
from diffdistill.data.tables import captions_in
from diffdistill.errors import DataError
from diffdistill.files import cache_dir

CACHED = 1  # raised when other pixels come of the same files
CODECS = ("jpg", "webp", "avif", "zlib", "libtiff")
LOOKED_AT = 64  # images, evenly spaced, that say whether a set is gray or RGB where not all are decoded


@dataclass(frozen=True)
class Wanted:
    """Images of a set, not read yet; its files are listed and opened when that is needed, once.

    Raises DataError for what cannot be read.
    """

    data: str
    split: str
    image_size: int | None
    limit: int | None
    captions: str | None = None  # the column of a table that has them, where it is not `text`

    @cached_property
    def path(self) -> Path:
        with told_of(self.data):
            return known_place(self.data)

    @cached_property
    def _files(self) -> tuple[str, list[Path]]:
        with told_of(self.data):
            return files_of(self.data, self.path)

    @cached_property
    def state(self) -> str | None:
        """What changes when a file does; None where that cannot be known."""
        return self.state_now() or self.source.version

    def state_now(self) -> str | None:
        with told_of(self.data):
            return state_of(self._files[1])

    @cached_property
    def folder(self) -> Path | None:
        """Where a cache of these images is or would be; None where nothing would tell that it is out of date."""
        if self.state is None:
            return None
        reader = [CACHED, self._files[0], PIL.__version__, *(features.version(codec) for codec in CODECS)]
        place = os.path.abspath(self.path) if self._files[1] else self.data
        key = [reader, place, self.split, self.image_size, self.limit, self.state]
        return cache_dir() / "images" / digest_of(key if self.captions is None else [*key, self.captions])

    def content(self, labels: np.ndarray | None, texts: tuple[str, ...] | None) -> str:
        """A fingerprint that needs no decoding: of what the files hold, see `content_of`, and of labels and texts.

        labels, texts: those of the images, which a cache gives without opening the set.
        """
        beside = hashlib.sha256()
        with_labels(beside, labels, texts)
        parts = [self.content_of_files, beside.hexdigest(), self.split, self.image_size, self.limit]
        return f"files-{digest_of(parts)}"

    @cached_property
    def content_of_files(self) -> str | None:
        """Of what the files hold, see `content_of`; of a set in a cache that cache knows it, see `know`."""
        files = self._files[1]
        base = self.path if self.path.is_dir() else self.path.parent
        with told_of(self.data):
            return content_of(files, base) if files else self.source.version

    def know(self, content_of_files: str | None) -> None:
        """What the files hold was looked at in this very state of them: they are not read for it again."""
        if content_of_files is not None:
            vars(self)["content_of_files"] = content_of_files

    @cached_property
    def _opened(self) -> tuple[Source, list[str]]:
        with told_of(self.data), looking(goes_on=False) as look, captions_in(self.captions, self.data):
            source, _ = opened(self.data, self.split, self.limit)
        return source, look.said

    @property
    def source(self) -> Source:
        return self._opened[0]

    @cached_property
    def images(self) -> np.ndarray | Iterable[Entry]:
        """Of all of the set, as its reader gives them."""
        return self.source.images

    @property
    def is_open(self) -> bool:
        return "_opened" in vars(self)

    @property
    def said(self) -> list[str]:
        """What the reader warned of."""
        return self._opened[1]

    @property
    def count(self) -> int:
        return min(self.limit or self.source.count, self.source.count)

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.source.labels is None else self.source.labels[: self.count]

    @property
    def texts(self) -> tuple[str, ...] | None:
        return None if self.source.texts is None else self.source.texts[: self.count]

    @property
    def classes(self) -> int | None:
        """How many the whole set counts, of which these may be the first images."""
        return None if self.source.labels is None else int(self.source.labels.max()) + 1

    @cached_property
    def first(self) -> tuple[str, tuple[int, int, int]]:
        """The name of the first image, and its shape (height, width, channels) as it will be."""
        images = self.images
        if isinstance(images, np.ndarray):
            size = self.image_size
            fits = size is None or images.shape[1:3] == (size, size)
            shape = images.shape[1:] if fits else fit_array(images[0], size or 0).shape
            return "image 0", shape
        with told_of(self.data):
            waiting = iter(images)
            name, encoded = next(waiting)
            example = decode(encoded, name, self.image_size)
        if not isinstance(images, Entries):  # it comes once
            vars(self)["images"] = chain([(name, encoded)], waiting)
        return name, example.shape

    @property
    def bytes(self) -> int:
        """What they take decoded, if all are as the first."""
        height, width, channels = self.first[1]
        return self.count * height * width * channels

    def looked_at(self) -> tuple[int, int, int]:
        """Height, width and channels, of which three where one of some images has them."""
        height, width, channels = self.first[1]
        images = self.images
        if channels == 1 and isinstance(images, Entries):
            places = np.unique(np.linspace(0, self.count - 1, min(LOOKED_AT, self.count)).astype(int)).tolist()
            with told_of(self.data):
                channels = max(decode(encoded, name, self.image_size).shape[2] for name, encoded in images.at(places))
        return height, width, channels

    def anew(self) -> "Wanted":
        """The same, to be opened again: some sets can be read through only once."""
        return Wanted(self.data, self.split, self.image_size, self.limit, self.captions)


@contextmanager
def told_of(data: str) -> Iterator[None]:
    """Within, an OSError is told as a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise unreadable(error, data) from error


def opened(data: str, split: str, limit: int | None) -> tuple[Source, int]:
    """A set, not decoded, and how many of its images are used; raises DataError, and OSError, see `unreadable`."""
    source = open_source(data, split)
    if source.count == 0:
        raise DataError(f"{data} holds no images")
    if limit is not None and limit > source.count:
        refuse(f"{data} has {source.count} images, but {limit} were asked for: lower the limit")
    return source, min(limit or source.count, source.count)
