"""The files of a folder, and what is said of those that are not read."""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath

from diffdistill.data.layout import by_number
from diffdistill.data.looking import is_looking, refuse, say, say_unlisted, unreadable
from diffdistill.data.source import HIDDEN, SUFFIXES, is_hidden, is_picture

# Endings of pictures that are not read: some have no mark to know them by, others need programs of their own.
OTHER_PICTURES = {
    ".tga", ".heic", ".heif", ".jp2", ".jpf", ".j2k", ".jxl", ".jxr", ".ico", ".icns", ".dds", ".exr", ".hdr", ".psd",
    ".svg", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".pcx", ".sgi", ".xbm", ".xpm", ".fits", ".dcm",
}  # fmt: skip

LISTS = ("dataset.json", "metadata.jsonl", "metadata.csv")  # files that say what is in a folder
TABLES = {".csv", ".tsv", ".jsonl", ".json", ".txt", ".xlsx"}
OF_LISTS = re.compile(
    r"(^|[^a-z])(labels?|metadata|captions?|annotations?|classes|prompts?|attr|train|test)($|[^a-z])"
)
ARCHIVES = {".zip", ".tar", ".tgz", ".npz", ".npy", ".mat", ".tfrecord", ".parquet", ".lmdb", ".mdb", ".h5", ".hdf5"}
PLAIN = TABLES | ARCHIVES | {".md", ".yaml", ".yml", ".xml", ".html", ".log", ".py", ".caption"}

MARKS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
MOST_OPENED = 10_000  # files without a known ending that are looked into


def files_below(folder: Path, endings: tuple[str, ...] = ("",), hidden: list[Path] | None = None) -> list[Path]:
    """All visible files below a folder and below folders that it has links to, each folder once, in no order.

    endings: of the files, in lower case; those without an ending come along. hidden: gets the images that their
    own names or those of their folders hide, but for those that macOS writes beside each.
    Raises OSError for a folder that cannot be read, DataError for a link that leads nowhere, which may have been to a
    folder of images; one called as a picture is named when it is read.
    """
    found: list[Path] = []
    depth = len(folder.parts)
    for place, _, names in folders_below(folder, hidden=hidden is not None):
        if hidden is not None:
            hidden += [Path(place, name) for name in names if is_hidden_picture(PurePath(*place.parts[depth:], name))]
        if any(map(is_hidden, place.parts[depth:])):
            continue
        wanted = (name for name in names if name.lower().endswith(endings) or "." not in name)
        found += [Path(place, name) for name in wanted if not is_hidden(name)]
    lost = next((path for path in found if not path.suffix and path.is_symlink() and not path.exists()), None)
    if lost is not None:
        refuse(f"there is nothing behind the link {lost}: mend it or take it out")
    return found


def folders_below(folder: Path, hidden: bool = False) -> Iterator[tuple[Path, list[str], list[str]]]:
    """`(place, its folders, its files)` of a folder and of all below, also of what it has links to; each once, and by
    its own name where it has one below `folder`. hidden: whether hidden folders are entered.
    """
    seen = set()
    waiting = [folder]
    for top in waiting:
        for place, folders, names in os.walk(top, onerror=_refuse):
            here = os.stat(place)
            if (here.st_dev, here.st_ino) in seen and here.st_ino:
                folders.clear()
                continue
            seen.add((here.st_dev, here.st_ino))
            folders[:] = sorted(name for name in folders if hidden or not is_hidden(name))
            waiting += [link for name in folders if (link := Path(place, name)).is_symlink()]
            yield Path(place), list(folders), names


def is_hidden_picture(file: PurePath) -> bool:
    """Whether a file is an image, but for a dot before its name or that of a folder of its. What systems keep beside
    pictures, such as `._1.png` of macOS and thumbnails of file servers, are copies, and nobody misses them.
    """
    parts = [part for part in file.parts if is_hidden(part)]
    copies = any(part in HIDDEN or part.startswith(("._", "__MACOSX", ".ipynb_checkpoints")) for part in parts)
    return bool(parts) and not copies and file.suffix.lower() in SUFFIXES


def say_hidden(files: Sequence[PurePath], name: str) -> None:
    """A warning for hidden images."""
    if files:
        say_unlisted(f"{name} has {len(files)} hidden images, passed over ({listed_of(files)})")


def _refuse(error: OSError) -> None:
    if not is_looking():
        raise error
    refuse(str(unreadable(error, str(error.filename))))


def pictures_of(files: Iterable[Path], folder: Path) -> list[Path]:
    """The image files among those of a folder, in the order of their names and numbers."""
    depth = len(folder.parts)  # what hides a folder around the set does not hide the set
    found = (path for path in files if is_picture(PurePath(*path.parts[depth:])))
    # A link that leads nowhere is named later; a pipe or a device, which might never end, is no picture.
    there = [path for path in found if path.is_file() or (path.is_symlink() and not path.exists())]
    return sorted(there, key=lambda path: by_number(path)[depth:])


def pictures(folder: Path) -> list[Path]:
    """All image files below a folder, in the order of their names and numbers."""
    return pictures_of(files_below(folder), folder)


def say_left_out(files: Sequence[PurePath], name: str, head: Callable[[PurePath], bytes] | None = None) -> None:
    """Warnings for pictures of kinds that are not read, for those without their ending, and for lists of other names.

    files: relative to the set. head: the first bytes of one; None: they are not looked at.
    """
    kinds = Counter(file.suffix.lower() for file in files if file.suffix.lower() in OTHER_PICTURES)
    if kinds:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items()))
        say_unlisted(f"{name} has pictures of kinds that are not read, and passed over ({listed}); save them as PNG")
    known = SUFFIXES | OTHER_PICTURES | PLAIN
    other = [file for file in files if file.suffix.lower() not in known][:MOST_OPENED]
    unnamed = [] if head is None else [file for file in other if is_marked(head(file))]
    if unnamed:
        say(
            f"{name} has {len(unnamed)} pictures without a picture's ending, passed over ({listed_of(unnamed)}); let "
            "their names end with .png or .jpg"
        )
    top = [file for file in files if len(file.parts) == 1 and file.name not in LISTS]
    lists = [file for file in top if file.suffix.lower() in TABLES and OF_LISTS.search(file.stem.lower())]
    if lists:
        say(f"{name} has {listed_of(lists)}, which is not read: lists of images are called {' or '.join(LISTS)}")
    archives = [file for file in top if file.suffix.lower() in ARCHIVES]
    if archives:
        say(f"{name} has {listed_of(archives)} beside its images, which is not read")


def is_marked(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a picture."""
    return head.startswith(MARKS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:12] == b"ftypavif"


def head_of(path: Path) -> bytes:
    """The first bytes of a file; none of what is no file, or cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(16)
    except OSError:
        return b""


def listed_of(files: Sequence[PurePath], most: int = 3) -> str:
    """The first names of a list, for messages."""
    files = sorted(files, key=by_number)
    return ", ".join(map(str, files[:most])) + (", ..." if len(files) > most else "")
