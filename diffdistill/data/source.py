"""What every reader returns: images not yet decoded, labels, texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffdistill.errors import DataError

# One image at rest: its name for error messages, and its encoded bytes or its file.
Encoded = tuple[str, bytes | Path]

# The spellings of a split, in files and folders, by the name users give.
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "t10k"),
    "validation": ("validation", "valid", "val"),
}
SPLIT_NAMES = {spelling: split for split, spellings in SPLITS.items() for spelling in spellings}


@dataclass(frozen=True)
class Source:
    """A set as its reader found it. `images` is a uint8 array (N, H, W, C), or yields `count` encoded images once."""

    count: int
    images: np.ndarray | Iterable[Encoded]
    labels: np.ndarray | None = None
    texts: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None


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
    for found in names:
        if found == split or canonical_split(found) == canonical_split(split):
            return found
    raise DataError(f"{name} has no split {split!r}: choose one of {', '.join(names)}")


def as_labels(
    values: Sequence[Any] | np.ndarray, name: str, class_names: tuple[str, ...] | None = None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as int64 (N,) with the names of the classes.

    Strings become their place among the sorted names, unless all of them are whole numbers.
    Raises DataError for a missing label, one that is no whole number, and one outside 0 .. classes - 1.
    """
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if any(label is None or label == "" for label in listed):
        raise DataError(f"{name} has no label for image {[not (v is None or v == '') for v in listed].index(False)}")
    if listed and all(isinstance(label, str) for label in listed):
        if not all(label.strip().isdecimal() for label in listed):
            class_names = class_names or tuple(sorted(set(listed)))
            place = {label: i for i, label in enumerate(class_names)}
            unknown = next((label for label in listed if label not in place), None)
            if unknown is not None:
                raise DataError(f"{name} has the label {unknown!r}, which is none of its {len(place)} classes")
            return np.array([place[label] for label in listed], dtype=np.int64), class_names
        listed = [int(label) for label in listed]
    for index, label in enumerate(listed):
        if isinstance(label, bool) or not isinstance(label, int):
            raise DataError(f"{name} has the label {label!r} for image {index}: labels are whole numbers from 0")
        if not 0 <= label < (len(class_names) if class_names else 2**31):
            top = f"{len(class_names) - 1}, one of {len(class_names)} classes" if class_names else "up"
            raise DataError(f"{name} has the label {label} for image {index}: labels go from 0 {_to(top)}")
    return np.array(listed, dtype=np.int64), class_names


def _to(top: str) -> str:
    return top if top == "up" else f"to {top}"
