"""Which set it is, without looking at a pixel: by its files, their sizes and their times."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from diffdistill.data.formats import by_rank
from diffdistill.data.source import is_hidden
from diffdistill.data.walk import folders_below

SAMPLED = 1000  # files of which bytes are looked at
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
    """A digest of the paths of files, their sizes and the times of their last change; None where there are none.

    A file that is changed, added, taken out or touched is another state; one that is moved with its folder too.
    """
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        path = os.path.abspath(file)
        try:
            known = os.stat(path)
        except FileNotFoundError:  # a link that leads nowhere, which the reader names where it is one
            continue
        digest.update(os.fsencode(path) + f"\0{known.st_size}\0{known.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def content_of(files: Sequence[Path], base: Path) -> str:
    """A digest of the names of files relative to `base`, their sizes, and samples of the bytes of some of them.

    The same for a copy that lies elsewhere; it can miss a change that keeps the size of a file.
    """
    digest = hashlib.sha256()
    step = max(1, len(files) // SAMPLED)
    for number, file in enumerate(files):
        try:
            size = file.stat().st_size
        except FileNotFoundError:  # a link that leads nowhere
            size = -1
        digest.update(os.fsencode(os.path.relpath(file, base)) + f"\0{size}\n".encode())
        if number % step == 0 and size > 0:
            digest.update(_sampled(file, size))
    return digest.hexdigest()


def _sampled(file: Path, size: int) -> bytes:
    with file.open("rb") as stream:
        parts = []
        for start in (0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)):
            stream.seek(start)
            parts.append(stream.read(SAMPLE))
    return b"".join(parts)
