"""Folders with `metadata.jsonl` or `metadata.csv`, as Hugging Face's image folders have them; and pairs."""

from collections import Counter
from pathlib import Path

from diffdistill.data.formats import Format, allowed_pairs
from diffdistill.data.formats.images import files_source
from diffdistill.data.looking import refuse
from diffdistill.data.source import Pair, Source, as_caption, inside, only_split
from diffdistill.data.text import Row, csv_rows, json_rows, read_text
from diffdistill.errors import DataError

JSON_LINES, CSV = "metadata.jsonl", "metadata.csv"


def read_metadata(name: str, folder: Path, split: str) -> Source:
    """Rows with `file_name`, and `label` or `text` or both or neither."""
    only_split(split, name)
    table = folder / JSON_LINES if (folder / JSON_LINES).is_file() else folder / CSV
    rows = _json_lines(table) if table.name == JSON_LINES else _csv_rows(table)
    files = []
    named = []
    for line, row in rows:
        if not isinstance(row.get("file_name"), str) or not row["file_name"]:
            refuse(
                f"line {line} of {table} has no 'file_name': name the image, relative to the folder",
                f"no 'file_name' in {table}",
            )
            continue
        named.append(row)
        files.append(folder / inside(row["file_name"], str(table)))
    columns = {column for row in named for column in row}
    labels = [row.get("label") for row in named] if "label" in columns else None
    texts = [row.get("text") for row in named] if "text" in columns else None
    return files_source(name, files, labels, texts=texts)


def read_pairs(name: str, folder: Path, split: str, _left_out: Counter[str]) -> list[Pair]:
    """Lines with the files `win` and `lose`, relative to the folder, and `text`, for which both were made."""
    table = folder / JSON_LINES
    if not table.is_file():
        raise DataError(f"{name} holds no pairs: give {allowed_pairs()}")
    only_split(split, name)
    pairs = []
    for line, row in _json_lines(table):
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


def _json_lines(table: Path) -> list[Row]:
    return list(json_rows(read_text(table), str(table), '{"file_name": "..."} or, for pairs, {"win": "...", ...}'))


def _csv_rows(table: Path) -> list[Row]:
    return list(csv_rows(read_text(table), str(table), ("file_name",), "file_name,text"))


FORMAT = Format(
    "metadata",
    10,
    f"a folder with {JSON_LINES} or {CSV}",
    lambda _, path: (path / JSON_LINES).is_file() or (path / CSV).is_file(),
    read_metadata,
    f'a folder with a {JSON_LINES} of lines {{"win": FILE, "lose": FILE, "text": CAPTION}}',
    read_pairs,
)
