"""Files of a folder or a zip that are not read, by the reason."""

import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from diffdistill.data.formats.images import LISTS, SAMPLES
from diffdistill.data.layout import OTHER_PICTURES, by_number
from diffdistill.data.source import is_picture
from diffdistill.files import BROKEN_ZIP

REASONS = {
    "hidden": "hidden",
    "link": "links to folders, which are not entered",
    "device": "pipes and devices",
    "no_split": "data files of no split, beside splits",
    "other_picture": "pictures of kinds that are not read: save them as PNG",
    "not_listed": "pictures that are on no list and in no class",
    "other": "files of other kinds",
}
"""What is said of each; the order is that of the table."""


def left_out(path: Path, read: set[Path], of_no_split: set[Path], listed: int) -> dict[str, dict[str, Any]]:
    """By reason: `{"count", "files"}`, the first `listed` relative to `path`. read: the pictures that are read."""
    found: dict[str, list[str]] = {}
    counts = dict.fromkeys(REASONS, 0)
    for name, reason in _zipped(path) if path.is_file() else _unread(path, read, of_no_split):
        counts[reason] += 1
        if len(files := found.setdefault(reason, [])) < listed:
            files.append(name)
    return {
        reason: {"count": counts[reason], "files": sorted(found[reason], key=lambda name: by_number(PurePath(name)))}
        for reason in REASONS
        if counts[reason]
    }


def _unread(folder: Path, read: set[Path], of_no_split: set[Path]) -> Iterator[tuple[str, str]]:
    places = {parent for file in read for parent in file.parents}
    for here, inner, files in os.walk(folder):
        for name in inner:
            place = Path(here, name)
            if place.is_symlink() and place not in places:
                yield f"{place.relative_to(folder)}{os.sep}", "link"
        for name in files:
            file = Path(here, name)
            reason = _reason(file.relative_to(folder))
            if file in read or (reason is None and not is_picture(file.relative_to(folder))):
                reason = "no_split" if file in of_no_split else None
            elif reason is None:
                reason = "not_listed" if _is_plain(file) else "device"
            if reason is not None:
                yield str(file.relative_to(folder)), reason


def _zipped(path: Path) -> Iterable[tuple[str, str]]:
    if path.suffix.lower() != ".zip":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.filename for member in archive.infolist() if not member.is_dir()]
    except (*BROKEN_ZIP, OSError):  # said by the reader
        return
    yield from ((name, reason) for name in names if (reason := _reason(PurePath(name))) is not None)


def _reason(file: PurePath) -> str | None:
    """Why a file of this name is not read; None for a picture, for data, and for what says what is in a folder."""
    if any(part.startswith((".", "__MACOSX")) for part in file.parts):
        return "hidden"
    if file.suffix.lower() in OTHER_PICTURES:
        return "other_picture"
    data = file.suffix.lower() == ".parquet" or "idx" in file.name or file.name in (*LISTS, SAMPLES)
    return None if data or is_picture(file) else "other"


def _is_plain(file: Path) -> bool:
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except OSError:  # a link that leads nowhere
        return True
