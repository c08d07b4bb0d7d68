"""`inspect_data`: what is in a set, what is wrong with it, and what training would see of it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from statistics import median_low
from typing import Any

import numpy as np
from tqdm import tqdm

from diffdistill.data.formats import by_rank, known_place
from diffdistill.data.left_out import left_out
from diffdistill.data.looking import Look, looking, unreadable
from diffdistill.data.source import Source, canonical_split
from diffdistill.data.tally import LISTED, Seen, Tally, duplicates, in_both
from diffdistill.data.walk import pictures
from diffdistill.data.wanted import opened
from diffdistill.errors import DataError

UNLABELLED = -1
FEW = 6  # images that every metric can compare with
DARK = 32  # values below which nothing can be seen
TRAITS = ("transparent", "sixteen_bit", "animated", "turned", "gray_as_colour", "blank")
Watch = Callable[[Source, int], Seen]
"""Who looks at the pictures too: told the set and its count before them, it returns what is told of each."""


@dataclass(frozen=True)
class Part:
    """A split, or a set that has none, as its reader found it and as its pictures were counted."""

    look: Look
    source: Source | None
    tally: Tally


def inspect_data(
    data: str,
    split: str = "train",
    image_size: int | None = None,
    limit: int | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """All that `diffdistill data inspect` says, of plain types; goes on past every fault of a picture or a list.

    data, split, image_size, limit: as of `load_images`, by whose reader the set is read. Pictures are decoded one at a
    time, of each a hash and its name are kept. watch: who sees the pictures too, such as a contact sheet.
    `report["training"]` says what training would see, and in `refused` why it would not, in its own words.
    Raises DataError where there is no such file or folder.

    >>> report = inspect_data("builtin:emoji", split="held_out")
    >>> report["images"], report["training"]["shape"], report["training"]["refused"]
    (190, [3, 32, 32], [])
    >>> [part["name"] for part in report["splits"] if part["taken"]]
    ['held_out']
    """
    try:
        path = known_place(data)
        part = _part(data, path, split, image_size, limit, watch)
    except OSError as error:
        raise unreadable(error, data) from error
    taken = None if part.source is None else part.look.split  # None: no such split, of the others all is but counted
    others = {name: _other(data, name, limit, taken) for name in part.look.splits if name != part.look.split}
    source, tally = part.source, part.tally
    labels = None if source is None or source.labels is None else source.labels[: tally.count]
    report = {
        "data": data,
        "format": _format(data, path),
        "split": part.look.split,
        "limit": limit,
        "image_size": image_size,
        "images": tally.count,
        "readable": tally.read,
        "sizes": _sizes(tally),
        "modes": dict(tally.modes.most_common()),
        "file_formats": dict(tally.formats.most_common()),
        "traits": {name: tally.traits[name] for name in TRAITS},
        "pixels": {"lowest": tally.darkest, "highest": tally.brightest} if tally.read else None,
        "classes": None if source is None or labels is None else _classes(labels, source.class_names, tally),
        "captions": None if source is None or source.texts is None else _captions(source.texts[: tally.count]),
        "splits": _splits(part, others),
        "duplicates": _duplicates(tally, labels),
        "unreadable": _unreadable(tally),
        "left_out": _left_out(path, part, others),
    }
    return report | {"training": _training(part, report)}


def _format(data: str, path: Path) -> str | None:
    with looking():
        try:
            return next((row.name for row in by_rank() if row.matches(data, path)), None)
        except (DataError, OSError):  # said of the set already
            return None


def _part(data: str, path: Path, split: str, image_size: int | None, limit: int | None, watch: Watch | None) -> Part:
    """Read one split to its end; where its reader refuses a folder as a whole, the pictures in it without labels."""
    with looking() as look:
        source, count = _opened(data, split, limit, look)
        if source is None and look.split is not None:
            path = path / look.split
        if source is None and path.is_dir() and (look.split is not None or not look.splits):
            files = pictures(path)
            source = Source(len(files), ((str(file), file) for file in files)) if files else None
            count = min(limit or len(files), len(files))
        tally = Tally(data, count, image_size, look)
        if source is not None:
            tally.seen = None if watch is None else watch(source, count)
            _count(tally, source, split)
    return Part(look, source, tally)


def _other(data: str, split: str, limit: int | None, taken: str | None) -> Part:
    """A split that is not taken: of its pictures the hashes, or, where none is taken, the number alone."""
    with looking() as look:
        source, count = _opened(data, split, None, look)
        tally = Tally(data, min(limit or count, count), None, look)
        if source is not None and taken is not None:
            _count(tally, source, split)
        elif source is not None and not isinstance(source.images, np.ndarray):
            tally.files.update(_rest(iter(source.images)))
    return Part(look, source, tally)


def _opened(data: str, split: str, limit: int | None, look: Look) -> tuple[Source | None, int]:
    try:
        return opened(data, split, limit)
    except DataError as error:
        look.keep(str(error))
    except OSError as error:
        look.keep(str(unreadable(error, data)))
    return None, 0


def _count(tally: Tally, source: Source, title: str) -> None:
    with tqdm(total=tally.count, desc=title, unit="image", leave=False) as bar:
        if isinstance(source.images, np.ndarray):
            for index in range(tally.count):
                tally.add_array(index, source.images[index])
                bar.update()
            return
        entries = iter(source.images)
        index = -1
        try:
            for index, (name, entry) in enumerate(islice(entries, tally.count)):
                tally.add(index, name, entry)
                bar.update()
            if index + 1 < tally.count:
                tally.look.keep(f"{tally.data} announces {tally.count} images and has {index + 1}: it is damaged")
            tally.files.update(_rest(entries))
        except (DataError, OSError) as error:  # of the file that holds them, whose rest is lost
            tally.look.keep(str(error if isinstance(error, DataError) else unreadable(error, tally.data)))
            tally.lose(index + 1)


def _rest(entries: Iterator[Any]) -> Iterator[Path]:
    """The files beyond a limit; of data in one file nothing more is read."""
    for _, entry in entries:
        if not isinstance(entry, Path):
            return
        yield entry


def _sizes(tally: Tally) -> dict[str, Any] | None:
    """Widths and heights as they are in the files; `oblong` counts pictures that are not square."""
    if not tally.sizes:
        return None
    by_area = sorted(tally.sizes, key=lambda size: (size[0] * size[1], size))
    return {
        "distinct": len(tally.sizes),
        "smallest": list(by_area[0]),
        "commonest": list(tally.sizes.most_common(1)[0][0]),
        "largest": list(by_area[-1]),
        "of_commonest": tally.sizes.most_common(1)[0][1],
        "oblong": sum(count for (width, height), count in tally.sizes.items() if width != height),
    }


def _classes(labels: np.ndarray, names: tuple[str, ...] | None, tally: Tally) -> dict[str, Any]:
    values, sums = np.unique(labels, return_counts=True)
    counts = {int(value): int(count) for value, count in zip(values, sums, strict=True)}
    failed = Counter(labels[np.array(tally.failed_at, np.int64)].tolist())
    unlabelled = counts.pop(UNLABELLED, 0)
    shown = range(len(names)) if names else sorted(counts)
    rows = [
        {
            "label": label,
            "name": names[label] if names else None,
            "images": counts.get(label, 0),
            "unreadable": failed[label],
        }
        for label in shown
    ]
    number = len(names) if names else max(counts, default=-1) + 1
    return {
        "count": number,
        "without_images": number - len(counts),
        "unlabelled": unlabelled,
        "imbalance": max(counts.values()) / min(counts.values()) if counts else None,
        "rows": rows,
    }


def _captions(texts: tuple[str, ...]) -> dict[str, Any]:
    """Lengths in characters of those that are not blank; `repeated` counts captions that an earlier image has."""
    given = [text for text in texts if text.strip()]
    lengths = [len(text) for text in given]
    often, times = Counter(given).most_common(1)[0] if given else (None, 0)
    return {
        "present": len(given),
        "empty": len(texts) - len(given),
        "shortest": min(lengths, default=None),
        "median": median_low(lengths) if lengths else None,
        "longest": max(lengths, default=None),
        "repeated": len(given) - len(set(given)),
        "commonest": {"text": often, "count": times} if times > 1 else None,
        "first": given[0] if given else None,
    }


def _splits(part: Part, others: dict[str, Part]) -> list[dict[str, Any]]:
    """Every split; `in_taken`: its pictures that the split which is taken has too."""
    rows = []
    for name in part.look.splits:
        taken = name == part.look.split
        one = part if taken else others[name]
        both = [] if taken else in_both(part.tally, one.tally)
        rows.append(
            {
                "name": name,
                "called": canonical_split(name),
                "taken": taken,
                "images": one.tally.count,
                "unreadable": one.tally.unreadable,
                "in_taken": len(both),
                "pairs": [[part.tally.names[i], one.tally.names[j]] for i, j in both[:LISTED]],
                "refused": [] if taken else _refused(one),
            }
        )
    return rows


def _duplicates(tally: Tally, labels: np.ndarray | None) -> dict[str, Any]:
    """`surplus`: pictures that an earlier one has the pixels of; `of_several_classes`: groups with several labels."""
    groups = duplicates(tally)
    places = np.frombuffer(tally.places, np.uint64).astype(np.int64) if tally.places else np.zeros(0, np.int64)
    mixed = [] if labels is None else [len(set(labels[places[group]].tolist())) > 1 for group in groups]
    return {
        "surplus": sum(len(group) - 1 for group in groups),
        "groups": len(groups),
        "of_several_classes": sum(mixed),
        "files": [[tally.names[i] for i in group[:LISTED]] for group in groups[:LISTED]],
    }


def _unreadable(tally: Tally) -> dict[str, Any]:
    files = [{"name": name, "reason": reason} for name, reason in tally.failed]
    return {"count": tally.unreadable, "files": files}


def _left_out(path: Path, part: Part, others: dict[str, Part]) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    parts = [part, *others.values()]
    read: set[PurePath] = set().union(*(one.tally.files for one in parts))
    read = read.union(*(one.look.read for one in parts))
    return left_out(path, read, set().union(*(one.look.left_out for one in parts)), LISTED)


def _training(part: Part, report: dict[str, Any]) -> dict[str, Any]:
    """What `load_images` would return; the first reason of `refused` is its own."""
    shape, classes, refused = part.tally.shape(), report["classes"], _refused(part)
    return {
        "reads": not refused,
        "images": part.tally.count,
        "shape": None if refused or shape is None else list(shape),
        "range": [-1, 1],
        "classes": None if classes is None else classes["count"],
        "captions": report["captions"] is not None,
        "refused": refused,
        "notes": list(_notes(part, report)),
    }


def _refused(part: Part) -> list[dict[str, Any]]:
    """The sentences, and how often each is so; the first is the one that a reader would stop at."""
    return [{"reason": reason, "count": count} for reason, count in part.look.refused.values()]


def _notes(part: Part, report: dict[str, Any]) -> Iterator[str]:
    """What training would read and perhaps should not."""
    tally, classes, captions, shape = part.tally, report["classes"], report["captions"], part.tally.shape()
    yield from part.look.said
    yield from tally.lost.told(tally.data)
    for row in report["splits"]:
        if row["in_taken"]:
            what = some(row["in_taken"], "picture")
            yield f"{what} of '{row['name']}' also in '{part.look.split}': figures measured on '{row['name']}' flatter"
    if shape is not None and not part.look.refused and shape[1] != shape[2]:
        size = f"{shape[2]}x{shape[1]}"
        yield f"{size} is not square, and most networks take squares: set the image size (data.image_size)"
    if tally.read and tally.brightest < DARK:
        yield f"no value is above {tally.brightest} of 255, so all is black: multiply the values up to 255"
    if count := tally.traits["blank"]:
        yield f"{some(count, 'picture')} of one colour all over: look whether that is meant"
    if count := report["duplicates"]["of_several_classes"]:
        yield f"{some(count, 'picture')} in several classes: leave each in one"
    if tally.channels == 3 and 0 < tally.traits["gray_as_colour"] == tally.read:
        yield "all pictures are gray and saved as colour: save them as gray for a network of one channel"
    if classes is not None and (count := classes["without_images"]):
        what = some(count, "class", "classes")
        yield f"{what} of {classes['count']:,} without an image: what is drawn of it is untrained"
    if captions is not None and (count := captions["empty"]):
        yield f"{some(count, 'image')} without a caption: training would take the empty text for it"
    if 0 < tally.count < FEW:
        few = some(tally.count, "image")
        yield f"{few}, and to compare with fid needs 2, kid 4, prdc {FEW}: a run that measures more is refused"


def some(count: int, one: str, several: str | None = None) -> str:
    """A number and what it counts."""
    return f"1 {one}" if count == 1 else f"{count:,} {several or one + 's'}"
