"""What every reader returns: images not yet decoded, labels, texts; pairs of images."""

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from diffdistill.data.labels import UNLABELLED as UNLABELLED
from diffdistill.data.labels import Where, image_at
from diffdistill.data.labels import as_labels as as_labels
from diffdistill.data.looking import refuse, say_unlisted, tell_splits
from diffdistill.data.text import HALVED, check_whole, is_halved
from diffdistill.errors import DataError
from diffdistill.files import stamp

if TYPE_CHECKING:
    import numpy as np

# One image at rest: its name for error messages, and its encoded bytes or its file.
Encoded = tuple[str, bytes | Path]


@dataclass(frozen=True)
class Span:
    """The encoded bytes of an image inside of a larger file; `crc`: their CRC-32 where that is known; `state`: else
    the `stamp` of the file when it was opened first.
    """

    file: Path
    offset: int
    size: int
    crc: int | None = None
    state: str | None = None

    @property
    def place(self) -> tuple[int, int, int | None, str | None]:
        """All but the file."""
        return self.offset, self.size, self.crc, self.state

    def read(self, most: int | None = None) -> bytes:
        """All bytes, or the first `most`; DataError where the file, which held them once, has gone or changed."""
        size = self.size if most is None else min(most, self.size)
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                data = file.read(size)
                now = stamp(os.fstat(file.fileno()))  # after it: what is written later is not what was read
        except FileNotFoundError as error:
            raise DataError(f"{self.file} has gone since it was opened: put it back, and start anew") from error
        if len(data) < size:
            raise DataError(f"{self.file} has become shorter since it was opened: fetch it again, and start anew")
        if self.state is not None and now != self.state:
            raise changed(self.file)
        if self.crc is not None and most is None and zlib.crc32(data) != self.crc:
            raise DataError(f"{self.file} is damaged at byte {self.offset} (bad checksum): make it again")
        return data


def changed(file: Path) -> DataError:
    """What is said of a file that is not what it was when the set was opened."""
    return DataError(f"{file} has been changed since it was opened: start anew when nobody writes to it")


# One image of a set: the same, or in the place of its bytes the sentence that says why there are none.
Entry = tuple[str, bytes | Path | Span | DataError]


@runtime_checkable
class Entries(Protocol):
    """Encoded images that can be read in any order, and not only one after the other."""

    def __iter__(self) -> Iterator[Entry]:
        """All, in their order."""

    def at(self, places: "Sequence[int]") -> Iterator[Entry]:
        """Those of the places, counted from 0, in the order asked for; bytes that lie in a file are left there."""


SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".avif",
}  # fmt: skip

IMAGE_COLUMNS = ("image", "img")  # of a table; beside it are `label` and `text`

# The spellings of a split, in files and folders, by the name users give; the last are of sets that have more than
# pictures to train on (STL-10, SVHN).
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "t10k", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
    "held_out": ("held_out", "heldout", "holdout", "hold_out"),
    "unlabeled": ("unlabeled", "unlabelled", "unsupervised"),
    "extra": ("extra",),
}
SPLIT_NAMES = {spelling: split for split, spellings in SPLITS.items() for spelling in spellings}

# A split's name with what people write around it: `train2017`, `val_images`, `testA`; not `train station`.
_BESIDE = "images?|imgs?|pictures?|data|dataset|set|split"
_SPLIT = re.compile(
    rf"(?:(?:{_BESIDE})[-_. ]+)?(?P<split>{'|'.join(SPLIT_NAMES)})(?:[-_. ]*(?:{_BESIDE}|\d+|[ab]))*", re.IGNORECASE
)

# Folders that file servers and systems keep beside pictures, with copies of them.
HIDDEN = {"@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "System Volume Information"}


class Uneven(DataError):
    """Labels or texts that are not one an image; the sentence lacks the name of the set, which `open_at` knows."""


@dataclass(frozen=True)
class Source:
    """A set as its reader found it. `images` is a uint8 array (N, H, W, C), or yields `count` encoded images once;
    where it is `Entries`, as often as wanted, and in any order. version: what changes with the content, where no files
    of DATA can be looked at for that.
    """

    count: int
    images: "np.ndarray | Iterable[Entry]"
    labels: "np.ndarray | None" = None
    texts: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        """`Uneven` where labels or texts are not one an image, as where a part of a file is damaged."""
        for kind, values in (("labels", self.labels), ("texts", self.texts)):
            if values is not None and len(values) != self.count:
                raise Uneven(f"has {self.count} images and {len(values)} {kind}: give each image one")


@dataclass(frozen=True)
class Pair:
    """Two images of one text, of which one is wanted; in a tie the order means nothing."""

    win: Encoded
    lose: Encoded
    text: str
    tie: bool = False


def split_of(name: str) -> str | None:
    """The split that a folder or file of this name is of; None for other names.

    >>> split_of("val2017"), split_of("Training images"), split_of("train station")
    ('validation', 'train', None)
    """
    found = _SPLIT.fullmatch(name)
    return None if found is None else SPLIT_NAMES[found["split"].lower()]


def spelling_of(name: str) -> str:
    """How a name that says a split spells it, in lower case; empty for other names."""
    found = _SPLIT.fullmatch(name)
    return "" if found is None else found["split"].lower()


def split_word(name: str) -> str | None:
    """The split that is a word of a name, as of `DIV2K_valid_HR`; None for none, or several."""
    words = {SPLIT_NAMES[word] for word in re.split("[^a-z0-9]+", name.lower()) if word in SPLIT_NAMES}
    return split_of(name) or (words.pop() if len(words) == 1 else None)


def canonical_split(split: str) -> str:
    """`train`, `test` or `validation` for any of their spellings; another name stays as it is."""
    return split_of(split) or split


def only_split(split: str, name: str) -> None:
    """A set without splits is all `train`: handing it out as `test` would measure on training data unnoticed."""
    if canonical_split(split) != "train":
        raise DataError(f"{name} has no split {split!r}: it is one set; leave the split at 'train' to use all of it")


def pick_split(split: str, there: Iterable[str], name: str) -> str:
    """The name in `there` that means `split`; DataError, with what is there, for none and for several."""
    names = sorted(there)
    if split in names and split not in SPLITS:
        _tell_splits(names, split)
        return split
    meant = [spelling for spelling in names if (split_word(spelling) or spelling) == canonical_split(split)]
    chosen = split if split in meant else next(iter(meant), None)
    _tell_splits(names, chosen)
    if chosen is None:
        raise DataError(f"{name} has no split {split!r}: choose one of {', '.join(names)}")
    if len(meant) > 1:
        refuse(
            f"{name} has both {meant[0]!r} and {meant[1]!r}, of the split {split!r}: give one of them as the data, "
            f"such as '{name}/{meant[0]}'"
        )
    return chosen


def _tell_splits(names: Sequence[str], chosen: str | None) -> None:
    """Names that mean no split are none beside others that do, but for one that is asked for."""
    known = [name for name in names if split_word(name) or name == chosen]
    tell_splits(known if any(map(split_word, known)) else names, chosen)


def as_texts(values: Sequence[Any], name: str, where: Where = image_at) -> tuple[str, ...]:
    """Texts as they are; DataError if one is missing or no string, which is looked at as an empty one; a warning
    where some are blank.
    """
    blank = []
    for index, text in enumerate(values):
        if text is None:
            refuse(f"{name} has no text for {where(index)}: give every image one, or none", f"no text in {name}")
        elif not isinstance(text, str):
            refuse(
                f"{name} has the text {text!r:.80} for {where(index)}: a text is one string", f"wrong text in {name}"
            )
        elif not text.strip():
            blank.append(index)
    texts = tuple(text if isinstance(text, str) else "" for text in values)
    check_whole(texts, "text", name, where)
    if blank:
        say_unlisted(f"{name} has {len(blank)} blank texts, the first for {where(blank[0])}")
    return texts


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
    if column is None and any(one.lower() in ("url", "image_url") for one in columns):
        raise DataError(
            f"{name} has addresses of images and no column 'image': fetch them first, as img2dataset does, and give "
            f"its folder"
        )
    if column is None:
        raise DataError(f"{name} has no column 'image', only {', '.join(columns)}: {advice}")
    return column


def inside(member: str, name: str) -> str:
    """`member`, a relative path; DataError if it could lead out of the set it belongs to."""
    path, on_windows = PurePosixPath(member.replace("\\", "/")), PureWindowsPath(member)
    # `c:x` is of another drive there alone; elsewhere it is a name like others.
    drive = on_windows.drive and (on_windows.root or os.name == "nt")
    if path.is_absolute() or ".." in path.parts or drive:
        raise DataError(f"{name} names the file {member!r}, which lies outside of it: use paths inside the set")
    return str(path)


def is_hidden(part: str) -> bool:
    """Whether a name in a path hides what it is of: a dot before it, or a system's own folder."""
    return part.startswith((".", "__MACOSX")) or part in HIDDEN


def is_picture(path: PurePath) -> bool:
    """Whether a file name is that of an image to read: a known suffix, and nothing hidden in its path."""
    return path.suffix.lower() in SUFFIXES and not any(map(is_hidden, path.parts))
