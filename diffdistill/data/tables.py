"""What the columns of a table say beside images, labels and texts: the split of a row, and what is not read."""

from collections.abc import Iterable, Sequence
from typing import Any

from diffdistill.data.layout import are_splits
from diffdistill.data.looking import refuse, say, tell_splits
from diffdistill.data.source import canonical_split
from diffdistill.errors import DataError

SPLIT_COLUMNS = ("split", "subset", "partition", "phase", "set")  # the others only where they hold names of splits
LABEL_WORDS = {
    "label", "labels", "class", "classes", "cls", "category", "target", "targets", "y", "class_id", "class_name",
    "label_id", "label_name", "fine_label", "coarse_label",
}  # fmt: skip
TEXT_WORDS = {"text", "texts", "caption", "captions", "prompt", "prompts", "description", "txt"}


def say_unread(columns: Iterable[str], name: str) -> None:
    """A warning for columns that may hold labels or texts, where none is called `label`, or `text`."""
    there = list(columns)
    for words, column in ((LABEL_WORDS, "label"), (TEXT_WORDS, "text")):
        meant = [one for one in there if one.strip().lower() in words]
        if meant and column not in there:
            listed = " and ".join(map(repr, meant))
            say(f"{name} has {listed}, not read: the column of the {column}s is {column!r}")


def split_column(columns: Iterable[str]) -> list[str]:
    """The columns that may say which split a row is of, by how clearly they are called so."""
    there = set(columns)
    return [column for column in SPLIT_COLUMNS if column in there]


def rows_of_split(column: str, values: Sequence[Any], split: str, name: str, where: Any) -> list[int] | None:
    """The rows of a split by a column of splits; None where the column is of something else.

    DataError for a row without a split, which is of none, and where none is of the one that is asked for.
    """
    there = {value for value in values if isinstance(value, str) and value.strip()}
    if column != "split" and not (there and are_splits(there)):
        return None
    missing = next((i for i, value in enumerate(values) if not isinstance(value, str) or not value.strip()), None)
    if missing is not None:
        refuse(f"{name} has no {column!r} for {where(missing)}: give every row one, or none")
    wanted = canonical_split(split)
    called = {canonical_split(value.strip()): value for value in sorted(there, reverse=True)}  # a spelling of each
    tell_splits(sorted(called.values()), called.get(wanted))
    of_row = [value.strip() if isinstance(value, str) else "" for value in values]
    kept = [i for i, value in enumerate(of_row) if value == split or canonical_split(value) == wanted]
    if not kept:
        raise DataError(f"{name} has no split {split!r}: choose one of {', '.join(sorted(there))}")
    return kept
