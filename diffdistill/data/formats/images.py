"""Folders of image files: of one subfolder a class, of loose images, or of one subfolder a split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffdistill.data.formats import Format, open_at
from diffdistill.data.source import SPLIT_NAMES, Source, as_labels, as_texts, is_picture, only_split, pick_split
from diffdistill.errors import DataError
from diffdistill.files import read_json

SAMPLES = "samples.json"  # what `diffdistill sample` writes beside its images


def read_images(name: str, folder: Path, split: str) -> Source:
    """Subfolders that all have the names of splits (`train`, `test`), each of any format; or loose images, without
    labels; or subfolders of classes, sorted by name. Hidden files and files of other kinds are passed over.
    """
    subfolders = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and _visible(path)}
    loose = [path for path in sorted(folder.iterdir()) if is_picture(path.relative_to(folder)) and path.is_file()]
    if subfolders and not loose and all(sub.lower() in SPLIT_NAMES for sub in subfolders):
        return open_at(name, subfolders[pick_split(split, subfolders, name)], "train")
    only_split(split, name)
    texts = None
    if (folder / SAMPLES).is_file():
        loose = [path for path in loose if path.stem.isdecimal()]  # not the grid
        texts = _sampled_texts(folder / SAMPLES, loose)
    classes = {sub: pictures(path) for sub, path in subfolders.items()}
    if not any(classes.values()):
        return files_source(name, loose, texts=texts)
    if loose:
        raise DataError(
            f"{name} has both loose images ({loose[0].name}) and subfolders of images ({next(iter(classes))}): "
            "put all into class subfolders, or none"
        )
    empty = next((sub for sub, files in classes.items() if not files), None)
    if empty is not None:
        raise DataError(f"{name} has the class folder {empty!r} without an image: fill it or remove it")
    labels = [label for label, files in enumerate(classes.values()) for _ in files]
    return files_source(name, [file for files in classes.values() for file in files], labels, tuple(classes))


def pictures(folder: Path) -> list[Path]:
    """All image files below a folder, sorted."""
    found = (path for path in folder.rglob("*") if is_picture(path.relative_to(folder)))
    # A link that leads nowhere is named later; a pipe or a device, which might never end, is no picture.
    return sorted(path for path in found if path.is_file() or (path.is_symlink() and not path.exists()))


def files_source(
    name: str,
    files: Sequence[Path],
    labels: Sequence[Any] | None = None,
    class_names: tuple[str, ...] | None = None,
    texts: Sequence[Any] | None = None,
) -> Source:
    """Image files with their labels and texts; DataError where there are none, or a label or text is missing."""
    if not files:
        raise DataError(f"{name} is a folder without images: give one with images, parquet or IDX files")
    values = None
    if labels is not None:
        values, class_names = as_labels(labels, name, class_names)
    images = ((str(path), path) for path in files)
    return Source(len(files), images, values, None if texts is None else as_texts(texts, name), class_names)


def _sampled_texts(record: Path, files: list[Path]) -> list[Any] | None:
    """The prompts of images that `diffdistill sample` drew, in the order of the files; None where one has none."""
    try:
        prompts = {image["file"]: image.get("prompt") for image in read_json(record)["images"]}
    except (ValueError, KeyError, TypeError, AttributeError):  # someone else's file of that name
        return None
    texts = [prompts.get(file.name) for file in files]
    return None if None in texts else texts


def _visible(path: Path) -> bool:
    return not path.name.startswith((".", "__MACOSX"))


FORMAT = Format("images", 100, "a folder of images", lambda _, path: path.is_dir(), read_images)
