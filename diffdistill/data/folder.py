"""Folders: images with or without class subfolders or metadata; split subfolders; folders of parquet or IDX files."""

import csv
import json
from pathlib import Path
from typing import Any

from diffdistill.data import idx
from diffdistill.data.archive import LABELS, labels_of
from diffdistill.data.source import (
    SPLIT_NAMES,
    Source,
    as_labels,
    as_texts,
    inside,
    is_picture,
    only_split,
    pick_split,
)
from diffdistill.errors import DataError

SAMPLES = "samples.json"  # what `diffdistill sample` writes beside its images


def read_folder(folder: Path, name: str, split: str) -> Source:
    """Reads a folder by what lies in it. Hidden files and files of other kinds are passed over.

    In this order: `metadata.jsonl` or `metadata.csv`; `dataset.json`; parquet files; IDX files; subfolders that all
    have the names of splits (`train`, `test`); loose images, without labels; subfolders of classes, sorted by name.
    """
    for metadata, parse in ((folder / "metadata.jsonl", parse_jsonl), (folder / "metadata.csv", _parse_csv)):
        if metadata.is_file():
            only_split(split, name)
            return _read_metadata(folder, name, parse(metadata), metadata)
    if (folder / LABELS).is_file():
        only_split(split, name)
        return _read_listed(folder, name)
    if any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet")):
        from diffdistill.data.parquet import read_parquet

        return read_parquet(folder, name, split)
    if idx.find_pairs(folder):
        return idx.read_folder(folder, name, split)
    subfolders = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and _visible(path)}
    loose = [path for path in sorted(folder.iterdir()) if is_picture(path.relative_to(folder)) and path.is_file()]
    if subfolders and not loose and all(sub.lower() in SPLIT_NAMES for sub in subfolders):
        return read_folder(subfolders[pick_split(split, subfolders, name)], name, "train")
    only_split(split, name)
    texts = None
    if (folder / SAMPLES).is_file():
        loose = [path for path in loose if path.stem.isdecimal()]  # not the grid
        texts = _sampled_texts(folder / SAMPLES, loose)
    classes = {sub: _pictures(path) for sub, path in subfolders.items()}
    if not any(classes.values()):
        return _files(folder, name, loose, texts=texts)
    if loose:
        raise DataError(
            f"{name} has both loose images ({loose[0].name}) and subfolders of images ({next(iter(classes))}): "
            "put all into class subfolders, or none"
        )
    empty = next((sub for sub, files in classes.items() if not files), None)
    if empty is not None:
        raise DataError(f"{name} has the class folder {empty!r} without an image: fill it or remove it")
    labels = [label for label, files in enumerate(classes.values()) for _ in files]
    return _files(folder, name, [file for files in classes.values() for file in files], labels, tuple(classes))


def _sampled_texts(record: Path, files: list[Path]) -> list[Any] | None:
    """The prompts of images that `diffdistill sample` drew, in the order of the files; None where one has none."""
    try:
        prompts = {image["file"]: image.get("prompt") for image in json.loads(_text(record))["images"]}
    except (ValueError, KeyError, TypeError, AttributeError):  # someone else's file of that name
        return None
    texts = [prompts.get(file.name) for file in files]
    return None if None in texts else texts


def _visible(path: Path) -> bool:
    return not path.name.startswith((".", "__MACOSX"))


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if is_picture(path.relative_to(folder)))


def _files(
    folder: Path,
    name: str,
    files: list[Path],
    labels: list[Any] | None = None,
    class_names: tuple[str, ...] | None = None,
    texts: list[Any] | None = None,
) -> Source:
    if not files:
        raise DataError(f"{name} is a folder without images: give one with images, parquet or IDX files")
    values = None
    if labels is not None:
        values, class_names = as_labels(labels, name, class_names)
    images = ((str(path), path) for path in files)
    return Source(len(files), images, values, None if texts is None else as_texts(texts, name), class_names)


def _read_listed(folder: Path, name: str) -> Source:
    """A folder in the layout of EDM's zip files."""
    files = _pictures(folder)
    labels = labels_of(
        (folder / LABELS).read_bytes(), [file.relative_to(folder).as_posix() for file in files], f"{LABELS} in {name}"
    )
    return _files(folder, name, files, labels)


def _read_metadata(folder: Path, name: str, rows: list[tuple[int, dict[str, Any]]], metadata: Path) -> Source:
    """Rows with `file_name`, and `label` or `text` or both or neither, as Hugging Face image folders have them."""
    files = []
    for line, row in rows:
        if not isinstance(row.get("file_name"), str) or not row["file_name"]:
            raise DataError(f"line {line} of {metadata} has no 'file_name': name the image, relative to the folder")
        files.append(folder / inside(row["file_name"], str(metadata)))
    columns = {column for _, row in rows for column in row}
    labels = [row.get("label") for _, row in rows] if "label" in columns else None
    texts = [row.get("text") for _, row in rows] if "text" in columns else None
    return _files(folder, name, files, labels, texts=texts)


def parse_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, text in enumerate(_text(path).splitlines(), start=1):
        if text.strip():
            try:
                row = json.loads(text)
            except ValueError as error:
                raise DataError(f"line {line} of {path} is not JSON ({error}): write one object a line") from error
            if not isinstance(row, dict):
                raise DataError(f"line {line} of {path} is not a JSON object: write one object a line")
            rows.append((line, row))
    return rows


def _parse_csv(path: Path) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True))
    return [(reader.line_num, row) for row in reader]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
