"""Rows on disk: a folder that is written once, read a row at a time, and never taken for whole when it is not.

    rows        the rows one after the other, without a header
    crc32       a uint32 of each row, little-endian
    about.json  shape, type, the SHA-256 of `crc32` and of other files beside it, and what else is told of the rows

Rows are read by `pread` and not mapped: pages that a mapping has touched count as memory of the process. Each is
checked as it is read, so a damaged one is an error and no wrong picture.
"""

import hashlib
import json
import os
import threading
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.data.decoder import write_whole
from diffdistill.data.rows import Rows
from diffdistill.errors import DataError, DiskError
from diffdistill.files import beside, discard, put_in_place, read_json, reason_of, sha256, write_json
from diffdistill.locks import taking_turns

FORMAT = "diffdistill-rows-1"
ROWS, SUMS, ABOUT = "rows", "crc32", "about.json"
TYPES = {"uint8": torch.uint8, "float32": torch.float32}


class Stored(Rows):
    """The rows of a folder, see `open_stored`. Processes and threads may read the same."""

    def __init__(self, folder: Path, about: dict[str, Any], sums: np.ndarray):
        super().__init__(about["shape"], TYPES[about["dtype"]])
        self.folder, self.about = folder, about
        self._sums, self._bytes = sums, int(np.prod(self.shape[1:])) * self.dtype.itemsize
        self._file = (folder / ROWS).open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._turn = threading.Lock()

    def take(self, places: list[int]) -> Tensor:
        rows = np.empty((len(places), self._bytes), np.uint8)
        for row, place in zip(rows, places, strict=True):
            whole = self._read(row.data, place * self._bytes)
            if not whole or zlib.crc32(row.data) != self._sums[place]:
                raise DataError(
                    f"row {place} of the cache '{self.folder}' is damaged: remove that folder, and it is made again"
                )
        return torch.from_numpy(rows).view(self.dtype).view(len(places), *self.shape[1:])

    def _read(self, row: memoryview, place: int) -> bool:
        """Whether the bytes at a place filled the row."""
        done = 0
        while done < len(row):
            if hasattr(os, "preadv"):
                got = os.preadv(self._file.fileno(), [row[done:]], place + done)
            else:
                with self._turn:
                    self._file.seek(place + done)
                    got = self._file.readinto(row[done:]) or 0
            if not got:
                return False
            done += got
        return True


def open_stored(folder: Path) -> Stored | None:
    """The rows of a folder; None where there are none, or not all: a folder that is not whole is no cache."""
    try:
        about = read_json(folder / ABOUT)
        sums = (folder / SUMS).read_bytes()
        count, *shape = about["shape"]
        size = count * int(np.prod(shape)) * np.dtype(about["dtype"]).itemsize
        whole = (
            about["format"] == FORMAT
            and about["dtype"] in TYPES
            and about["crc32"] == hashlib.sha256(sums).hexdigest()
            and len(sums) == 4 * count
            and (folder / ROWS).stat().st_size == size
            and all(sha256(folder / name) == digest for name, digest in about.get("beside", {}).items())
        )
        if not whole:
            return None
        with suppress(OSError):  # when it was last of use
            os.utime(folder / ABOUT)
        return Stored(folder, about, np.frombuffer(sums, "<u4"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def store(
    folder: Path,
    make: Callable[[Path], dict[str, Any]],
    what: str,
    waiting: Callable[[], object] = lambda: None,
    check: Callable[[], object] = lambda: None,
) -> Stored:
    """The rows of a folder, made where there are none: by one process, while others that want the same wait.

    make: fills an empty folder by `write_rows` and returns what `about.json` is to say. It gets another name until it
    is whole, so a process that is killed leaves nothing that could be taken for it. what: is stored, for messages;
    check: called before anything is made, and raises where there is no room.
    Raises DiskError where it cannot be written, and nothing is left.
    """
    if (there := open_stored(folder)) is not None:  # also where nothing can be written
        return there
    with written_to(folder, what):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with taking_turns(folder.with_name(f"{folder.name}.lock"), waiting):
            found = open_stored(folder)
            if found is None:
                remove_leftovers(folder)
                check()
                write_folder(folder, make)
                found = open_stored(folder)
    if found is None:
        raise DiskError(f"what was just written to '{folder}' is not what is read from there; look at that disk")
    return found


@contextmanager
def written_to(folder: Path, what: str) -> Iterator[None]:
    """Within, an OSError is told as DiskError: `what` could not be kept there."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"could not keep {what} in '{folder.parent}' ({reason_of(error)}); free space, set DIFFDISTILL_CACHE to a "
            f"folder with room, or data.keep to memory or source"
        ) from error


def write_folder(folder: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    """Make the rows of a folder, see `store`, whether they are there or not; raises OSError."""
    staged = beside(folder)
    try:
        staged.mkdir()
        about = make(staged)
        write_json(staged / ABOUT, {"format": FORMAT, **about})
        put_in_place(staged, folder)
    finally:
        with suppress(OSError):  # a leftover, removed by the next one that makes it
            discard(staged)


def remove_leftovers(folder: Path) -> None:
    """Take away what killed processes left on its way to this folder; for whoever has the turn."""
    for path in folder.parent.glob(f".{folder.name}.*-*"):
        with suppress(OSError):
            discard(path)


def write_rows(folder: Path, rows: Iterable[np.ndarray]) -> dict[str, Any]:
    """Write rows of one shape and type as they come; returns what `about.json` says of them."""
    sums: list[int] = []
    first: np.ndarray | None = None
    with (folder / ROWS).open("wb", buffering=0) as file:
        for row in map(np.ascontiguousarray, rows):
            first = row if first is None else first
            write_whole(file, row)
            sums.append(zlib.crc32(row.data))
    assert first is not None
    return seal(folder, sums, first.shape, str(first.dtype))


def seal(folder: Path, sums: Sequence[int], shape: Sequence[int], dtype: str) -> dict[str, Any]:
    """Write the sums of rows that are there; returns what `about.json` says of them: all that is needed to read them.

    shape: of one row.
    """
    packed = np.array(sums, "<u4").tobytes()
    (folder / SUMS).write_bytes(packed)
    return {"shape": [len(sums), *shape], "dtype": dtype, "crc32": hashlib.sha256(packed).hexdigest()}


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    with suppress(OSError):
        return sum(file.stat().st_size for file in folder.iterdir())
    return 0


def make_room(places: Iterable[Path], need: int, most: float) -> None:
    """Remove caches, the longest unused first, until they and `need` more bytes are at most `most`.

    places: folders of caches. One that a process reads stays whole for it: it has the file open.
    """
    sizes = cache_sizes(places)
    for folder in sorted(sizes, key=lambda folder: (folder / ABOUT).stat().st_mtime):
        if sum(sizes.values()) + need <= most:
            return
        with suppress(OSError):
            discard(folder)
            del sizes[folder]


def cache_sizes(places: Iterable[Path]) -> dict[Path, int]:
    """The caches in these folders, with their bytes."""
    return {folder: folder_size(folder) for place in places for folder in _caches(place)}


def _caches(place: Path) -> Iterator[Path]:
    with suppress(OSError):
        there = (folder for folder in place.iterdir() if not folder.name.startswith("."))
        yield from (folder for folder in there if (folder / ABOUT).is_file())


def digest_of(parts: Any) -> str:
    """A name for what these parts, which JSON can hold, stand for."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
