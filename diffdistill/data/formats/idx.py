"""IDX files, the format of MNIST and its kin (Y. LeCun): a big-endian header, then uint8 values; plain, .gz or .xz."""

import gzip
import lzma
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import error as ZlibError

from diffdistill.data.bounds import check_pixels, check_range, check_size
from diffdistill.data.formats import Format
from diffdistill.data.looking import refuse
from diffdistill.data.source import Source, as_labels, canonical_split, is_hidden, only_split, pick_split, split_of
from diffdistill.errors import DataError

if TYPE_CHECKING:
    import numpy as np

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
ENDINGS = ("", ".gz", ".xz")
KEPT = 2**26  # bytes of unpacked files that are kept: Fashion-MNIST is 55 MB
_kept: "dict[tuple[Path, int, int, int], np.ndarray]" = {}
PREFIXES = {"train": "train", "test": "t10k", "validation": "validation"}


def is_idx(path: Path) -> bool:
    """Whether the file starts as IDX does: two zero bytes, the type uint8, 3 or 4 axes."""
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            head = file.read(4)
    except (OSError, EOFError, lzma.LZMAError, ZlibError):
        return False
    return head in (b"\0\0\x08\x03", b"\0\0\x08\x04")


def read_array(path: Path) -> "np.ndarray":
    """The uint8 array of an IDX file; DataError if it is damaged or of another type.

    A run looks at its data before anything heavy is imported, and reads them later: a packed file is unpacked once,
    where it is no larger than `KEPT`.
    """
    try:
        about = path.stat()
    except OSError:
        return _array_in(path)
    key = (path, about.st_ino, about.st_size, about.st_mtime_ns)
    if path.suffix not in OPENERS:
        return _array_in(path)
    if key not in _kept:
        array = _array_in(path)
        if array.nbytes > KEPT:
            return array
        _kept[key] = array  # read-only, for it is a view of bytes
        while sum(one.nbytes for one in _kept.values()) > KEPT:
            del _kept[next(iter(_kept))]
    return _kept[key]


def _array_in(path: Path) -> "np.ndarray":
    import numpy as np

    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
                raise DataError(f"{path} is not an IDX file of uint8 values: its first bytes are {head.hex(' ')}")
            shape = struct.unpack(f">{head[3]}I", file.read(4 * head[3]))
            announced = math.prod(shape)
            if path.suffix not in OPENERS and announced + 4 + 4 * head[3] != path.stat().st_size:
                raise DataError(
                    f"{path} is damaged: its header announces {shape} values, it holds another number; fetch it again"
                )
            check_size(announced, path.stat().st_size, str(path))
            values = file.read(announced + 1)
    except (OSError, EOFError, lzma.LZMAError, ZlibError, struct.error, OverflowError, MemoryError) as error:
        raise DataError(f"{path} is damaged or cannot be read ({error}): fetch it again") from error
    array = np.frombuffer(values, np.uint8)
    if array.size != announced:
        raise DataError(
            f"{path} is damaged: its header announces {shape} values, it holds another number; fetch it again"
        )
    return array.reshape(shape)


def read_pair(name: str, path: Path, split: str = "train", class_names: tuple[str, ...] | None = None) -> Source:
    """The set whose images file is `path`; labels from the file beside it by the usual naming, if there.

    With `split` other than `train`, the file of that split beside `path` is read: `t10k-...` beside `train-...`.
    """
    path = _of_split(path, split, name)
    pixels = read_array(path)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise DataError(f"{path} holds an array {pixels.shape[:-1]}: images are (N, height, width)")
    check_pixels(pixels.shape[1], pixels.shape[2], str(path))
    check_range(pixels, str(path))
    labels_path = _labels_beside(path)
    if labels_path is None:
        return Source(len(pixels), pixels)
    labels = read_array(labels_path)
    if labels.shape != (len(pixels),):
        refuse(f"{labels_path} has {len(labels)} labels, {path.name} has {len(pixels)} images: they must be as many")
        return Source(len(pixels), pixels)
    values, class_names = as_labels(labels, str(labels_path), class_names)
    return Source(len(pixels), pixels, values, class_names=class_names)


def find_pairs(folder: Path) -> dict[str, Path]:
    """The image files of a folder of IDX files by split, such as {"train": ..., "t10k": ...}.

    The split is what a name begins with, or its word that is one (`emnist-letters-train-images-idx3-ubyte`).
    DataError for two files of one split, but for a file and the same one packed.
    """
    found: dict[str, Path] = {}
    for path in _image_files(folder):
        first, *others = path.name.split("-")
        split = first if split_of(first) else next((word for word in others if split_of(word)), first)
        before = found.setdefault(split, path)
        if _unpacked(before) != _unpacked(path):
            refuse(
                f"{folder} has two files of images of the split {split!r}, {before.name} and {path.name}: give one of "
                "them as the data"
            )
    return found


def _image_files(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if "images" in path.name and "idx" in path.name]
    return sorted(path for path in files if not is_hidden(path.name) and path.is_file())


def _unpacked(path: Path) -> str:
    return path.name.removesuffix(path.suffix) if path.suffix in OPENERS else path.name


def read_folder(name: str, folder: Path, split: str, class_names: tuple[str, ...] | None = None) -> Source:
    """The pair of a split in a folder of IDX files."""
    pairs = find_pairs(folder)
    return read_pair(name, pairs[pick_split(split, pairs, name)], class_names=class_names)


def _of_split(path: Path, split: str, name: str) -> Path:
    """`path`, or its sister of that split."""
    given, dash, rest = path.name.partition("-")
    if canonical_split(split) in ("train", canonical_split(given)):
        return path  # a file that is named outright is what was asked for
    if not dash or canonical_split(given) != "train":
        only_split(split, name)
    sister = path.with_name(f"{PREFIXES.get(canonical_split(split), split)}-{rest}")
    if not sister.is_file():
        raise DataError(f"{name} has no split {split!r}: there is no file {sister.name} beside it")
    return sister


def _labels_beside(path: Path) -> Path | None:
    stem = _unpacked(path)
    if "images" not in stem:
        return None
    stem = stem.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    return next((path.with_name(stem + end) for end in ENDINGS if path.with_name(stem + end).is_file()), None)


FORMAT = (
    Format("idx_folder", 40, None, lambda _, path: path.is_dir() and bool(_image_files(path)), read_folder),
    Format(
        "idx",
        60,
        "an IDX file",
        lambda _, path: path.is_file() and is_idx(path),
        read_pair,
        files=lambda _, path: sorted(file for file in path.parent.iterdir() if file.is_file()),
    ),  # with its labels, or the file of another split, beside it
)
