"""Parquet files: a column `image` (bytes, or a struct with `bytes`), and `label` or `text`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffdistill.data.source import Encoded, Source, as_labels, only_split, pick_split
from diffdistill.errors import DataError

IMAGE_COLUMNS = ("image", "img")
BATCH_ROWS = 256


def read_parquet(path: Path, name: str, split: str) -> Source:
    """Reads a file, or the files of a folder whose names start with the split (`train-00000-of-00002.parquet`).

    Rows are decoded as they are asked for. Raises DataError without pyarrow, or for a file or column that does not fit.
    """
    files = [path] if path.is_file() else _files_of_split(path, name, split)
    tables = [_open(file) for file in files]
    if path.is_file():
        only_split(split, name)
    schema = tables[0].schema_arrow
    image = next((column for column in IMAGE_COLUMNS if column in schema.names), None)
    if image is None:
        raise DataError(
            f"{name} has no column 'image', only {', '.join(schema.names)}: rename the one with the pictures"
        )
    labels, class_names = None, None
    if "label" in schema.names:
        labels, class_names = as_labels(_column(tables, "label", name), name, _class_names(schema.metadata))
    texts = tuple(_column(tables, "text", name)) if "text" in schema.names else None
    if texts is not None and not all(isinstance(text, str) for text in texts):
        raise DataError(f"{name} has rows whose 'text' is not a string: give every image a text")
    count = sum(table.metadata.num_rows for table in tables)
    return Source(count, _images(tables, files, image), labels, texts, class_names)


def _files_of_split(folder: Path, name: str, split: str) -> list[Path]:
    files = sorted(folder.rglob("*.parquet"))
    # A file belongs to the split its name starts with, or that its folder is called.
    by_split: dict[str, list[Path]] = {}
    for file in files:
        own = file.stem.replace("_", "-").replace(".", "-").split("-")[0]
        by_split.setdefault(own if len(files) > 1 or file.parent == folder else file.parent.name, []).append(file)
    return by_split[pick_split(split, by_split, name)]


def _open(file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"reading {file} needs pyarrow: pip install 'diffdistill[data]'") from error
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} is damaged, or not a parquet file: fetch it again") from error


def _column(tables: list[Any], column: str, name: str) -> list[Any]:
    return [value for table in tables for value in table.read(columns=[column])[column].to_pylist()]


def _images(tables: list[Any], files: list[Path], column: str) -> Iterator[Encoded]:
    for table, file in zip(tables, files, strict=True):
        row = 0
        for batch in table.iter_batches(BATCH_ROWS, columns=[column]):
            for value in batch.column(0).to_pylist():
                data = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(data, bytes):
                    raise DataError(f"{file} has no image bytes in row {row}")
                yield f"row {row} of {file}", data
                row += 1


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...] | None:
    """The names that Hugging Face data sets keep in the schema."""
    info = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    names = info.get("info", {}).get("features", {}).get("label", {}).get("names")
    return tuple(names) if names else None
