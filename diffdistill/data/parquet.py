"""Parquet files: a column `image` (bytes, or a struct with `bytes`), and `label` or `text`."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffdistill.data.source import SPLIT_NAMES, Encoded, Source, as_labels, as_texts, only_split, pick_split
from diffdistill.errors import DataError

IMAGE_COLUMNS = ("image", "img")
BATCH_ROWS = 256


def read_parquet(path: Path, name: str, split: str) -> Source:
    """Reads a file, or the files of a folder that belong to the split (`train-00000-of-00002.parquet`).

    Images are read as they are asked for. Raises DataError without pyarrow, or for a file or column that does not fit.
    """
    if path.is_file():
        only_split(split, name)
    files = [path] if path.is_file() else files_of_split(path, name, split)
    tables = [open_table(file) for file in files]
    schema = tables[0].schema_arrow
    image = next((column for column in IMAGE_COLUMNS if column in schema.names), None)
    if image is None:
        raise DataError(
            f"{name} has no column 'image', only {', '.join(schema.names)}: rename the one with the images"
        )
    if any(table.schema_arrow.names != schema.names for table in tables):
        raise DataError(f"{name} has files with different columns: make them alike")
    labels, class_names = None, None
    if "label" in schema.names:
        labels, class_names = as_labels(column_of(tables, files, "label"), name, _class_names(schema.metadata))
    texts = as_texts(column_of(tables, files, "text"), name) if "text" in schema.names else None
    count = sum(table.metadata.num_rows for table in tables)
    return Source(count, _images(tables, files, image), labels, texts, class_names)


def files_of_split(folder: Path, name: str, split: str) -> list[Path]:
    """A file belongs to the split that its name starts with, or that its folder is called; else all are one set."""
    by_split: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        words = [re.split(r"[^A-Za-z0-9]", file.name)[0], *reversed(file.relative_to(folder).parts[:-1])]
        known = next((SPLIT_NAMES[word.lower()] for word in words if word.lower() in SPLIT_NAMES), "")
        by_split.setdefault(known, []).append(file)
    if set(by_split) == {""}:
        only_split(split, name)
        return by_split[""]
    by_split.pop("", None)
    return by_split[pick_split(split, by_split, name)]


def open_table(file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"reading {file} needs pyarrow: pip install 'diffdistill[data]'") from error
    with _damage_named(file):
        return pyarrow.parquet.ParquetFile(file)


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} is damaged, or not a parquet file: fetch it again") from error


def column_of(tables: list[Any], files: list[Path], column: str) -> list[Any]:
    values: list[Any] = []
    for table, file in zip(tables, files, strict=True):
        with _damage_named(file):
            values += table.read(columns=[column])[column].to_pylist()
    return values


def _images(tables: list[Any], files: list[Path], column: str) -> Iterator[Encoded]:
    for table, file in zip(tables, files, strict=True):
        row = 0
        batches = table.iter_batches(BATCH_ROWS, columns=[column])
        while True:
            with _damage_named(file):
                batch = next(batches, None)
            if batch is None:
                break
            for value in batch.column(0).to_pylist():
                data = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(data, bytes):
                    raise DataError(f"{file} has no image bytes in row {row}: keep the images in the file itself")
                yield f"row {row} of {file}", data
                row += 1


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...] | None:
    """The names that Hugging Face data sets keep in the schema."""
    info = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    names = info.get("info", {}).get("features", {}).get("label", {}).get("names")
    return tuple(names) if names else None
