"""What the names of files and folders say: their order, the splits and the classes they stand for."""

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from diffdistill.data.labels import NUMBER, UNLABELLED, Names, classes_of, number_key, whole_name
from diffdistill.data.looking import refuse, say, say_unlisted, tell_left_out
from diffdistill.data.source import only_split, pick_split, split_of, split_word

PICTURES = {"image", "images", "img", "imgs", "jpg", "jpeg", "jpegimages", "png", "pngs"}
"""How folders are called that hold the pictures of a set and are no class, in lower case."""

HIGHEST = 1000  # a folder's number is a label up to here; above, where so many classes could be


def by_number(path: PurePath) -> tuple[object, ...]:
    """Key that sorts `2.png` before `10.png`, as `02.png` is before it by the alphabet: folder by folder."""
    return tuple(map(number_key, path.parts))


def are_splits(folders: Iterable[str]) -> bool:
    """Whether folders are the splits of a set, not its classes: all have the names of splits, or two of them do.

    >>> are_splits(["train2017", "val2017", "annotations"]), are_splits(["car", "train"])
    (True, False)
    """
    names = list(folders)
    known = {split_of(name) for name in names}
    words = {split_word(name) for name in names}
    return bool(names) and (None not in known or len(known) > 2 or (None not in words and len(words) > 1))


def of_split(files: Sequence[PurePath], split: str, name: str) -> list[int]:
    """The places of the files that are of a split, by the folders they lie in; of all, where none is a split's.

    Folders around the whole set are passed. DataError where some lie beside the folders of splits, and where the
    split is not there.
    """
    depth = 0
    while len(shared := {file.parts[depth] for file in files if len(file.parts) > depth + 1}) == 1 and (
        split_of(next(iter(shared))) is None and all(len(file.parts) > depth + 1 for file in files)
    ):
        depth += 1
    if not are_splits(shared):
        only_split(split, name)
        return list(range(len(files)))
    loose = next((file for file in files if len(file.parts) <= depth + 1), None)
    if loose is not None:
        refuse(
            f"{name} has {loose} beside the folders of splits {', '.join(sorted(shared))}: which split is it of? move "
            "it into one"
        )
    chosen = pick_split(split, shared, name)
    other = {folder for folder in shared if not split_word(folder)}
    say_other_folders(other, name)
    tell_left_out(file for file in files if file.parts[depth] in other)
    return [i for i, file in enumerate(files) if file.parts[depth] == chosen]


def say_other_folders(folders: Iterable[str], name: str) -> None:
    """A warning for folders of images that lie beside those of splits and are none."""
    listed = ", ".join(map(repr, sorted(folders)))
    if listed:
        say_unlisted(f"{name} has folders of splits, and beside them {listed}, of no split and not read")


def by_class(
    files: Sequence[PurePath], name: str, empty: Iterable[str] = ()
) -> tuple[list[int], list[Any] | None, Names | None]:
    """`(places in the order of the classes, their labels, names of the classes)` of files that lie in class folders.

    Loose files have no labels, nor have those in one folder that is called `images` or alike. empty: folders without a
    file, which count as classes where others are.
    DataError for files of both kinds, for folders that are splits or parts of a set (`images` beside `masks`), and see
    `class_labels`.
    """
    folders = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    _say_splits_of_names(files, name)
    if not folders:
        return list(range(len(files))), None, None
    inside = [folder for folder in folders if folder.casefold() in PICTURES]
    if inside and len({*folders, *empty}) == 1 and all(len(file.parts) > 1 for file in files):
        return by_class([file.relative_to(inside[0]) for file in files], name)
    if inside and len({*folders, *empty}) > 1:
        other = next(folder for folder in sorted({*folders, *empty}) if folder != inside[0])
        refuse(
            f"{name} has the folder {inside[0]!r} beside {other!r}, and one is no class of pictures: give the folder "
            f"{inside[0]!r} alone as the data, or call the classes otherwise"
        )
    loose = next((file for file in files if len(file.parts) == 1), None)
    if loose is not None:
        refuse(
            f"{name} has both loose images ({loose}) and subfolders of images ({folders[0]}): "
            "put all into class subfolders, or none"
        )
    inner: dict[str, set[str]] = {}
    for file in files:
        if len(file.parts) > 2:
            inner.setdefault(file.parts[0], set()).add(file.parts[1])
    _check_no_split(folders, inner, name)
    labels, class_names = class_labels(sorted({*folders, *empty}), name)
    in_class = [i for i, file in enumerate(files) if len(file.parts) > 1]
    order = sorted(in_class, key=lambda i: labels[files[i].parts[0]])  # sorted as they are within each
    stray = [i for i, file in enumerate(files) if len(file.parts) == 1]
    values = [labels[files[i].parts[0]] for i in order] + [UNLABELLED] * len(stray)
    return order + stray, values, class_names


def _say_splits_of_names(files: Sequence[PurePath], name: str) -> None:
    """A warning where the names of all files say splits, and several."""
    first: dict[str, PurePath] = {}
    for file in files:
        split = split_word(file.stem)
        if split is None:
            return
        first.setdefault(split, file)
    if len(first) > 1:
        one, two = list(first.values())[:2]
        say(
            f"{name} has images called {one.name} and {two.name}, of several splits by their names, and all are read "
            "as one: put each split into a folder of its own"
        )


def _check_no_split(folders: Sequence[str], inner: dict[str, set[str]], name: str) -> None:
    """DataError for a class folder that is called as a split is and holds folders itself, or that holds splits."""
    split = next((folder for folder in inner if split_of(folder)), None)
    if split is not None and len(folders) > 1:
        other = next(folder for folder in folders if folder != split)
        refuse(
            f"{name} has the folder {split!r}, with folders of images in it, beside {other!r}: is it a split or a "
            f"class? give '{name}/{split}' as the data, or take the other folders out"
        )
    for folder, deeper in sorted(inner.items()):
        if are_splits(deeper):
            listed = ", ".join(sorted(deeper))
            refuse(
                f"{name} has the class folder {folder!r} with splits in it ({listed}): put the folders of splits "
                f"above those of classes, as {sorted(deeper)[0]}/{folder}"
            )


def class_labels(folders: Sequence[str], name: str) -> tuple[dict[str, int], Names | None]:
    """The label of each class folder, and the names of the classes, in the order of `labels.classes_of`.

    Folders that are all called by whole numbers are the labels themselves, as the labels of a table are: folder 10 is
    class 10, beside 9 and not beside 1. DataError for two of one name, and for numbers that count no classes.
    """
    words = {folder: whole_name(folder) for folder in folders}
    if not all(NUMBER.fullmatch(word) for word in words.values()):
        names = classes_of(words.values(), name)
        if len(names) < len(folders):
            refuse(f"{name} has two class folders called {_twice(words)[0]!r}: make them one")
        return _as_names(words, names)
    odd = next((word for word in words.values() if not word.isdecimal()), None)
    if odd is not None:
        refuse(
            f"{name} has the class folder {odd!r}: folders of numbers are labels, whole and from 0 up; call them so, "
            "or begin their names with a letter if they are names"
        )
        return _as_names(words, classes_of(words.values(), name))
    labels = {folder: int(word[-18:]) for folder, word in words.items()}
    if len(set(labels.values())) < len(labels):
        one, two = _twice(labels)
        refuse(f"{name} has the class folders {one!r} and {two!r}, one number: make them one")
    top = max(labels.values(), default=0)
    if top >= HIGHEST and top >= 10 * len(labels):
        refuse(
            f"{name} has {len(labels)} class folders and one called {max(labels, key=lambda f: labels[f])!r:.40}: "
            "folders of numbers are labels, from 0 up; begin their names with a letter if they are names, or put all "
            "images into one folder if they are parts"
        )
        return _as_names(words, classes_of(words.values(), name))
    return labels, None


def _as_names(words: dict[str, str], names: Names) -> tuple[dict[str, int], Names]:
    place = {word: label for label, word in enumerate(names)}
    return {folder: place[word] for folder, word in words.items()}, names


def _twice(meanings: dict[str, str] | dict[str, int]) -> list[str]:
    """The folders, sorted, that mean what another one means."""
    values = list(meanings.values())
    return sorted(folder for folder, meaning in meanings.items() if values.count(meaning) > 1)
