"""Folders with `metadata.jsonl` or `metadata.csv`, as Hugging Face's image folders have them; and pairs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from diffdistill.data.formats import Format, allowed_pairs
from diffdistill.data.formats.images import files_source
from diffdistill.data.labels import Where
from diffdistill.data.layout import are_splits, of_split
from diffdistill.data.looking import refuse, say, say_unlisted
from diffdistill.data.source import Pair, Source, as_caption, inside, only_split
from diffdistill.data.tables import caption_column, rows_of_split, say_unread, say_unread_splits, split_column
from diffdistill.data.text import Row, csv_rows, json_rows, read_text
from diffdistill.data.walk import listed_of, pictures
from diffdistill.errors import DataError

JSON_LINES, CSV = "metadata.jsonl", "metadata.csv"


@dataclass(frozen=True)
class Listed:
    """The rows of one split: paths of images, their labels and texts, and where they stand, for messages; and the
    paths of all rows.
    """

    files: list[PurePosixPath]
    labels: list[Any] | None
    texts: list[Any] | None
    where: Where
    every: frozenset[PurePosixPath]


def read_metadata(name: str, folder: Path, split: str) -> Source:
    """Rows with `file_name`, and `label` or `text` or both or neither; of the split that the column `split` or the
    folders of the files say, where they say one.
    """
    table = _table_of(folder, name)
    listed = rows_listed(read_text(table), table.name == JSON_LINES, str(table), split, name)
    there = [path.relative_to(folder) for path in pictures(folder)]
    unlisted = [file for file in there if file not in listed.every]
    if unlisted:
        say_unlisted(sentence_of_unlisted(unlisted, name, table.name))
    files = [folder / file for file in listed.files]
    return files_source(name, files, listed.labels, texts=listed.texts, where=listed.where)


def rows_listed(text: str, of_json: bool, table: str, split: str, name: str) -> Listed:
    """What the text of a table says, of JSON lines or of CSV; see `read_metadata`. table: its name, for messages."""
    rows = []
    files = []
    lines = _json_lines if of_json else _csv_rows
    for line, row in lines(text, table):
        if not isinstance(row.get("file_name"), str) or not row["file_name"]:
            refuse(
                f"line {line} of {table} has no 'file_name': name the image, relative to the folder",
                f"no 'file_name' in {table}",
            )
            continue
        rows.append((line, row))
        files.append(PurePosixPath(inside(row["file_name"], table)))
    columns = {column: None for _, row in rows for column in row}
    _say_folders(files, columns, table)
    _check_once(rows, files, table)
    say_unread(columns, table)
    kept = _kept(rows, files, split, name, table)
    labels = [rows[i][1].get("label") for i in kept] if "label" in columns else None
    captions = caption_column(columns, table)
    texts = None if captions is None else [rows[i][1].get(captions) for i in kept]
    where = _lines_of([rows[i][0] for i in kept], table)
    return Listed([files[i] for i in kept], labels, texts, where, frozenset(files))


def _table_of(folder: Path, name: str) -> Path:
    there = [folder / table for table in (JSON_LINES, CSV) if (folder / table).is_file()]
    if len(there) > 1:
        refuse(f"{name} has both {JSON_LINES} and {CSV}: leave the one that counts")
    return there[0]


def _lines_of(lines: list[int], table: str) -> Where:
    return lambda index: f"line {lines[index]} of {table}"


def _kept(rows: list[Row], files: list[PurePosixPath], split: str, name: str, table: str) -> list[int]:
    """The rows of a split, by a column of splits or else by the folders of the files."""
    where = _lines_of([line for line, _ in rows], table)
    for column in split_column(column for _, row in rows for column in row):
        kept = rows_of_split(column, [row.get(column) for _, row in rows], split, name, where)
        if kept is not None:
            return kept
    columns = {column for _, row in rows for column in row}
    say_unread_splits(columns, lambda column: [row.get(column) for _, row in rows], table)
    return of_split(files, split, name)


def _check_once(rows: list[Row], files: list[PurePosixPath], table: str) -> None:
    """DataError for a file that is listed with two labels, or twice with the same; with two texts it may be."""
    texts: dict[tuple[PurePosixPath, str], int] = {}
    first: dict[PurePosixPath, Row] = {}
    for (line, row), file in zip(rows, files, strict=True):
        key = file, repr(row.get("text"))
        before, other = first.setdefault(file, (line, row))
        if before != line and other.get("label") != row.get("label"):
            refuse(
                f"line {line} of {table} gives {file} the label {row.get('label')!r} and line {before} "
                f"{other.get('label')!r}: an image has one",
                f"two labels in {table}",
            )
        elif before != line and (first_of := texts.get(key)) is not None:
            refuse(
                f"line {line} of {table} lists {file} again, as line {first_of} does: it would count twice, take one "
                "out",
                f"listed twice in {table}",
            )
        texts.setdefault(key, line)


def _say_folders(files: list[PurePosixPath], columns: Iterable[str], table: str) -> None:
    """A warning where images lie in folders that may be classes, and the table has no labels."""
    folders = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    if "label" not in columns and len(folders) > 1 and not are_splits(folders):
        listed = ", ".join(folders[:3])
        say(f"{table} has no column 'label', and the folders of its images ({listed}) are not read as classes")


def sentence_of_unlisted(files: Sequence[PurePath], name: str, table: str) -> str:
    """What is said of images that a table does not name."""
    return f"{name} has {len(files)} images that {table} does not list, left out ({listed_of(files)})"


def read_pairs(name: str, folder: Path, split: str, _left_out: Counter[str]) -> list[Pair]:
    """Lines with the files `win` and `lose`, relative to the folder, and `text`, for which both were made."""
    table = folder / JSON_LINES
    if not table.is_file():
        raise DataError(f"{name} holds no pairs: give {allowed_pairs()}")
    only_split(split, name)
    pairs = []
    for line, row in _json_lines(read_text(table), str(table)):
        where = f"line {line} of {table}"
        files = []
        for key in ("win", "lose"):
            if not isinstance(row.get(key), str) or not row[key]:
                raise DataError(f"{where} has no '{key}': name both images of the pair, relative to the folder")
            file = folder / inside(row[key], str(table))
            if not file.is_file():
                raise DataError(f"{where}: there is no image {file}: add it or take the pair off the list")
            files.append(file)
        if files[0] == files[1]:
            raise DataError(
                f"{where}: 'win' and 'lose' are both {row['win']!r}: name two images, of which one is wanted"
            )
        win, lose = ((str(file), file) for file in files)
        pairs.append(Pair(win, lose, as_caption(row.get("text"), where)))
    return pairs


def _json_lines(text: str, table: str) -> list[Row]:
    return list(json_rows(text, table, '{"file_name": "..."} or, for pairs, {"win": "...", ...}'))


def _csv_rows(text: str, table: str) -> list[Row]:
    return list(csv_rows(text, table, ("file_name",), "file_name,text"))


FORMAT = Format(
    "metadata",
    10,
    f"a folder with {JSON_LINES} or {CSV}",
    lambda _, path: (path / JSON_LINES).is_file() or (path / CSV).is_file(),
    read_metadata,
    f'a folder with a {JSON_LINES} of lines {{"win": FILE, "lose": FILE, "text": CAPTION}}',
    read_pairs,
)
