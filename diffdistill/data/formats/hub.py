"""Data sets of the Hugging Face Hub, through the package `datasets` where it is installed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdistill.data.formats import Format
from diffdistill.data.labels import image_at
from diffdistill.data.source import Encoded, Source, as_labels, as_texts, image_column
from diffdistill.data.tables import caption_column, rows_of_split, say_unread, say_unread_splits, split_column
from diffdistill.errors import DataError
from diffdistill.files import is_hub_id


def read_hub(name: str, _path: Path, split: str) -> Source:
    """Reads the data set `OWNER/NAME`; DataError without `datasets`, without a network, or for unknown names."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"there is no file or folder {name!r}, and to look for it on the Hub the package `datasets` is needed: "
            "check the path, or pip install datasets"
        ) from error
    table, whole = _loaded(datasets.load_dataset, name, split)
    names = table.column_names
    column = image_column(names, name, "choose another set")
    say_unread(names, name)
    kept = _kept(table, split, name) if whole else None
    at = image_at if kept is None else lambda index: f"row {kept[index]}"
    labels, class_names, texts = None, None, None
    if "label" in names:
        class_names = getattr(table.features["label"], "names", None)
        values = _chosen(table["label"], kept)
        labels, class_names = as_labels(values, name, tuple(class_names) if class_names else None, at)
    if (captions := caption_column(names, name)) is not None:
        texts = as_texts(_chosen(table[captions], kept), name, at)
    encoded = table.cast_column(column, datasets.Image(decode=False)).select_columns([column])
    version = getattr(table, "_fingerprint", None)  # of its content and of what was done to it
    count = len(table) if kept is None else len(kept)
    return Source(count, Rows(encoded, column, name, kept), labels, texts, class_names, version)


def _loaded(load: Callable[..., Any], name: str, split: str) -> tuple[Any, bool]:
    """The table of a split, or the only one of a set, whose rows may say their splits; and whether it is that."""
    try:
        table = load(name, split=split)
        splits = getattr(getattr(table, "info", None), "splits", None)
        return table, splits is not None and len(splits) == 1
    except Exception as error:  # whatever a network, a cache or a remote file can raise
        only = list(_whole(load, name).values()) if isinstance(error, ValueError) else []
        if len(only) == 1 and split_column(only[0].column_names):
            return only[0], True
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"there is no file or folder {name!r}, and the Hub did not give it ({reason})") from error


def _whole(load: Callable[..., Any], name: str) -> dict[str, Any]:
    """All tables of a set, by their splits; none where it cannot be had."""
    try:
        return dict(load(name))
    except Exception:
        return {}


def _kept(table: Any, split: str, name: str) -> list[int] | None:
    """The rows of a split by a column of splits; None where there is none."""
    for column in split_column(table.column_names):
        kept = rows_of_split(column, list(table[column]), split, name, lambda index: f"row {index}")
        if kept is not None:
            return kept
    say_unread_splits(table.column_names, lambda column: list(table[column]), name)
    return None


def _chosen(values: Sequence[Any], kept: list[int] | None) -> list[Any]:
    values = list(values)
    return values if kept is None else [values[row] for row in kept]


@dataclass(frozen=True)
class Rows:
    """The images of a table of the package `datasets`, or of the rows `kept`: it maps its files and reads rows as
    asked for."""

    table: Any
    column: str
    name: str
    kept: list[int] | None

    def __iter__(self) -> Iterator[Encoded]:
        if self.kept is not None:
            return self.at(range(len(self.kept)))
        return (self._entry(row, record) for row, record in enumerate(self.table))

    def at(self, places: Sequence[int]) -> Iterator[Encoded]:
        rows = (int(place) if self.kept is None else self.kept[place] for place in places)
        return (self._entry(row, self.table[row]) for row in rows)

    def _entry(self, row: int, record: dict[str, Any]) -> Encoded:
        data, path = record[self.column]["bytes"], record[self.column]["path"]
        return f"row {row} of {self.name}", Path(path) if data is None else data


FORMAT = Format("hub", 90, "a Hub id OWNER/NAME", lambda data, _: is_hub_id(data), read_hub, files=lambda _, path: ())
