"""Files of a folder or a zip that are not read, by the reason."""

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from diffdistill.data.formats.images import SAMPLES
from diffdistill.data.formats.webdataset import members_of
from diffdistill.data.layout import by_number
from diffdistill.data.looking import looking
from diffdistill.data.source import is_hidden, is_picture
from diffdistill.data.walk import LISTS, OTHER_PICTURES, folders_below
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


def left_out(path: Path, read: set[PurePath], of_no_split: set[PurePath], listed: int) -> dict[str, dict[str, Any]]:
    """By reason: `{"count", "files"}`, the first `listed` relative to `path`. read: the pictures that are read, and
    what is read beside them; of archives, members.
    """
    found: dict[str, list[str]] = {}
    counts = dict.fromkeys(REASONS, 0)
    with looking():  # what is wrong the reader has said
        unread = list(_unread(path, read, of_no_split))
    for name, reason in unread:
        counts[reason] += 1
        if len(files := found.setdefault(reason, [])) < listed:
            files.append(name)
    return {
        reason: {"count": counts[reason], "files": sorted(found[reason], key=lambda name: by_number(PurePath(name)))}
        for reason in REASONS
        if counts[reason]
    }


def _unread(path: Path, read: set[PurePath], of_no_split: set[PurePath]) -> Iterator[tuple[str, str]]:
    if path.is_file():
        yield from _unread_members(path, read, of_no_split)
        return
    links, entered = [], set()
    for place, folders, names in folders_below(path, hidden=True):
        entered.add(place)
        links += [link for name in folders if (link := place / name).is_symlink()]
        for name in names:
            file = place / name
            inner = file.relative_to(path)
            if file in read and file.suffix.lower() == ".tar":
                yield from ((f"{inner}/{name}", reason) for name, reason in _unread_members(file, read, of_no_split))
            elif (reason := _reason_of(file, inner, read, of_no_split)) is not None:
                yield str(inner), reason
    yield from ((f"{link.relative_to(path)}{os.sep}", "link") for link in links if link not in entered)


def _unread_members(path: Path, read: set[PurePath], of_no_split: set[PurePath]) -> Iterator[tuple[str, str]]:
    for name in _members(path):
        file = PurePosixPath(name)
        reason = "no_split" if file in of_no_split else None if file in read else _reason(file)
        if reason is not None:
            yield name, reason


def _members(path: Path) -> list[str]:
    """Names of the files in an archive; none where it is damaged."""
    try:
        if path.suffix.lower() == ".tar":
            return [member.path for member in members_of(path)]
        if path.suffix.lower() != ".zip":
            return []
        with zipfile.ZipFile(path) as archive:
            return [member.filename for member in archive.infolist() if not member.is_dir()]
    except (*BROKEN_ZIP, OSError):
        return []


def _reason_of(file: Path, inner: PurePath, read: set[PurePath], of_no_split: set[PurePath]) -> str | None:
    if file in of_no_split:
        return "no_split"
    if file in read:
        return None
    reason = _reason(inner)
    if reason is None and is_picture(inner):
        return "not_listed" if _is_plain(file) else "device"
    return reason


def _reason(file: PurePath) -> str | None:
    """Why a file of this name is not read; None for a picture, for data, and for what says what is in a folder."""
    if any(map(is_hidden, file.parts)):
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
