"""Parquet files: a column `image` (bytes, or a struct with `bytes`), and `label` or `text`; pairs as Pick-a-Pic's."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffdistill.data.bounds import check_size
from diffdistill.data.formats import Format
from diffdistill.data.looking import tell_left_out
from diffdistill.data.source import (
    SPLIT_NAMES,
    Entry,
    Pair,
    Source,
    as_caption,
    as_labels,
    as_texts,
    image_column,
    only_split,
    pick_split,
)
from diffdistill.errors import DataError
from diffdistill.files import parse_json

PAIR_COLUMNS = ("jpg_0", "jpg_1", "label_0", "label_1", "caption")
FEW, MANY = 4, 1 << 16
"""Rows read at a time, of values of any length, and of numbers: a page of kilobytes can say one value many times."""


def is_parquet(_: str, path: Path) -> bool:
    """A file by its ending; a folder by such a file in it or below."""
    return any(path.rglob("*.parquet")) if path.is_dir() else path.suffix.lower() == ".parquet" and path.is_file()


def read_parquet(name: str, path: Path, split: str) -> Source:
    """Reads a file, or the files of a folder that belong to the split (`train-00000-of-00002.parquet`).

    Images are read as they are asked for. Raises DataError without pyarrow, or for a file or column that does not fit.
    """
    files = files_of_split(name, path, split)
    tables = [open_table(file) for file in files]
    schema = tables[0].schema_arrow
    image = image_column(schema.names, name, "rename the one with the images")
    if any(table.schema_arrow.names != schema.names for table in tables):
        raise DataError(f"{name} has files with different columns: make them alike")
    labels, class_names = None, None
    if "label" in schema.names:
        labels, class_names = as_labels(column_of(tables, files, "label"), name, _class_names(schema.metadata))
    texts = as_texts(column_of(tables, files, "text"), name) if "text" in schema.names else None
    count = sum(table.metadata.num_rows for table in tables)
    return Source(count, _images(tables, files, image), labels, texts, class_names)


def read_pairs(name: str, path: Path, split: str, left_out: Counter[str]) -> list[Pair]:
    """Pick-a-Pic's columns; `label_0` is the chance that jpg_0 is the better one: 1, 0, or 0.5 for a tie. Rows whose
    `has_label` is false are left out.
    """
    pairs: list[Pair] = []
    for file in files_of_split(name, path, split):
        table = open_table(file)
        names = table.schema_arrow.names
        missing = [column for column in PAIR_COLUMNS if column not in names]
        if missing:
            raise DataError(
                f"{file} has no column {missing[0]!r}, only {', '.join(names)}: pairs need {', '.join(PAIR_COLUMNS)}"
            )
        columns = [column_of([table], [file], column) for column in PAIR_COLUMNS]
        labelled = column_of([table], [file], "has_label") if "has_label" in names else [True] * len(columns[0])
        for row, (has_label, *values) in enumerate(zip(labelled, *columns, strict=True)):
            if has_label:
                pairs.append(_row_pair(values, f"row {row} of {file}"))
            else:
                left_out["without label"] += 1
    return pairs


def _row_pair(values: Sequence[Any], where: str) -> Pair:
    images, labels = [], tuple(values[2:4])
    for column, value in zip(PAIR_COLUMNS[:2], values[:2], strict=True):
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or not data:
            raise DataError(f"{where} has no image in '{column}': a pair needs both, give it or take the row out")
        images.append((f"{column} in {where}", data))
    if labels not in ((0, 1), (1, 0), (0.5, 0.5)):
        both = f"are both {labels[0]}" if labels[0] == labels[1] else f"are {labels[0]} and {labels[1]}"
        raise DataError(f"{where}: label_0 and label_1 {both}: one must be 1 and the other 0, or both 0.5 for a tie")
    first, second = images if labels != (0, 1) else images[::-1]
    return Pair(first, second, as_caption(values[4], where), tie=labels == (0.5, 0.5))


def files_of_split(name: str, path: Path, split: str) -> list[Path]:
    """A file itself, if it is all there is. In a folder a file belongs to the split that its name starts with or has
    as a word (`mnist-train.parquet`), or that its folder is called; else all are one set.
    """
    if path.is_file():
        only_split(split, name)
        return [path]
    by_split: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*.parquet")):
        by_split.setdefault(_split_of(file.relative_to(path), name), []).append(file)
    if set(by_split) == {""}:
        only_split(split, name)
        return by_split[""]
    tell_left_out(by_split.pop("", []))
    return by_split[pick_split(split, by_split, name)]


def _split_of(file: Path, name: str) -> str:
    """The split that a file's name or its folders say it is of; empty where they say nothing."""
    first, *others = [word.lower() for word in re.split(r"[^A-Za-z0-9]", file.stem)]
    inner = {SPLIT_NAMES[word] for word in others if word in SPLIT_NAMES}
    if first not in SPLIT_NAMES and len(inner) > 1:
        raise DataError(f"{name} has the file {file}, of the splits {' and '.join(sorted(inner))}: name one of them")
    words = [first, *others, *(part.lower() for part in reversed(file.parts[:-1]))]
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def open_table(file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"reading {file} needs pyarrow: pip install 'diffdistill[data]'") from error
    with _damage_named(file):
        table = pyarrow.parquet.ParquetFile(file)
        _check_size(table.metadata, file)
        return table


def _check_size(metadata: Any, file: Path) -> None:
    """DataError for a file that announces more than it can hold: rows, or bytes of a column of a group of rows."""
    size = file.stat().st_size
    if metadata.num_rows > size:
        raise DataError(f"{file} announces {metadata.num_rows} rows and has {size} bytes: it is damaged, take another")
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            check_size(chunk.total_uncompressed_size, size, f"'{chunk.path_in_schema}' of {file}")


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise DataError(f"{file} is damaged, or not a parquet file: fetch it again") from error


def column_of(tables: list[Any], files: list[Path], column: str) -> list[Any]:
    values: list[Any] = []
    for table, file in zip(tables, files, strict=True):
        with _damage_named(file):
            values += _bounded(table, file, column)
    return values


def _bounded(table: Any, file: Path, column: str) -> Iterator[Any]:
    """The values of a column, read a few rows at a time; DataError where they become more than the file can mean."""
    import pyarrow

    rows = MANY if pyarrow.types.is_primitive(table.schema_arrow.field(column).type) else FEW
    unpacked, size = 0, file.stat().st_size
    for batch in table.iter_batches(rows, columns=[column]):
        values = batch.column(0).to_pylist()
        unpacked += max(batch.nbytes, sum(len(value) for value in values if isinstance(value, str | bytes)))
        check_size(unpacked, size, f"'{column}' of {file}")
        yield from values


def _images(tables: list[Any], files: list[Path], column: str) -> Iterator[Entry]:
    for table, file in zip(tables, files, strict=True):
        row = 0
        batches = table.iter_batches(FEW, columns=[column])
        while True:
            with _damage_named(file):
                batch = next(batches, None)
            if batch is None:
                break
            for scalar in batch.column(0):
                value = scalar.as_py()
                data = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(data, bytes):
                    data = DataError(f"{file} has no image bytes in row {row}: keep the images in the file itself")
                yield f"row {row} of {file}", data
                row += 1


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...] | None:
    """The names that Hugging Face data sets keep in the schema."""
    try:
        info = parse_json((metadata or {}).get(b"huggingface", b"{}"))
        names = info.get("info", {}).get("features", {}).get("label", {}).get("names")
    except (ValueError, AttributeError):  # other packages' words under that key
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


FORMAT = Format(
    "parquet",
    30,
    "a parquet file or folder",
    is_parquet,
    read_parquet,
    f"a parquet file or folder with the columns {', '.join(PAIR_COLUMNS)}",
    read_pairs,
)
