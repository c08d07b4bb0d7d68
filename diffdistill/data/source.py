"""What every reader returns: images not yet decoded, labels, texts; pairs of images."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from diffdistill.data.looking import refuse, tell_splits
from diffdistill.data.text import HALVED, is_halved
from diffdistill.errors import DataError

if TYPE_CHECKING:
    import numpy as np

# One image at rest: its name for error messages, and its encoded bytes or its file.
Encoded = tuple[str, bytes | Path]
# One image of a set: the same, or in the place of its bytes the sentence that says why there are none.
Entry = tuple[str, bytes | Path | DataError]

SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".avif",
}  # fmt: skip

IMAGE_COLUMNS = ("image", "img")  # of a table; beside it are `label` and `text`

# The spellings of a split, in files and folders, by the name users give.
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "t10k"),
    "validation": ("validation", "valid", "val"),
}
SPLIT_NAMES = {spelling: split for split, spellings in SPLITS.items() for spelling in spellings}

NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")
"""Labels that are numbers, and no names: `3`; also `-1` and `1.0`, which are refused, not sorted as words."""

UNLABELLED: Any = object()
"""The label of an image that a reader has refused already for having none: it is looked at as -1."""


@dataclass(frozen=True)
class Source:
    """A set as its reader found it. `images` is a uint8 array (N, H, W, C), or yields `count` encoded images once."""

    count: int
    images: "np.ndarray | Iterable[Entry]"
    labels: "np.ndarray | None" = None
    texts: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """DataError where labels or texts are not one an image, as where a part of a file is damaged."""
        for kind, values in (("labels", self.labels), ("texts", self.texts)):
            if values is not None and len(values) != self.count:
                raise DataError(f"the data has {self.count} images and {len(values)} {kind}: give each image one")


@dataclass(frozen=True)
class Pair:
    """Two images of one text, of which one is wanted; in a tie the order means nothing."""

    win: Encoded
    lose: Encoded
    text: str
    tie: bool = False


def canonical_split(split: str) -> str:
    """`train`, `test` or `validation` for any of their spellings; another name stays as it is."""
    return SPLIT_NAMES.get(split.lower(), split)


def only_split(split: str, name: str) -> None:
    """A set without splits is all `train`: handing it out as `test` would measure on training data unnoticed."""
    if canonical_split(split) != "train":
        raise DataError(f"{name} has no split {split!r}: it is one set; leave the split at 'train' to use all of it")


def pick_split(split: str, there: Iterable[str], name: str) -> str:
    """The name in `there` that means `split`; DataError with what is there otherwise."""
    names = sorted(there)
    for spelling in names:
        if spelling == split or canonical_split(spelling) == canonical_split(split):
            tell_splits(names, spelling)
            return spelling
    tell_splits(names, None)
    raise DataError(f"{name} has no split {split!r}: choose one of {', '.join(names)}")


def as_labels(
    values: "Sequence[Any] | np.ndarray", name: str, class_names: tuple[str, ...] | None = None
) -> "tuple[np.ndarray, tuple[str, ...] | None]":
    """Labels as int64 (N,), and the names of the classes.

    Strings become their place among the sorted names, unless all of them are numbers.
    Raises DataError for a missing label, one that is no whole number, and one outside 0 .. classes - 1; where a set is
    looked at, these are -1.
    """
    import numpy as np

    labels = values.tolist() if isinstance(values, np.ndarray) else list(values)
    given = [label for label in labels if label is not None and label is not UNLABELLED and label != ""]
    if given and all(isinstance(label, str) for label in given):
        if all(NUMBER.fullmatch(label) for label in given):
            number = {label: int(label) for label in given if label.strip().lstrip("+-").isdecimal()}
        else:
            check_whole(given, "label", name)
            class_names = class_names or tuple(sorted(set(given)))
            number = {label: i for i, label in enumerate(class_names)}
        labels = [number.get(label, label) for label in labels]
    top = f"to {len(class_names) - 1}, one of {len(class_names)} classes" if class_names else "up"
    end = len(class_names) if class_names else 2**31
    for index, label in enumerate(labels):
        if label is None or label == "":
            refuse(f"{name} has no label for image {index}: give every image one, or none", f"no label in {name}")
        elif label is not UNLABELLED and (
            isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < end
        ):
            refuse(
                f"{name} has the label {label!r} for image {index}: labels are whole numbers from 0 {top}",
                f"wrong label in {name}",
            )
        else:
            labels[index] = -1 if label is UNLABELLED else label
            continue
        labels[index] = -1
    return np.array(labels, dtype=np.int64), class_names


def as_texts(values: Sequence[Any], name: str) -> tuple[str, ...]:
    """Texts as they are; DataError if one is missing or no string; where a set is looked at, it is empty."""
    for index, text in enumerate(values):
        if not isinstance(text, str):
            refuse(f"{name} has no text for image {index}: give every image one, or none", f"no text in {name}")
    texts = tuple(text if isinstance(text, str) else "" for text in values)
    check_whole(texts, "text", name)
    return texts


def check_whole(texts: Sequence[str], what: str, name: str) -> None:
    """DataError for a text that ends in half of a character, which JSON may write and nothing can hold."""
    for index, text in enumerate(texts):
        if is_halved(text):
            refuse(
                f"{name} has a {what} for image {index} that {HALVED}: write the character whole",
                f"halved {what} in {name}",
            )


def as_caption(value: Any, where: str) -> str:
    """The text of a pair; DataError if it is missing or blank."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where} has no caption: give every pair the text that both images were made for")
    if is_halved(value):
        raise DataError(f"{where} has a caption that {HALVED}: write the character whole")
    return value


def image_column(columns: Sequence[str], name: str, advice: str) -> str:
    """The column of a table that holds the images; DataError, with `advice`, if none does."""
    column = next((column for column in IMAGE_COLUMNS if column in columns), None)
    if column is None:
        raise DataError(f"{name} has no column 'image', only {', '.join(columns)}: {advice}")
    return column


def inside(member: str, name: str) -> str:
    """`member`, a relative path; DataError if it could lead out of the set it belongs to."""
    path = PurePosixPath(member.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(member).drive:
        raise DataError(f"{name} names the file {member!r}, which lies outside of it: use paths inside the set")
    return str(path)


def is_picture(path: PurePath) -> bool:
    """Whether a file name is that of an image to read: a known suffix, and nothing hidden in its path."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden
