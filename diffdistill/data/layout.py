"""What the names of files and folders say: their order, the splits and the classes they stand for."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from diffdistill.data.looking import is_looking, refuse
from diffdistill.data.source import SPLIT_NAMES

logger = logging.getLogger(__name__)

HIGHEST = 1000  # a folder's number is a label up to here; above, where so many classes could be
OTHER_PICTURES = {
    ".tga", ".heic", ".heif", ".jp2", ".jpf", ".j2k", ".jxl", ".jxr", ".ico", ".icns", ".dds", ".exr", ".hdr", ".psd",
    ".svg", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".pcx", ".sgi", ".xbm", ".xpm", ".fits", ".dcm",
}  # fmt: skip
"""Endings of pictures that are not read: some have no mark to know them by, others need programs of their own."""


def by_number(path: PurePath) -> tuple[object, ...]:
    """Key that sorts `2.png` before `10.png`, as `02.png` is before it by the alphabet: folder by folder."""
    parts = []
    for part in path.parts:
        words: list[object] = list(re.split(r"([0-9]+)", part))
        for i in range(1, len(words), 2):
            digits = str(words[i]).lstrip("0")
            words[i] = (len(digits), digits)
        parts.append((tuple(words), part))
    return tuple(parts)


def are_splits(folders: Iterable[str]) -> bool:
    """Whether folders are the splits of a set, not its classes: all have the names of splits, or two of them do."""
    known = [SPLIT_NAMES.get(folder.lower()) for folder in folders]
    return bool(known) and (None not in known or len(set(known) - {None}) > 1)


def check_no_split(classes: Iterable[str], deeper: Iterable[str], name: str) -> None:
    """DataError where one of several class folders is called as a split is, and holds class folders itself."""
    there = sorted(classes)
    split = next((folder for folder in deeper if folder.lower() in SPLIT_NAMES), None)
    if split is not None and len(there) > 1:
        other = next(folder for folder in there if folder != split)
        refuse(
            f"{name} has the folder {split!r}, with folders of images in it, beside {other!r}: is it a split or a "
            f"class? give '{name}/{split}' as the data, or take the other folders out"
        )


def class_labels(folders: Sequence[str], name: str) -> tuple[dict[str, int], tuple[str, ...] | None]:
    """The label of each class folder, and the names of the classes: their places in the alphabet.

    Folders that are all called by whole numbers are the labels themselves, as the labels of a table are: folder 10 is
    class 10, beside 9 and not beside 1. DataError for two of one number, and for numbers that count no classes.
    """
    names = tuple(sorted(folders))
    by_name = {folder: label for label, folder in enumerate(names)}
    if not all(re.fullmatch("[0-9]+", folder) for folder in folders):
        return by_name, names
    labels = {folder: int(folder[-18:]) for folder in folders}
    if len(set(labels.values())) < len(labels):
        twice = sorted(folder for folder in folders if list(labels.values()).count(labels[folder]) > 1)
        refuse(f"{name} has the class folders {twice[0]!r} and {twice[1]!r}, one number: make them one")
    top = max(labels.values(), default=0)
    if top >= HIGHEST and top >= 10 * len(labels):
        refuse(
            f"{name} has {len(labels)} class folders and one called {max(labels, key=lambda f: labels[f])!r:.40}: "
            "folders of numbers are labels, from 0 up; begin their names with a letter if they are names"
        )
        return by_name, names
    return labels, None


def passed_over(files: Iterable[PurePath], name: str) -> None:
    """A warning for pictures of kinds that are not read."""
    if is_looking():
        return  # whoever looks lists every file that is left out
    counts = Counter(file.suffix.lower() for file in files if file.suffix.lower() in OTHER_PICTURES)
    if counts:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
        logger.warning(
            "warning: %s has pictures of kinds that are not read, and passed over (%s); save them as PNG", name, kinds
        )
