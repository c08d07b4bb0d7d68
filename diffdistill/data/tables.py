"""What the columns of a table say beside images, labels and texts: the split of a row, and what is not read."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from diffdistill.data.layout import are_splits
from diffdistill.data.looking import refuse, say, tell_splits
from diffdistill.data.source import canonical_split, split_of
from diffdistill.errors import DataError

# By how clearly they say it; all but the first only where they hold names of splits.
SPLIT_COLUMNS = ("split", "splits", "dataset_split", "data_split", "subset", "partition", "phase", "set")
# Columns that may be of splits and are not read: a warning where they hold a name of a split, or yes and no.
SPLIT_WORDS = ("mode", "usage", "fold", "stage", "part", "type")
SPLIT_FLAGS = {
    f"{before}{one}"
    for before in ("is_", "is", "")
    for one in ("train", "training", "test", "val", "valid", "validation")
}
LABEL_WORDS = {
    "label", "labels", "class", "classes", "cls", "category", "target", "targets", "y", "class_id", "class_name",
    "label_id", "label_name", "fine_label", "coarse_label",
}  # fmt: skip
YES_NO = {"true", "false", "yes", "no", "0", "1"}
TEXT_WORDS = {"text", "texts", "caption", "captions", "prompt", "prompts", "description", "txt"}


@dataclass
class Captions:
    """Which column the captions are in, as the user says, and whether a reader has asked for it."""

    column: str
    asked: bool = False


_CAPTIONS: ContextVar[Captions | None] = ContextVar("captions", default=None)


@contextmanager
def captions_in(column: str | None, name: str) -> Iterator[None]:
    """Within, readers take captions from this column of tables; None: `text`. DataError where none has columns."""
    given = None if column is None else Captions(column)
    token = _CAPTIONS.set(given)
    try:
        yield
    finally:
        _CAPTIONS.reset(token)
    if given is not None and not given.asked:
        raise DataError(
            f"{name} has no table, and data.caption_column={column} is of tables (parquet, metadata.jsonl or .csv, "
            f"json of WebDataset, a Hub set); leave it out"
        )


def caption_column(columns: Iterable[str], name: str) -> str | None:
    """The column of the captions; None where there is none. DataError where the one that is asked for is not there."""
    given, there = _CAPTIONS.get(), list(columns)
    if given is None:
        return "text" if "text" in there else None
    given.asked = True
    if given.column not in there:
        raise DataError(
            f"{name} has no column {given.column!r}, which data.caption_column names, only {', '.join(there):.200}; "
            f"set it to one of these, or leave it out"
        )
    return given.column


def caption_keys(keys: Sequence[str]) -> Sequence[str]:
    """Names that captions may have in a sample: these, or the one that is asked for."""
    given = _CAPTIONS.get()
    if given is None:
        return keys
    given.asked = True
    return (given.column,)


def say_unread(columns: Iterable[str], name: str) -> None:
    """A warning for columns that may hold labels or texts, where none is called `label`, or `text`."""
    there = list(columns)
    for words, column in ((LABEL_WORDS, "label"), (TEXT_WORDS, "text")):
        meant = [one for one in there if one.strip().lower() in words]
        if meant and column not in there and not (column == "text" and _CAPTIONS.get()):
            listed = " and ".join(map(repr, meant))
            other = ", or what data.caption_column says" if column == "text" else ""
            say(f"{name} has {listed}, not read: the column of the {column}s is {column!r}{other}")


def split_column(columns: Iterable[str]) -> list[str]:
    """The columns that may say which split a row is of, by how clearly they are called so."""
    there = sorted(set(columns), reverse=True)  # small letters before capitals
    return [column for known in SPLIT_COLUMNS for column in there if _plain(column) == known]


def say_unread_splits(columns: Iterable[str], values_of: Callable[[str], Sequence[Any]], name: str) -> None:
    """A warning for columns that may say the splits of rows, of a table in which none is read that does."""
    for column in sorted(set(columns)):
        if _plain(column) in SPLIT_FLAGS:
            meant = all(value in (0, 1) or str(value).strip().lower() in YES_NO for value in values_of(column))
        else:
            words = {str(value).strip() for value in values_of(column)} if _plain(column) in SPLIT_WORDS else set()
            meant = any(map(split_of, words))
        if meant:
            say(
                f"{name} has {column!r}, not read: the column of the splits is 'split', with train, validation or test"
            )


def _plain(column: str) -> str:
    return column.strip().lower()


def rows_of_split(column: str, values: Sequence[Any], split: str, name: str, where: Any) -> list[int] | None:
    """The rows of a split by a column of splits; None where the column is of something else.

    DataError for a row without a split, which is of none, and where none is of the one that is asked for.
    """
    there = {value for value in values if isinstance(value, str) and value.strip()}
    if _plain(column) != SPLIT_COLUMNS[0] and not (there and are_splits(there)):
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
