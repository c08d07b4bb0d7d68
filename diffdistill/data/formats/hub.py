"""Data sets of the Hugging Face Hub, through the package `datasets` where it is installed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdistill.data.formats import Format
from diffdistill.data.source import Encoded, Source, as_labels, as_texts, image_column
from diffdistill.data.tables import say_unread
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
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # whatever a network, a cache or a remote file can raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"there is no file or folder {name!r}, and the Hub did not give it ({reason})") from error
    column = image_column(table.column_names, name, "choose another set")
    say_unread(table.column_names, name)
    labels, class_names, texts = None, None, None
    if "label" in table.column_names:
        class_names = getattr(table.features["label"], "names", None)
        labels, class_names = as_labels(table["label"], name, tuple(class_names) if class_names else None)
    if "text" in table.column_names:
        texts = as_texts(list(table["text"]), name)
    encoded = table.cast_column(column, datasets.Image(decode=False)).select_columns([column])
    version = getattr(table, "_fingerprint", None)  # of its content and of what was done to it
    return Source(len(table), Rows(encoded, column, name), labels, texts, class_names, version)


@dataclass(frozen=True)
class Rows:
    """The images of a table of the package `datasets`, which maps its files and reads rows as asked for."""

    table: Any
    column: str
    name: str

    def __iter__(self) -> Iterator[Encoded]:
        return (self._entry(row, record) for row, record in enumerate(self.table))

    def at(self, places: Sequence[int]) -> Iterator[Encoded]:
        return (self._entry(row, self.table[int(row)]) for row in places)

    def _entry(self, row: int, record: dict[str, Any]) -> Encoded:
        data, path = record[self.column]["bytes"], record[self.column]["path"]
        return f"row {row} of {self.name}", Path(path) if data is None else data


FORMAT = Format("hub", 90, "a Hub id OWNER/NAME", lambda data, _: is_hub_id(data), read_hub, files=lambda _, path: ())
