"""Folders of image files: of one subfolder a class, of loose images, or of one subfolder a split."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdistill.data.formats import Format, open_at
from diffdistill.data.formats.sidecars import texts_beside
from diffdistill.data.labels import Where, image_at
from diffdistill.data.layout import are_splits, by_class, say_other_folders
from diffdistill.data.looking import refuse, tell_left_out
from diffdistill.data.source import (
    Entry,
    Source,
    Span,
    as_labels,
    as_texts,
    is_hidden,
    only_split,
    pick_split,
    split_word,
)
from diffdistill.data.text import text_or_error
from diffdistill.data.walk import LISTS, files_below, head_of, pictures, pictures_of, say_hidden, say_left_out
from diffdistill.errors import DataError
from diffdistill.files import read_json, stamp

MOST = 1 << 30  # bytes of a file that is read as a whole; a larger one is opened by its path
SAMPLES, GRID = "samples.json", "grid.png"  # what `diffdistill sample` writes beside its images


def read_images(name: str, folder: Path, split: str) -> Source:
    """Subfolders of splits (`train`, `test`), each of any format; or loose images, without labels; or subfolders of
    classes; with captions where text files of the images' names lie beside them. A single subfolder that holds the set
    is entered. Hidden files are passed over, and files of other kinds.
    """
    paths = [path for path in sorted(folder.iterdir()) if not is_hidden(path.name)]
    subfolders = {path.name: path for path in paths if path.is_dir()}
    loose = pictures_of([path for path in paths if path.name not in subfolders], folder)
    if not loose and are_splits(subfolders):
        chosen = subfolders[pick_split(split, subfolders, name)]
        others = {sub: pictures(path) for sub, path in subfolders.items() if not split_word(sub)}
        say_other_folders({sub for sub, files in others.items() if files}, name)
        tell_left_out(file for files in others.values() for file in files)
        return open_at(name, chosen, "train")
    if not loose and len(subfolders) == 1 and _is_set(inner := next(iter(subfolders.values()))):
        return open_at(name, inner, split)
    only_split(split, name)
    hidden: list[Path] = []
    files = files_below(folder, hidden=hidden)
    say_hidden(hidden, name)
    _check_no_list(files, folder, name)
    images = pictures_of(files, folder)
    sampled = (folder / SAMPLES).is_file()
    if sampled:
        images = [path for path in images if path != folder / GRID]
    say_left_out([path.relative_to(folder) for path in files], name, lambda path: head_of(folder / path))
    filled = {path.relative_to(folder).parts[0] for path in images}
    empty = [sub for sub in subfolders if sub not in filled]
    order, labels, class_names = by_class([path.relative_to(folder) for path in images], name, empty)
    images = [images[i] for i in order]
    if labels is not None and empty:
        refuse(f"{name} has the class folder {empty[0]!r} without an image: fill it or remove it")
    texts: Sequence[Any] | None = _sampled_texts(folder / SAMPLES, images) if sampled else None
    if texts is None:
        texts = texts_beside(images, files, lambda chosen: (text_or_error(file, str(file)) for file in chosen), name)
    return files_source(name, images, labels, class_names, texts)


def _check_no_list(files: Sequence[Path], folder: Path, name: str) -> None:
    """DataError for a list of labels or captions that lies deeper, where nobody would read it."""
    deep = next((path for path in files if path.name in LISTS), None)
    if deep is not None:
        refuse(
            f"{name} has the list {deep.relative_to(folder)}, inside of one of its folders: move it to the top, with "
            "the paths of the images from there"
        )


def _is_set(folder: Path) -> bool:
    """Whether a folder holds a set, and is not one class: it has a list of its files, or folders alone."""
    paths = [path for path in folder.iterdir() if not is_hidden(path.name)]
    return any(path.name in LISTS for path in paths) or (bool(paths) and all(path.is_dir() for path in paths))


def files_source(
    name: str,
    files: Sequence[Path],
    labels: Sequence[Any] | None = None,
    class_names: tuple[str, ...] | None = None,
    texts: Sequence[Any] | None = None,
    where: Where = image_at,
) -> Source:
    """Image files with their labels and texts; DataError where there are none, or a label or text is missing.

    where: what messages call the image of a place, beside its path; as `image 3` says no more than that, it is left
    out.
    """
    if not files:
        raise DataError(f"{name} is a folder without images: give one with images, parquet or IDX files")
    values = None
    if labels is not None:
        at = where if where is not image_at else lambda index: f"image {index} ({files[index]})"
        values, class_names = as_labels(labels, name, class_names, at)
    beside = "" if where is image_at else " ({})"
    images = Files(files, lambda i: str(files[i]) + beside.format(where(i)), list(map(_known, files)))
    return Source(len(files), images, values, None if texts is None else as_texts(texts, name, where), class_names)


@dataclass(frozen=True)
class Files:
    """Image files, and what messages call the one of a place.

    known: size and `stamp` of each when the set was opened, None of one that was not there. In any order, which goes
    on for as long as a run does, a file is read as it was then, or it is told that it has gone or changed.
    """

    files: Sequence[Path]
    name: Callable[[int], str]
    known: Sequence[tuple[int, str] | None]

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        return ((self.name(place), file) for place, file in enumerate(self.files))

    def at(self, places: Sequence[int]) -> Iterator[Entry]:
        return ((self.name(place), self._at(place)) for place in places)

    def _at(self, place: int) -> Path | Span:
        known, file = self.known[place], self.files[place]
        return file if known is None or known[0] > MOST else Span(file, 0, known[0], state=known[1])


def _known(file: Path) -> tuple[int, str] | None:
    try:
        found = file.stat()
    except FileNotFoundError:  # told by its name when it is read
        return None
    return found.st_size, stamp(found)


def _sampled_texts(record: Path, files: list[Path]) -> list[Any] | None:
    """The prompts of images that `diffdistill sample` drew, in the order of the files; None where one has none."""
    try:
        prompts = {image["file"]: image.get("prompt") for image in read_json(record)["images"]}
    except (ValueError, KeyError, TypeError, AttributeError):  # someone else's file of that name
        return None
    texts = [prompts.get(file.name) for file in files]
    return None if None in texts else texts


FORMAT = Format("images", 100, "a folder of images", lambda _, path: path.is_dir(), read_images)
