"""Looking at a set without stopping at its first fault: what readers refuse is kept, and they go on with the rest.

Readers say `refuse(sentence)` where they could go on: it raises DataError, unless a set is only being looked at. So
there is one reader, and what looking finds is what training would say. `say` is the same of warnings.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TypeVar

from diffdistill.errors import DataError

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class Look:
    """What readers tell whoever looks.

    goes_on: whether faults are kept; else readers refuse as ever, and are but listened to. refused: by kind, the first
    sentence and how often; the first of all is what training would say. splits, split: those of the set and the one
    that is read; none where it is one set. said: what readers warn of. read, left_out: files that are read beside
    pictures, such as captions, and files of no split; of archives, members.
    """

    goes_on: bool = True
    refused: dict[str, tuple[str, int]] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    split: str | None = None
    said: list[str] = field(default_factory=list)
    read: set[PurePath] = field(default_factory=set)
    left_out: set[PurePath] = field(default_factory=set)

    def keep(self, sentence: str, kind: str | None = None) -> None:
        """Of a sentence without a kind it is no matter how often a reader comes upon it."""
        if kind is None and sentence in self.refused:
            return
        first, count = self.refused.get(kind or sentence, (sentence, 0))
        self.refused[kind or sentence] = first, count + 1


_LOOK: ContextVar[Look | None] = ContextVar("look", default=None)


@contextmanager
def looking(goes_on: bool = True) -> Iterator[Look]:
    """Within, `refuse` keeps sentences and raises nothing; not so without `goes_on`, where splits are told alone.

    >>> with looking() as look:
    ...     refuse("set has no label for image 3: give every image one, or none", kind="label")
    ...     refuse("set has no label for image 7: give every image one, or none", kind="label")
    >>> look.refused
    {'label': ('set has no label for image 3: give every image one, or none', 2)}
    """
    look = Look(goes_on)
    before = _LOOK.set(look)
    try:
        yield look
    finally:
        _LOOK.reset(before)


def is_looking() -> bool:
    look = _LOOK.get()
    return look is not None and look.goes_on


def refuse(sentence: str, kind: str | None = None) -> None:
    """DataError, or, of a set that is looked at, a note; `kind` has faults of one sort counted and told once."""
    look = _LOOK.get()
    if look is None or not look.goes_on:
        raise DataError(sentence)
    look.keep(sentence, kind)


def given(value: T | DataError, otherwise: T, kind: str | None = None) -> T:
    """A value, or `otherwise` where in its place is the error that says why there is none, see `refuse`."""
    if not isinstance(value, DataError):
        return value
    refuse(str(value), kind)
    return otherwise


def unreadable(error: OSError, data: str) -> DataError:
    """What is said of a file of a set that the system does not give."""
    path, reason = error.filename or data, error.strerror or error
    return DataError(f"{path} cannot be read ({reason}): check the path and its rights")


def say(sentence: str) -> None:
    """A warning, or, of a set that is looked at, a note; whoever listens is told of warnings too."""
    look = _LOOK.get()
    if look is None or not look.goes_on:
        logger.warning("warning: %s", sentence)
    if look is not None and sentence not in look.said:
        look.said.append(sentence)


def say_unlisted(sentence: str) -> None:
    """A warning; none of a set that is looked at, for whoever looks lists or counts what it is about."""
    if not is_looking():
        say(sentence)


def tell_splits(names: Iterable[str], chosen: str | None) -> None:
    """The splits of a set, and the one that is read; of splits within a split the outer ones count."""
    look = _LOOK.get()
    if look is not None and not look.splits:
        look.splits, look.split = tuple(names), chosen


def tell_read(files: Iterable[PurePath]) -> None:
    """Files that are read and are no pictures by their names: captions, shards."""
    look = _LOOK.get()
    if look is not None:
        look.read |= set(files)


def tell_left_out(files: Iterable[PurePath]) -> None:
    """Data files that belong to no split, beside others that do."""
    look = _LOOK.get()
    if look is not None:
        look.left_out |= set(files)
