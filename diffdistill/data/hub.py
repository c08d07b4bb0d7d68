"""Data sets of the Hugging Face Hub, through the package `datasets` where it is installed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffdistill.data.parquet import IMAGE_COLUMNS
from diffdistill.data.source import Encoded, Source, as_labels, as_texts
from diffdistill.errors import DataError


def read_hub(name: str, split: str) -> Source:
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
    column = next((column for column in IMAGE_COLUMNS if column in table.column_names), None)
    if column is None:
        raise DataError(f"{name} has no column 'image', only {', '.join(table.column_names)}: choose another set")
    labels, class_names, texts = None, None, None
    if "label" in table.column_names:
        class_names = getattr(table.features["label"], "names", None)
        labels, class_names = as_labels(table["label"], name, tuple(class_names) if class_names else None)
    if "text" in table.column_names:
        texts = as_texts(list(table["text"]), name)
    encoded = table.cast_column(column, datasets.Image(decode=False)).select_columns([column])
    return Source(len(table), _images(encoded, column, name), labels, texts, class_names)


def _images(table: Any, column: str, name: str) -> Iterator[Encoded]:
    for row, record in enumerate(table):
        data, path = record[column]["bytes"], record[column]["path"]
        yield f"row {row} of {name}", Path(path) if data is None else data
