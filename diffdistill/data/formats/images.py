"""Folders of image files: of one subfolder a class, of loose images, or of one subfolder a split."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from diffdistill.data.formats import Format, open_at
from diffdistill.data.layout import are_splits, by_number, check_no_split, class_labels, passed_over
from diffdistill.data.looking import refuse
from diffdistill.data.source import UNLABELLED, Source, as_labels, as_texts, is_picture, only_split, pick_split
from diffdistill.errors import DataError
from diffdistill.files import read_json

SAMPLES = "samples.json"  # what `diffdistill sample` writes beside its images
LISTS = ("dataset.json", "metadata.jsonl", "metadata.csv")  # files that say what is in a folder


def read_images(name: str, folder: Path, split: str) -> Source:
    """Subfolders of splits (`train`, `test`), each of any format; or loose images, without labels; or subfolders of
    classes. A single subfolder that holds the set is entered. Hidden files and files of other kinds are passed over.
    """
    subfolders = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and _visible(path)}
    loose = _files_in(folder, folder.iterdir())
    if not loose and are_splits(subfolders):
        return open_at(name, subfolders[pick_split(split, subfolders, name)], "train")
    if not loose and len(subfolders) == 1 and _is_set(inner := next(iter(subfolders.values()))):
        return open_at(name, inner, split)
    only_split(split, name)
    passed_over(folder.rglob("*"), name)
    texts = None
    if (folder / SAMPLES).is_file():
        loose = [path for path in loose if path.stem.isdecimal()]  # not the grid
        texts = _sampled_texts(folder / SAMPLES, loose)
    classes = {sub: pictures(path) for sub, path in subfolders.items()}
    if not any(classes.values()):
        return files_source(name, loose, texts=texts)
    if loose:
        refuse(
            f"{name} has both loose images ({loose[0].name}) and subfolders of images ({next(iter(classes))}): "
            "put all into class subfolders, or none"
        )
    empty = next((sub for sub, files in classes.items() if not files), None)
    if empty is not None:
        refuse(f"{name} has the class folder {empty!r} without an image: fill it or remove it")
    deeper = [sub for sub, files in classes.items() if any(file.parent != subfolders[sub] for file in files)]
    check_no_split(classes, deeper, name)
    labels, class_names = class_labels(list(classes), name)
    by_label = sorted(classes, key=lambda sub: labels[sub])
    values = [labels[sub] for sub in by_label for _ in classes[sub]] + [UNLABELLED] * len(loose)
    return files_source(name, [file for sub in by_label for file in classes[sub]] + loose, values, class_names)


def pictures(folder: Path) -> list[Path]:
    """All image files below a folder, in the order of their names and numbers."""
    return _files_in(folder, folder.rglob("*"))


def _files_in(folder: Path, paths: Iterable[Path]) -> list[Path]:
    found = (path for path in paths if is_picture(path.relative_to(folder)))
    # A link that leads nowhere is named later; a pipe or a device, which might never end, is no picture.
    there = [path for path in found if path.is_file() or (path.is_symlink() and not path.exists())]
    return sorted(there, key=lambda path: by_number(path.relative_to(folder)))


def _is_set(folder: Path) -> bool:
    """Whether a folder holds a set, and is not one class: it has a list of its files, or folders alone."""
    paths = [path for path in folder.iterdir() if _visible(path)]
    return any(path.name in LISTS for path in paths) or (bool(paths) and all(path.is_dir() for path in paths))


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
