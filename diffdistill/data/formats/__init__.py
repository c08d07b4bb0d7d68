"""The formats of DATA, a file each: what it is called, how it is recognised, how it is read, as images or as pairs.

A format's file declares `FORMAT = Format(...)` and imports nothing heavy to say so: help and messages list the formats
without numpy or torch. DATA is read by the first format, in the order of their ranks, that recognises it.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from diffdistill.data.source import SUFFIXES, Pair, Source, Uneven
from diffdistill.errors import DataError
from diffdistill.files import PICKLES, expanded
from diffdistill.registry import Registry


@dataclass(frozen=True)
class Format:
    """One form of DATA.

    name: for plug-ins and tests. rank: lower ones are asked first. images, pairs: what messages call a set of images,
    or of pairs, of this form; None where it holds none. matches: whether DATA, which lies at the path, is of this
    form. read: `(name for messages, path, split) -> Source`. read_pairs: the same, to pairs; it counts in its last
    argument what it leaves out. Readers raise DataError, or OSError, which the callers explain. files: `(data, path)
    -> the files that are read`, whose sizes and times tell whether what is kept of them is still true; None: the
    file at the path, or all below the folder.

    In a file that DIFFDISTILL_PLUGINS names, `data.path=my/images.raw28` is then DATA:

    >>> from pathlib import Path
    >>> import numpy as np
    >>> from diffdistill.data.source import Source
    >>> def read(name, path, split):
    ...     pixels = np.fromfile(path, np.uint8).reshape(-1, 28, 28, 1)
    ...     return Source(len(pixels), pixels)
    >>> FORMAT = Format("raw28", 0, "a .raw28 file", lambda data, path: path.suffix == ".raw28", read)
    >>> FORMAT.matches("my/images.raw28", Path("my/images.raw28")), FORMAT.matches("my/pngs", Path("my/pngs"))
    (True, False)
    """

    name: str
    rank: int
    images: str | None
    matches: Callable[[str, Path], bool]
    read: Callable[[str, Path, str], Source]
    pairs: str | None = None
    read_pairs: Callable[[str, Path, str, Counter[str]], Iterable[Pair]] | None = None
    files: Callable[[str, Path], Iterable[Path]] | None = None


FORMATS: Registry[Format] = Registry("data format", Format, __name__, "FORMAT")


def by_rank(of_package: bool = False) -> list[Format]:
    return sorted(FORMATS.rows(of_package).values(), key=lambda row: row.rank)


def allowed(of_package: bool = False) -> str:
    """What DATA may be, in words. of_package: see `Registry.rows`.

    >>> allowed(of_package=True)
    'builtin:NAME, a folder with metadata.jsonl or metadata.csv, a tar file or a folder of them (WebDataset), ...'
    """
    return _listed([row.images for row in by_rank(of_package) if row.images])


def allowed_pairs(of_package: bool = False) -> str:
    """What a set of pairs may be, in words. of_package: see `Registry.rows`.

    >>> allowed_pairs(of_package=True)
    'builtin:NAME, a folder with a metadata.jsonl of lines {"win": FILE, "lose": FILE, "text": CAPTION} or ...'
    """
    return _listed([row.pairs for row in by_rank(of_package) if row.pairs])


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def open_source(data: str, split: str) -> Source:
    """Reads DATA by the format that recognises it; images stay encoded. DataError if none does.

    >>> source = open_source("builtin:emoji", "held_out")
    >>> source.count, source.texts[0]
    (190, 'a noto style emoji of cow')
    """
    return open_at(data, known_place(data), split)


def known_place(data: str) -> Path:
    """The path that DATA may be; DataError where nothing is there and no format knows the name. Raises OSError too.

    >>> known_place("builtin:emoji").name
    'builtin:emoji'
    >>> known_place("no such folder")
    Traceback (most recent call last):
    diffdistill.errors.DataError: there is no file or folder 'no such folder': give ...
    """
    path = expanded(data)
    if not data.strip() or not (path.exists() or any(row.matches(data, path) for row in by_rank())):
        raise DataError(f"there is no file or folder {data!r:.200}: give {allowed()}")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{data!r:.200} is a device or a pipe, which has no end or no middle: give {allowed()}")
    return path


def open_at(data: str, path: Path, split: str) -> Source:
    """Reads what lies at `path`, called `data` in messages, by the format that recognises it.

    Raises DataError if none does, and for pickles and single images, with what to give instead.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "unpacked.npy")
    ...     np.save(path, np.zeros((4, 8, 8), np.uint8))
    ...     open_at("the set of my archive", path, "train").images.shape
    (4, 8, 8, 1)
    """
    for row in by_rank():
        if row.matches(data, path):
            try:
                return row.read(data, path, split)
            except Uneven as error:
                raise DataError(f"{data} {error}") from error
    if path.suffix.lower() in PICKLES:
        raise DataError(f"{data} may be a pickle, which runs code when it is opened, so it is not: give {allowed()}")
    if path.suffix.lower() in SUFFIXES:
        raise DataError(f"{data} is a single image: give the folder it lies in")
    raise DataError(f"{data} is in no format that is known: give {allowed()}")


def open_pairs(data: str, split: str, left_out: Counter[str]) -> list[Pair]:
    """Reads DATA as pairs, by the format that recognises it; `left_out` counts rows that are none, by reason.

    Images stay encoded. Raises DataError if no format reads pairs of it.

    >>> from collections import Counter
    >>> pairs = open_pairs("builtin:emoji_pairs", "held_out", Counter())
    >>> pairs[0].text, pairs[0].win[0], pairs[0].lose[0]
    ('an emoji of cow', 'a noto style emoji of cow', 'a twemoji style emoji of cow')
    """
    path = expanded(data)
    for row in by_rank():
        if row.read_pairs is not None and row.matches(data, path):
            return list(row.read_pairs(data, path, split, left_out))
    if not path.exists():
        raise DataError(f"there is no file or folder {data!r} with pairs: give {allowed_pairs()}")
    raise DataError(f"{data} holds no pairs: give {allowed_pairs()}")
