"""The cache of decoded images of a set: made once, and the same to the last bit as the images in memory."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffdistill.data.bounds import DISK_GB, DISK_SHARE
from diffdistill.data.decoder import Place, Written, write
from diffdistill.data.identity import with_labels
from diffdistill.data.looking import looking, say, unreadable
from diffdistill.data.pixels import Lost, check_all, fit_array, several_sizes
from diffdistill.data.source import Entry
from diffdistill.data.stored import ROWS, Stored, cache_sizes, make_room, seal, store, write_rows
from diffdistill.data.wanted import Wanted
from diffdistill.data.workers import PATIENCE, Workers, part_size, piped
from diffdistill.errors import DataError, DiskError
from diffdistill.files import cache_dir, sha256

LABELS, TEXTS = "labels", "texts.json"
FREE = 1 << 30  # bytes that a cache leaves on a disk
KINDS = ("images", "latents")  # folders of caches, which share one bound


class MoreChannels(Exception):
    """An image is RGB after gray ones."""


def cached_images(wanted: Wanted, workers: int | None, disk_gb: float | None) -> Stored:
    """The cache of these images, made where there is none.

    disk_gb: what all caches may take, see `bound_of`; the longest unused are removed. Raises DataError as reading the
    set does, DiskError where there is no room.
    """
    folder = wanted.folder
    if folder is None:
        raise DataError(
            f"{wanted.data} is of a kind whose changes cannot be seen, so no cache of it is kept: set data.keep to "
            "memory or source"
        )

    def check() -> None:
        clear_for(wanted.bytes, disk_gb)
        if reason := no_room(folder.parent, wanted.bytes, disk_gb):
            raise DiskError(f"the images of {wanted.data} are not kept on disk: {reason}")

    return store(
        folder,
        lambda staged: _fill(staged, wanted, workers),
        f"the images of {wanted.data}",
        waiting=lambda: say(f"another process decodes {wanted.data}, and is waited for"),
        check=check,
    )


def caches() -> list[Path]:
    """The folders of caches that share one bound."""
    return [cache_dir() / kind for kind in KINDS]


def bound_of(disk_gb: float | None) -> float:
    """Bytes that all caches may take: as many as are said, else DISK_GB, but half of what is free without them."""
    if disk_gb is not None:
        return disk_gb * 1e9
    without = shutil.disk_usage(_there(cache_dir())).free + sum(cache_sizes(caches()).values())
    return min(DISK_GB * 1e9, DISK_SHARE * without)


def clear_for(need: int, disk_gb: float | None) -> None:
    """Remove the longest unused caches, until `need` more bytes are within the bound; none where they never are."""
    if need <= (most := bound_of(disk_gb)):
        make_room(caches(), need, most)


def _there(place: Path) -> Path:
    return next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())


def no_room(place: Path, need: int, disk_gb: float | None) -> str | None:
    """Why a cache of `need` bytes does not go to a folder, and what to do; None where it does."""
    if disk_gb is not None and need > disk_gb * 1e9:
        return f"it takes {need / 1e9:.1f} GB and data.disk_cache_gb is {disk_gb:g}; raise it, or set data.keep=source"
    there = _there(place)
    free = shutil.disk_usage(there).free
    if need + FREE > free:
        return (
            f"it takes {need / 1e9:.1f} GB and '{there}' has {free / 1e9:.1f} GB free; free some, set "
            f"DIFFDISTILL_CACHE to a folder of another disk, or data.keep=source"
        )
    if need > (most := bound_of(disk_gb)):
        return (
            f"it takes {need / 1e9:.1f} GB and caches have {most / 1e9:.1f} GB, half of what would be free without "
            f"them, or {DISK_GB:g}; set data.disk_cache_gb to what they may take, or data.keep=source"
        )
    return None


def not_writable(place: Path) -> str | None:
    """Why nothing can be written to a folder, which may have to be made first; None where it can."""
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return f"'{there}' cannot be written to; set DIFFDISTILL_CACHE to a folder that can"


def _fill(staged: Path, wanted: Wanted, workers: int | None) -> dict[str, Any]:
    """Write the rows, labels and texts of a set; returns what is said of them."""
    labels, texts = wanted.labels, wanted.texts
    height, width, channels = wanted.first[1]
    content = wanted.content_of_files  # for later starts, which need not read all bytes to know the set
    with looking(goes_on=False) as look:
        digest = hashlib.sha256()
        try:
            try:
                about = _rows(staged, wanted, (channels, height, width), digest, workers)
            except MoreChannels:
                digest = hashlib.sha256()
                about = _rows(staged, wanted.anew(), (3, height, width), digest, workers)
        except FromSource as error:
            raise unreadable(error.error, wanted.data) from error
    if wanted.state_now() not in (None, wanted.state):
        raise DataError(f"{wanted.data} was changed while it was read: start again when nobody writes to it")
    with_labels(digest, labels, texts)
    beside = {}
    if labels is not None:
        (staged / LABELS).write_bytes(labels.astype("<i8").tobytes())
        beside[LABELS] = sha256(staged / LABELS)
    if texts is not None:
        (staged / TEXTS).write_text(json.dumps(texts), "utf-8")
        beside[TEXTS] = sha256(staged / TEXTS)
    return {
        **about,
        "data": wanted.data,
        "fingerprint": digest.hexdigest(),
        "content": content,
        "class_names": wanted.source.class_names,
        "classes": wanted.classes,
        "said": [*wanted.said, *look.said],
        "beside": beside,
    }


class FromSource(Exception):
    """What reading a set raised, told apart from what writing its cache raises."""

    def __init__(self, error: OSError):
        super().__init__(str(error))
        self.error = error


def _told(entries: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from entries
    except OSError as error:
        raise FromSource(error) from error


def _rows(
    staged: Path, wanted: Wanted, shape: tuple[int, int, int], digest: Any, workers: int | None
) -> dict[str, Any]:
    """Write all images as rows (C, H, W); the digest gets their shape and pixels, as that of images in memory does."""
    digest.update(np.array([wanted.count, *shape], "<i8").tobytes())
    images = wanted.images
    with tqdm(total=wanted.count, desc="decoding", unit="image", leave=False, delay=PATIENCE) as bar:
        if isinstance(images, np.ndarray):
            return write_rows(staged, _of_array(images[: wanted.count], shape, digest, bar))
        entries = (entry for entry, _ in zip(_told(images), range(wanted.count), strict=False))
        return _decoded(staged, entries, wanted, shape, digest, workers, bar)


def _of_array(images: np.ndarray, shape: tuple[int, int, int], digest: Any, bar: Any) -> Iterator[np.ndarray]:
    for image in images:
        fitted = image if image.shape[:2] == shape[1:] else fit_array(image, shape[1])
        row = np.ascontiguousarray(fitted.transpose(2, 0, 1))
        digest.update(row.data)
        yield row
        bar.update()


def _decoded(
    staged: Path,
    entries: Iterator[Entry],
    wanted: Wanted,
    shape: tuple[int, int, int],
    digest: Any,
    workers: int | None,
    bar: Any,
) -> dict[str, Any]:
    """Have encoded images written, by workers where it takes long; they are read again for the digest alone."""
    file, size = staged / ROWS, int(np.prod(shape))
    file.write_bytes(b"")
    sums: list[int] = []
    lost = Lost()

    def here(part: list[Entry], first: int) -> Written:
        return write(part, wanted.image_size, Place(str(file), first, shape))

    def there(pool: Workers, part: list[Entry], first: int) -> "Future[Written]":
        return pool.write(part, wanted.image_size, Place(str(file), first, shape))

    with file.open("rb", buffering=0) as written:
        for _, done in piped(entries, part_size(size), here, there, workers):
            _check(done, wanted, shape)
            digest.update(written.read(len(done.sums) * size))
            sums += done.sums
            lost.add(done.lost)
            bar.update(len(done.sums))
    check_all(len(sums), wanted.count, wanted.data)
    for sentence in lost.told(wanted.data):
        say(sentence)
    return seal(staged, sums, shape, "uint8")


def _check(done: Written, wanted: Wanted, shape: tuple[int, int, int]) -> None:
    """Raise what writing some images came upon."""
    if done.disk is not None:
        raise OSError(*done.disk)
    if done.error is not None:
        raise DataError(done.error)
    if done.odd is not None:
        label, other = done.odd
        if tuple(other[:2]) == shape[1:]:
            raise MoreChannels
        raise DataError(several_sizes(wanted.data, wanted.first[0], shape[1:], label, other))


def labels_of(stored: Stored) -> np.ndarray | None:
    """The labels beside the images of a cache, int64 (N,)."""
    file = stored.folder / LABELS
    return np.frombuffer(file.read_bytes(), "<i8").astype(np.int64) if LABELS in stored.about["beside"] else None


def texts_of(stored: Stored) -> tuple[str, ...] | None:
    """The texts beside the images of a cache."""
    file = stored.folder / TEXTS
    return tuple(json.loads(file.read_text("utf-8"))) if TEXTS in stored.about["beside"] else None
