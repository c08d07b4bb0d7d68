"""Which set it is, without decoding a pixel: by its files, what they hold or when they changed, labels and texts."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from diffdistill.data.formats import by_rank
from diffdistill.data.source import is_hidden
from diffdistill.data.walk import folders_below
from diffdistill.files import sha256, stamp

WHOLE = 1 << 32  # bytes of a set up to which all are looked at, which takes some seconds
SAMPLED = 1000  # else, files of which bytes are looked at
SAMPLE = 4096  # bytes at the start, in the middle and at the end of one


def files_of(data: str, path: Path) -> tuple[str, list[Path]]:
    """The format that reads DATA, with the file of its reader where that is a plug-in's, and the files it reads.

    None where they are not known, as those of the Hub. Raises DataError, OSError.
    """
    row = next((row for row in by_rank() if row.matches(data, path)), None)
    if row is None:
        return "", []
    home = Path(row.read.__code__.co_filename) if hasattr(row.read, "__code__") else None
    plugin = [] if home is None or home.is_relative_to(Path(__file__).parent) else [home]
    found = row.files(data, path) if row.files is not None else _below(path)
    return row.name, [*plugin, *found]


def _below(path: Path) -> Iterable[Path]:
    """A file, or all visible files below a folder."""
    if not path.is_dir():
        return [path]
    places = folders_below(path)
    return (Path(place, name) for place, _, names in places for name in sorted(names) if not is_hidden(name))


def state_of(files: Sequence[Path]) -> str | None:
    """A digest of the paths of files and of their `stamp` and inode; None where there are none.

    A file that is changed, added, taken out or touched is another state, whatever time it is given; so is one that is
    moved with its folder, copied, or reached by a link that leads elsewhere now.
    """
    if not files:
        return None
    digest = hashlib.sha256()
    homes: dict[str, str] = {}  # each folder is resolved once
    for file in files:
        path = os.path.abspath(file)
        try:
            known = os.stat(path)
        except FileNotFoundError:  # a link that leads nowhere, which the reader names where it is one
            continue
        place, name = os.path.split(path)
        home = homes[place] if place in homes else homes.setdefault(place, os.path.realpath(place))
        digest.update(os.fsencode(os.path.join(home, name)) + f"\0{stamp(known)} {known.st_ino}\n".encode())
    return digest.hexdigest()


def content_of(files: Sequence[Path], base: Path) -> str:
    """A digest of the names of files relative to `base`, and of all their bytes: the same for a copy elsewhere.

    Of files of more than WHOLE bytes together it is of samples of their bytes and of their state, see `state_of`: no
    other files are taken for these, but a copy is not known again.
    """
    known = [_stat(file) for file in files]
    whole = sum(one.st_size for one in known if one is not None) <= WHOLE
    digest = hashlib.sha256(b"" if whole else (state_of(files) or "").encode())
    step = max(1, len(files) // SAMPLED)
    for number, (file, one) in enumerate(zip(files, known, strict=True)):
        size = -1 if one is None else one.st_size
        digest.update(os.fsencode(os.path.relpath(file, base)) + f"\0{size}\n".encode())
        if one is not None and whole:
            digest.update(_hashed(file.absolute(), f"{stamp(one)} {one.st_ino}").encode())
        elif number % step == 0 and size > 0:
            digest.update(_sampled(file, size))
    return digest.hexdigest()


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:  # a link that leads nowhere
        return None


@lru_cache(1 << 17)
def _hashed(file: Path, _: str) -> str:
    """SHA-256 of a file in the state that is told, which is looked at once."""
    return sha256(file)


def _sampled(file: Path, size: int) -> bytes:
    with file.open("rb") as stream:
        parts = []
        for start in (0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)):
            stream.seek(start)
            parts.append(stream.read(SAMPLE))
    return b"".join(parts)


def with_labels(digest: Any, labels: np.ndarray | None, texts: tuple[str, ...] | None) -> None:
    """Add labels and texts to the digest of images, see `fingerprint`."""
    if labels is not None:
        digest.update(b"labels" + labels.astype("<i8").tobytes())
    for text in texts or ():
        digest.update(b"text" + text.encode() + b"\0")
