"""Sets in several files, `train-00000-of-00003.parquet`: which belong to a split, and whether all are there."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from diffdistill.data.layout import by_number
from diffdistill.data.looking import refuse, say, say_unlisted, tell_left_out, tell_read
from diffdistill.data.source import SPLIT_NAMES, pick_split, spelling_of, split_of
from diffdistill.data.walk import files_below, listed_of

OF = re.compile(r"(?P<stem>.*?)(?P<number>\d+)-of-(?P<total>\d+)")
NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)(?P<rest>\D*)")

MOST = 1_000_000  # numbers that are looked through for a gap

T = TypeVar("T")


def files_with(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The visible files of those endings, in lower case, below a folder, in the order of their names and numbers."""
    below = files_below(folder, tuple(endings))
    found = [path for path in below if path.name.lower().endswith(tuple(endings)) and path.is_file()]
    return sorted(found, key=lambda path: by_number(path.relative_to(folder)))


def shards_of_split(name: str, folder: Path, split: str, endings: Sequence[str]) -> tuple[list[Path], bool]:
    """The files of those endings in a folder that belong to a split, and whether their names say a split.

    A file belongs to the split that its name starts with or has as a word (`mnist-train.parquet`), or that its folder
    is called; else all are one set. DataError where one of N is missing, and for sets in several folders; a warning
    for files of no split beside others, and for gaps in their numbers.
    """
    by_split: dict[str, list[Path]] = {}
    for file in files_with(folder, endings):
        by_split.setdefault(_split_of(file.relative_to(folder), name), []).append(file)
    named = set(by_split) != {""}
    if not named:
        chosen = by_split[""]
    else:
        other = by_split.pop("", [])
        tell_left_out(other)
        if other:
            listed = listed_of([file.relative_to(folder) for file in other])
            say_unlisted(f"{name} has {len(other)} files of no split beside those of splits, left out ({listed})")
        chosen = by_split[pick_split(split, by_split, name)]
    tell_read(chosen)
    _check_one_spelling(chosen, folder, name)
    _check_one_folder(chosen, folder, name)
    for _, group in sorted(_grouped(chosen, lambda file: str(file.parent)).items()):
        check_complete(group, name)
    return chosen, named


def alone(file: Path) -> list[Path]:
    """A file that was named outright, with a warning where its name says that it is one of several."""
    match = OF.match(file.stem)
    if match is not None and int(match["total"]) > 1:
        say(f"{file} is one of {int(match['total'])} files, and read alone: give its folder")
    return [file]


def _split_of(file: Path, name: str) -> str:
    """The split that a file's name or its folders say it is of; empty where they say nothing."""
    return split_of(_word_of(file, name)) or ""


def _word_of(file: Path, name: str) -> str:
    """The word of a file's path that says its split; empty where none does."""
    first, *others = [word.lower() for word in re.split(r"[^A-Za-z0-9]", file.stem)]
    inner = {SPLIT_NAMES[word] for word in others if word in SPLIT_NAMES}
    if not split_of(first) and len(inner) > 1:
        refuse(f"{name} has the file {file}, of the splits {' and '.join(sorted(inner))}: name one of them")
    words = [file.stem, first, *others, *(parent.stem for parent in file.parents)]
    return next((word for word in words if split_of(word)), "")


def _check_one_spelling(files: Sequence[Path], folder: Path, name: str) -> None:
    """DataError for files of one split under two of its names: are they one set, or one twice?"""
    named = {spelling_of(_word_of(file.relative_to(folder), name)): file for file in files}
    if len(named) > 1:
        one, two = (named[word].relative_to(folder) for word in sorted(named)[:2])
        refuse(
            f"{name} has the files {one} and {two}, of one split under two names: give one of them as the data, or "
            "call them alike"
        )


def _check_one_folder(files: Sequence[Path], folder: Path, name: str) -> None:
    """DataError for files of one split in several folders that are not its parts: configurations of a data set."""

    def home(file: Path) -> str:
        parts = file.relative_to(folder).parts[:-1]
        return "/".join(
            re.sub(r"\d+", "0", part) for part in parts if "=" not in part and not split_of(Path(part).stem)
        )

    homes = sorted(_grouped(files, home).values(), key=len)
    if len(homes) > 1:
        one, two = sorted(str(group[0].relative_to(folder).parent) for group in homes[:2])
        refuse(
            f"{name} has files of one split in the folders {one!r} and {two!r}: which is the set? give one of them as "
            "the data, or put all files into one folder"
        )


def check_complete(files: Sequence[Path], name: str) -> None:
    """DataError where one of N files is missing or there twice; a warning for a gap in numbers that have no N."""
    named = [match for file in files if (match := OF.match(file.stem))]
    for stem, group in sorted(_grouped(named, lambda match: match["stem"]).items()):
        totals = sorted({int(match["total"]) for match in group})
        if len(totals) > 1:
            refuse(
                f"{name} has files of two sets, {stem}*-of-{totals[0]} and {stem}*-of-{totals[1]}: take one set out"
            )
        numbers = sorted(int(match["number"]) for match in group)
        first = 1 if numbers[-1] == totals[0] else 0
        missing = sorted(set(range(first, first + totals[0])) - set(numbers))
        if missing:
            refuse(
                f"{name} has {len(set(numbers))} of {totals[0]} files {stem}*-of-{group[0]['total']}, number "
                f"{missing[0]} is missing: fetch it, or rename the files to use these alone"
            )
        if len(set(numbers)) < len(numbers):
            refuse(f"{name} has two files of one number among {stem}*-of-{group[0]['total']}: take one out")
    if not named:
        _say_gaps(files, name)


def _say_gaps(files: Sequence[Path], name: str) -> None:
    found = [NUMBERED.fullmatch(file.stem) for file in files]
    matches = [match for match in found if match]
    if len(matches) < len(files) or len({(match["stem"], match["rest"]) for match in matches}) != 1:
        return
    numbers = {int(match["number"]) for match in matches}
    span = range(min(numbers), min(max(numbers), min(numbers) + MOST))
    gaps = [number for number in span if number not in numbers]
    if gaps:
        say(f"{name} has {len(files)} files numbered {min(numbers)} to {max(numbers)}, without number {gaps[0]}")


def _grouped(values: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return groups
