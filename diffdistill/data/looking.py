"""Looking at a set without stopping at its first fault: what readers refuse is kept, and they go on with the rest.

Readers say `refuse(sentence)` where they could go on: it raises DataError, unless a set is only being looked at. So
there is one reader, and what looking finds is what training would say.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from diffdistill.errors import DataError


@dataclass
class Look:
    """What readers tell whoever looks.

    refused: by kind, the first sentence and how often; the first of all is what training would say. splits, split:
    those of the set and the one that is read; none where it is one set. left_out: data files that are not read.
    """

    refused: dict[str, tuple[str, int]] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    split: str | None = None
    left_out: set[Path] = field(default_factory=set)

    def keep(self, sentence: str, kind: str | None = None) -> None:
        first, count = self.refused.get(kind or sentence, (sentence, 0))
        self.refused[kind or sentence] = first, count + 1


_LOOK: ContextVar[Look | None] = ContextVar("look", default=None)


@contextmanager
def looking() -> Iterator[Look]:
    """Within, `refuse` keeps sentences and raises nothing.

    >>> with looking() as look:
    ...     refuse("set has no label for image 3: give every image one, or none", kind="label")
    ...     refuse("set has no label for image 7: give every image one, or none", kind="label")
    >>> look.refused
    {'label': ('set has no label for image 3: give every image one, or none', 2)}
    """
    look = Look()
    before = _LOOK.set(look)
    try:
        yield look
    finally:
        _LOOK.reset(before)


def is_looking() -> bool:
    return _LOOK.get() is not None


def refuse(sentence: str, kind: str | None = None) -> None:
    """DataError, or, of a set that is looked at, a note; `kind` has faults of one sort counted and told once."""
    look = _LOOK.get()
    if look is None:
        raise DataError(sentence)
    look.keep(sentence, kind)


def tell_splits(names: Sequence[str], chosen: str | None) -> None:
    """The splits of a set, and the one that is read; of splits within a split the outer ones count."""
    look = _LOOK.get()
    if look is not None and not look.splits:
        look.splits, look.split = tuple(names), chosen


def tell_left_out(files: Sequence[Path]) -> None:
    """Data files that belong to no split, beside others that do."""
    look = _LOOK.get()
    if look is not None:
        look.left_out |= set(files)
