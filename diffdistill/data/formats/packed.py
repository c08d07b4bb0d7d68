"""A set that is packed in a file, zip or tar: read as the folder that was packed would be."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from diffdistill.data.formats.metadata import JSON_LINES, rows_listed, sentence_of_unlisted
from diffdistill.data.formats.sidecars import texts_beside
from diffdistill.data.labels import Where, image_at
from diffdistill.data.layout import by_class, by_number, of_split
from diffdistill.data.looking import given, refuse, say
from diffdistill.data.source import (
    UNLABELLED,
    Entry,
    Source,
    Span,
    as_labels,
    as_texts,
    inside,
    is_hidden,
    is_picture,
    split_of,
    split_word,
)
from diffdistill.data.text import text_or_error
from diffdistill.data.walk import LISTS, is_hidden_picture, say_hidden, say_left_out
from diffdistill.errors import DataError
from diffdistill.files import Twice, parse_json

LABELS = "dataset.json"
MAX_PACKED_WELL = 2**24  # bytes up to which a file may be nothing but zeros
MAX_MEMBER = 2**28  # bytes; no picture of a data set is larger, a bomb is


@dataclass(frozen=True)
class Packed:
    """The visible files of an archive. name: DATA, for messages. read: the bytes of members, in the order asked for;
    of each so many, where a number is given; in the place of those of a damaged one what is wrong with it. place: one
    member, wherever it lies; where it is not packed in the archive, its place there.
    """

    name: str
    files: Mapping[PurePosixPath, Any]
    read: Callable[[Sequence[PurePosixPath], int | None], Iterator[bytes | DataError]]
    place: Callable[[PurePosixPath], bytes | Span | DataError]

    def encoded(self, files: Sequence[PurePosixPath], where: Where = image_at) -> "Members":
        """where: what messages call the image of a place, beside its path, see `files_source`."""
        return Members(self, files, where)

    def texts(self, files: Sequence[PurePosixPath]) -> Iterator[str | DataError]:
        for file, data in zip(files, self.read(files, None), strict=True):
            yield data if isinstance(data, DataError) else text_or_error(data, f"{file} in {self.name}")

    def one(self, file: PurePosixPath, most: int | None = None) -> bytes | DataError:
        return next(self.read([file], most))


@dataclass(frozen=True)
class Members:
    """The images of an archive, in an order of their own; see `Packed.encoded`."""

    packed: Packed
    files: Sequence[PurePosixPath]
    where: Where

    def __iter__(self) -> Iterator[Entry]:
        read = self.packed.read([file for file in self.files if file in self.packed.files], None)
        for i, file in enumerate(self.files):
            yield self._name(i), next(read) if file in self.packed.files else self._lost(i)

    def at(self, places: Sequence[int]) -> Iterator[Entry]:
        for i in places:
            file = self.files[i]
            yield self._name(i), self.packed.place(file) if file in self.packed.files else self._lost(i)

    def _name(self, place: int) -> str:
        beside = "" if self.where is image_at else f" ({self.where(place)})"
        return f"{self.files[place]} in {self.packed.name}{beside}"

    def _lost(self, place: int) -> DataError:
        return DataError(f"there is no image {self._name(place)}: add it or take it off the list")


def visible_files(members: Iterator[tuple[str, Any]], name: str) -> dict[PurePosixPath, Any]:
    """Members by their path; DataError for one that leads out of the archive, or that is there twice."""
    files: dict[PurePosixPath, Any] = {}
    hidden = []
    for member, value in members:
        file = PurePosixPath(inside(member, name))
        if any(map(is_hidden, file.parts)):
            if is_hidden_picture(file):
                hidden.append(file)
            continue
        if file in files:
            refuse(f"{name} has the file {file} twice: leave one in it", f"a file twice in {name}")
        files[file] = value
    say_hidden(hidden, name)
    return files


def read_packed(packed: Packed, split: str) -> Source:
    """Images in the order of their names; labels from `{"labels": [[file, label], ...]}`, if such a list is there.

    A `metadata.jsonl` or `metadata.csv` is read as in a folder. Without a list an archive is what the folder in it
    would be: one of splits, of class folders, or of loose images, with captions in text files beside them.
    """
    name = packed.name
    listing = _listing(packed)
    if listing is not None and listing.name != LABELS:
        return _of_table(packed, listing, split)
    say_left_out(list(packed.files), name, lambda file: _head(packed, PurePosixPath(file)))
    images = sorted(filter(is_picture, packed.files), key=by_number)
    labels: list[Any] | None = None
    class_names = None
    if listing is not None:
        top = listing.parent
        names = [file.relative_to(top) if file.is_relative_to(top) else file for file in images]
        labels = labels_of(given(packed.one(listing), b"{}"), names, f"{LABELS} in {name}")
        kept = of_split(names, split, name)
        images, labels = [images[i] for i in kept], None if labels is None else [labels[i] for i in kept]
    else:
        kept = of_split(images, split, name)
        of_splits = split_of if len(kept) == len(images) else split_word
        images = [images[i] for i in kept]
        if images:
            order, labels, class_names = by_class(below_the_shared(images, PurePosixPath(name).stem, of_splits), name)
            images = [images[i] for i in order]
    texts = texts_beside(images, packed.files, packed.texts, name)
    values = None
    if labels is not None:
        values, class_names = as_labels(labels, name, class_names, lambda i: f"image {i} ({images[i]})")
    captions = None if texts is None else as_texts(texts, name)
    return Source(len(images), packed.encoded(images), values, captions, class_names)


def _of_table(packed: Packed, table: PurePosixPath, split: str) -> Source:
    """The images that a `metadata.jsonl` or `metadata.csv` lists, by their paths from where it lies."""
    name, top = packed.name, table.parent
    images = sorted(filter(is_picture, packed.files), key=by_number)
    deep = next((file for file in images if not file.is_relative_to(top)), None)
    if deep is not None:
        refuse(
            f"{name} has the list {table}, inside of one of its folders: move it to the top, with the paths of the "
            "images from there"
        )
    called = f"{table} in {name}"
    text = given(next(iter(packed.texts([table]))), "")
    listed = rows_listed(text, table.name == JSON_LINES, called, split, name)
    files = [top / file for file in listed.files]
    every = {top / file for file in listed.every}
    unlisted = [file for file in images if file not in every]
    if unlisted:
        say(sentence_of_unlisted(unlisted, name, table.name))
    if not files:
        return Source(0, [])
    values, class_names = None, None
    if listed.labels is not None:
        values, class_names = as_labels(listed.labels, name, where=listed.where)
    captions = None if listed.texts is None else as_texts(listed.texts, name, listed.where)
    return Source(len(files), packed.encoded(files, listed.where), values, captions, class_names)


def _head(packed: Packed, file: PurePosixPath) -> bytes:
    data = packed.one(file, 16)
    return b"" if isinstance(data, DataError) else data


def below_the_shared(
    files: Sequence[PurePosixPath], archive: str, of_splits: Callable[[str], str | None] = split_of
) -> list[PurePosixPath]:
    """Paths from the folder on that the set begins in: folders around all of it were packed with it.

    A folder with images in it is such a one where it is called as the archive or as a split is; else it is a class, as
    it is in a folder. of_splits: the split that the name of a folder says, or None.

    >>> [str(below_the_shared([PurePosixPath(file)], "set")[0]) for file in ("a/cat/1.png", "set/1.png", "cat/1.png")]
    ['cat/1.png', '1.png', 'cat/1.png']
    """
    depth = 0
    while len({file.parts[: depth + 1] for file in files}) == 1 and all(len(file.parts) > depth + 1 for file in files):
        shared = files[0].parts[depth]
        loose = any(len(file.parts) == depth + 2 for file in files)
        if loose and shared != archive and of_splits(shared) is None:
            break
        depth += 1
    return [PurePosixPath(*file.parts[depth:]) for file in files]


def _listing(packed: Packed) -> PurePosixPath | None:
    """The list of labels or captions; DataError for several."""
    lists = [file for file in packed.files if file.name in LISTS]
    if len(lists) > 1:
        refuse(f"{packed.name} has {len(lists)} lists of images, such as {lists[0]} and {lists[1]}: leave one in it")
    return lists[0] if lists else None


def labels_of(listing: bytes, names: Sequence[PurePosixPath], name: str) -> list[Any] | None:
    """The label of each file from the text of a `dataset.json`, or None where it has no labels."""
    try:
        entries = parse_json(listing, unique=True).get("labels")
        if entries is None:
            return None
        pairs = [(PurePosixPath(file.replace("\\", "/")), label) for file, label in _entries(entries)]
    except Twice as error:
        raise DataError(f"{name} has {error}: which counts? leave one") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f'{name} is not of the form {{"labels": [[file, label], ...]}}: write it so') from error
    labels: dict[PurePosixPath, Any] = {}
    for file, label in pairs:
        if labels.setdefault(file, label) != label:
            refuse(
                f"{name} gives {file} the labels {labels[file]!r} and {label!r}: an image has one",
                f"two labels in {name}",
            )
    missing = next((file for file in names if file not in labels), None)
    if missing is not None:
        refuse(f"{name} has no label for {missing}: give every image one, or none")
    absent = sorted(map(str, labels.keys() - set(names)))
    if absent:
        refuse(
            f"{name} lists {len(absent)} images that are not there, such as {absent[0]}: add them, or take them off "
            "the list"
        )
    return [labels.get(file, UNLABELLED) for file in names]


def _entries(entries: Any) -> Any:
    return entries.items() if isinstance(entries, dict) else entries
