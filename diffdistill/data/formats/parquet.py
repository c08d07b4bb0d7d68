"""Parquet files: a column `image` (bytes, or a struct with `bytes`), and `label` or `text`; pairs as Pick-a-Pic's."""

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from diffdistill.data.bounds import check_size
from diffdistill.data.formats import Format
from diffdistill.data.labels import Where
from diffdistill.data.looking import refuse, say_unlisted
from diffdistill.data.shards import alone, files_with, shards_of_split
from diffdistill.data.source import (
    Entry,
    Pair,
    Source,
    as_caption,
    as_labels,
    as_texts,
    changed,
    image_column,
    only_split,
)
from diffdistill.data.tables import caption_column, rows_of_split, say_unread, say_unread_splits, split_column
from diffdistill.data.walk import listed_of, pictures
from diffdistill.errors import DataError
from diffdistill.files import parse_json, stamp

PAIR_COLUMNS = ("jpg_0", "jpg_1", "label_0", "label_1", "caption")
ENDINGS = (".parquet",)
FEW, FEW_IMAGES, MANY = 4, 64, 1 << 16
"""Rows read at a time, of values of any length, of those of one group, and of numbers: a page of kilobytes can say one
value many times."""
GROUPS = 1 << 28  # bytes of groups of rows that stay in memory, where rows are read in any order


def is_parquet(_: str, path: Path) -> bool:
    """A file by its ending; a folder by such a file in it or below."""
    return bool(files_with(path, ENDINGS)) if path.is_dir() else path.suffix.lower() == ".parquet" and path.is_file()


def read_parquet(name: str, path: Path, split: str) -> Source:
    """Reads a file, or the files of a folder that belong to the split (`train-00000-of-00002.parquet`); where a column
    `split` says it, the rows that do.

    Images are read as they are asked for. Raises DataError without pyarrow, or for a file or column that does not fit.
    """
    files, named = (alone(path), False) if path.is_file() else shards_of_split(name, path, split, ENDINGS)
    states = [stamp(file.stat()) for file in files]  # before anything of them is read
    tables = [open_table(file) for file in files]
    names = _columns_of(tables, files, name)
    image = image_column(names, name, "rename the one with the images")
    say_unread(names, name)
    where = _rows_of(tables, files)
    kept = None if named else _kept(tables, files, names, split, name, where)
    if path.is_dir():
        _say_pictures(path, name)
    labels, class_names, texts = None, None, None
    at = where if kept is None else lambda index: where(kept[index])
    if "label" in names:
        values = _chosen(column_of(tables, files, "label"), kept)
        labels, class_names = as_labels(values, name, _names_in(tables, files, name), at)
    if (captions := caption_column(names, name)) is not None:
        texts = as_texts(_chosen(column_of(tables, files, captions), kept), name, at)
    count = sum(table.metadata.num_rows for table in tables) if kept is None else len(kept)
    return Source(count, Rows(tables, files, states, image, kept), labels, texts, class_names)


def _chosen(values: list[Any], kept: list[int] | None) -> list[Any]:
    return values if kept is None else [values[i] for i in kept]


def _rows_of(tables: list[Any], files: list[Path]) -> Where:
    """What messages call a row, by its place in all files."""
    ends = list(accumulate(table.metadata.num_rows for table in tables))

    def where(index: int) -> str:
        file = bisect_right(ends, index)
        return f"row {index - (ends[file - 1] if file else 0)} of {files[file]}"

    return where


def _columns_of(tables: list[Any], files: list[Path], name: str) -> list[str]:
    """The columns that all files have."""
    names: list[str] = tables[0].schema_arrow.names
    for table, file in zip(tables, files, strict=True):
        if sorted(table.schema_arrow.names) != sorted(names):
            raise DataError(
                f"{name} has files with different columns: {files[0].name} has {', '.join(names)}, {file.name} "
                f"{', '.join(table.schema_arrow.names)}; make them alike"
            )
    twice = next((column for column in names if names.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{name} has two columns {twice!r}: leave one of them")
    return names


def _kept(
    tables: list[Any], files: list[Path], names: list[str], split: str, name: str, where: Where
) -> list[int] | None:
    """The rows of a split by a column of splits; None where there is none: all, which are `train`."""
    for column in split_column(names):
        kept = rows_of_split(column, column_of(tables, files, column), split, name, where)
        if kept is not None:
            return kept
    say_unread_splits(names, lambda column: column_of(tables, files, column), name)
    only_split(split, name)
    return None


def _say_pictures(folder: Path, name: str) -> None:
    beside = [file.relative_to(folder) for file in pictures(folder)]
    if beside:
        listed = listed_of(beside)
        say_unlisted(
            f"{name} has parquet files, which are read, and {len(beside)} image files, which are not ({listed})"
        )


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
    """A file itself, if it is all there is; in a folder see `shards_of_split`."""
    files, named = (alone(path), False) if path.is_file() else shards_of_split(name, path, split, ENDINGS)
    if not named:
        only_split(split, name)
    return files


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


class Rows:
    """The images of some files, or of the rows `kept` of them.

    One after the other, a few rows are in memory. In any order, a row is read with its whole group of rows, and the
    last groups stay, up to GROUPS bytes. So groups of dozens of images are read fast, those of ten thousands are not.
    states: the `stamp` of each file before it was opened; DataError where it is another, for rows would not be
    those of the labels that were read.
    """

    def __init__(self, tables: list[Any], files: list[Path], states: list[str], column: str, kept: list[int] | None):
        self.tables, self.files, self.states, self.column, self.kept = tables, files, states, column, kept
        metadata = [table.metadata for table in tables]
        self._groups = [(i, group) for i, one in enumerate(metadata) for group in range(one.num_row_groups)]
        rows = [metadata[i].row_group(group).num_rows for i, group in self._groups]
        self._ends = list(accumulate(rows))
        self._starts = [0, *accumulate(one.num_rows for one in metadata)]
        self._recent: OrderedDict[int, Any] = OrderedDict()
        self._sizes: dict[int, int] = {}

    def __iter__(self) -> Iterator[Entry]:
        wanted, place = None if self.kept is None else set(self.kept), -1
        for number, (table, file) in enumerate(zip(self.tables, self.files, strict=True)):
            row = -1
            batches = table.iter_batches(FEW, columns=[self.column])
            while True:
                with self._unchanged(number):
                    batch = next(batches, None)
                if batch is None:
                    break
                for scalar in batch.column(0):
                    row, place = row + 1, place + 1
                    if wanted is None or place in wanted:
                        yield self._entry(scalar.as_py(), row, file)

    def at(self, places: Sequence[int]) -> Iterator[Entry]:
        chosen = [place if self.kept is None else self.kept[place] for place in places]
        groups = [bisect_right(self._ends, place) for place in chosen]
        found: dict[int, Entry] = {}
        for group in dict.fromkeys(groups):  # each is read once, whatever the order of its rows
            values, first = self._values(group), self._ends[group - 1] if group else 0
            file = self._groups[group][0]
            found |= {
                place: self._entry(values[place - first].as_py(), place - self._starts[file], self.files[file])
                for place, own in zip(chosen, groups, strict=True)
                if own == group
            }
        return (found[place] for place in chosen)

    def _entry(self, value: Any, row: int, file: Path) -> Entry:
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            data = DataError(f"{file} has no image bytes in row {row}: {_instead(value)}")
        return f"row {row} of {file}", data

    @contextmanager
    def _unchanged(self, number: int) -> Iterator[None]:
        """Within, a file is read; a change is told before damage, which may come of it."""
        file = self.files[number]
        try:
            with _damage_named(file):
                yield
        finally:
            try:
                same = stamp(file.stat()) == self.states[number]
            except FileNotFoundError:  # who has it open reads on
                same = True
            if not same:
                raise changed(file)

    def _values(self, group: int) -> Any:
        """The column of a group of rows, still in Arrow's memory."""
        if group not in self._recent:
            import pyarrow

            number, own = self._groups[group]
            file, size = self.files[number], 0
            parts = []
            with self._unchanged(number):
                for batch in self.tables[number].iter_batches(FEW_IMAGES, row_groups=[own], columns=[self.column]):
                    size += batch.nbytes
                    check_size(size, file.stat().st_size, f"'{self.column}' of {file}")
                    parts.append(batch.column(0))
            self._sizes[group], self._recent[group] = size, pyarrow.chunked_array(parts)
            while len(self._recent) > 1 and sum(self._sizes.values()) > GROUPS:
                del self._sizes[self._recent.popitem(last=False)[0]]
        self._recent.move_to_end(group)
        return self._recent[group]


def _instead(value: Any) -> str:
    """What to do where a row holds no bytes of an image."""
    if isinstance(value, list):
        return "it holds a list of numbers; encode the images as PNG"
    if isinstance(value, str):
        return "it holds a text; keep the bytes of the images in the file itself, not base64 or paths"
    return "keep the images in the file itself"


def _names_in(tables: list[Any], files: list[Path], name: str) -> tuple[str, ...] | None:
    """The names of classes in the schemas; DataError where files name them differently, so that labels would clash."""
    found = [_class_names(table.schema_arrow.metadata) for table in tables]
    for names, file in zip(found, files, strict=True):
        if names != found[0]:
            refuse(
                f"{name} has files with different names of classes, {files[0].name} and {file.name}: one label would "
                "mean two things; make them alike"
            )
    return found[0]


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...] | None:
    """The names that Hugging Face data sets keep in the schema: a list, or by their numbers."""
    try:
        info = parse_json((metadata or {}).get(b"huggingface", b"{}"))
        label = info.get("info", info).get("features", {}).get("label", {})
        names = label.get("names", label.get("class_label", {}).get("names"))
        if isinstance(names, dict):
            names = [names[str(label)] for label in range(len(names))]
    except (ValueError, AttributeError, KeyError):  # other packages' words under that key
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
