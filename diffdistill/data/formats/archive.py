"""Zips of images, and folders with a `dataset.json` of labels: the format of StyleGAN and EDM (Karras et al.)."""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from diffdistill.data.bounds import RATIO
from diffdistill.data.formats import Format
from diffdistill.data.formats.images import LISTS, files_source, pictures
from diffdistill.data.layout import are_splits, by_number, check_no_split, class_labels, passed_over
from diffdistill.data.looking import refuse
from diffdistill.data.source import UNLABELLED, Entry, Source, as_labels, inside, is_picture, only_split, pick_split
from diffdistill.errors import DataError
from diffdistill.files import BROKEN_ZIP, MOST_JSON, parse_json

LABELS = "dataset.json"
MAX_PACKED_WELL = 2**24  # bytes up to which a file may be nothing but zeros
MAX_MEMBER = 2**28  # bytes; no picture of a data set is larger, a zip bomb is


def read_zip(name: str, path: Path, split: str) -> Source:
    """Images of a zip in the order of their names; labels from `{"labels": [[file, label], ...]}`, if there.

    Without such a list a zip is what the folder in it would be: one of splits, of class folders, or of loose images.
    Nothing is written to disk. Raises DataError for a damaged or encrypted file, and for members with unsafe paths.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                inside(member.filename, name)
                if member.flag_bits & 1:
                    raise DataError(f"{name} is encrypted: give a zip without a password")
                if member.file_size > MAX_MEMBER:
                    raise DataError(
                        f"{name} has the file {member.filename}, which unpacks to more than 256 MB: take it out"
                    )
                if member.file_size > MAX_PACKED_WELL and member.file_size > RATIO * member.compress_size:
                    raise DataError(
                        f"{name} has the file {member.filename}, which unpacks to {member.file_size} bytes from "
                        f"{member.compress_size}: no picture packs so well, take it out"
                    )
            top, listing = _listing(archive, name)
    except BROKEN_ZIP as error:
        raise DataError(f"{name} is damaged or not a zip file ({error}): make it again") from error
    files = {PurePosixPath(member.filename): member.filename for member in members if not member.is_dir()}
    passed_over(files, name)
    pictures = {file: files[file] for file in sorted(filter(is_picture, files), key=by_number)}
    if listing is None:
        return _as_folder(name, path, split, {member: file.parts for file, member in pictures.items()})
    only_split(split, name)
    names = [str(file.relative_to(top)) if file.is_relative_to(top) else str(file) for file in pictures]
    labels = labels_of(listing, names, f"{LABELS} in {name}")
    return _source(path, name, list(pictures.values()), labels)


def _listing(archive: zipfile.ZipFile, name: str) -> tuple[PurePosixPath, bytes | None]:
    """The folder of a zip that its list of labels lies in, and the list; DataError for several, or one of others."""
    lists = {file: member for member in archive.NameToInfo if _is_list(file := PurePosixPath(member))}
    other = next((file.name for file in lists if file.name != LABELS), None)
    if other is not None:
        raise DataError(f"{name} has a {other}, which is read in a folder and not in a zip: unpack it")
    if len(lists) > 1:
        one, two = list(lists)[:2]
        raise DataError(f"{name} has {len(lists)} lists of labels, such as {one} and {two}: leave one in it")
    return next(((file.parent, archive.read(member)) for file, member in lists.items()), (PurePosixPath(), None))


def _is_list(file: PurePosixPath) -> bool:
    return file.name in LISTS and not any(part.startswith((".", "__MACOSX")) for part in file.parts)


def _as_folder(name: str, path: Path, split: str, parts: dict[str, tuple[str, ...]]) -> Source:
    """The images of a zip without a list, read as `images.read_images` reads the folder that was packed.

    parts: the members, and their folders and names from the folder on that is read.
    """
    folders = sorted({place[0] for place in parts.values() if len(place) > 1})
    loose = next((member for member, place in parts.items() if len(place) == 1), None)
    if loose is None and are_splits(folders):
        chosen = pick_split(split, folders, name)
        inner = {member: place[1:] for member, place in parts.items() if place[0] == chosen}
        return _as_folder(name, path, "train", inner)
    if loose is None and len(folders) == 1:  # the folder itself was packed
        return _as_folder(name, path, split, {member: place[1:] for member, place in parts.items()})
    only_split(split, name)
    if not folders:
        return _source(path, name, list(parts), None)
    if loose is not None:
        refuse(
            f"{name} has both loose images ({loose}) and folders of images ({folders[0]}), and no {LABELS}: put all "
            "into class folders, or none"
        )
    check_no_split(folders, [place[0] for place in parts.values() if len(place) > 2], name)
    labels, class_names = class_labels(folders, name)
    in_class = [member for member, place in parts.items() if len(place) > 1]
    members = sorted(in_class, key=lambda member: labels[parts[member][0]])  # sorted as they are within each
    values = [labels[parts[member][0]] for member in members]
    stray = [member for member, place in parts.items() if len(place) == 1]
    return _source(path, name, members + stray, values + [UNLABELLED] * len(stray), class_names)


def _source(
    path: Path,
    name: str,
    members: Sequence[str],
    labels: Sequence[Any] | None,
    class_names: tuple[str, ...] | None = None,
) -> Source:
    if labels is None:
        return Source(len(members), _members(path, name, members))
    values, class_names = as_labels(labels, name, class_names)
    return Source(len(members), _members(path, name, members), values, class_names=class_names)


def read_unpacked(name: str, folder: Path, split: str) -> Source:
    """A folder in the layout of such a zip file."""
    only_split(split, name)
    files = pictures(folder)
    names = [file.relative_to(folder).as_posix() for file in files]
    if (folder / LABELS).stat().st_size > MOST_JSON:
        raise DataError(f"{LABELS} in {name} is larger than {MOST_JSON >> 20} MiB: give the labels of fewer images")
    return files_source(name, files, labels_of((folder / LABELS).read_bytes(), names, f"{LABELS} in {name}"))


def labels_of(listing: bytes, names: Sequence[str], name: str) -> list[Any] | None:
    """The label of each file from the text of a `dataset.json`, or None where it has no labels."""
    try:
        entries = parse_json(listing).get("labels")
        if entries is None:
            return None
        labels = dict(entries)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f'{name} is not of the form {{"labels": [[file, label], ...]}}: write it so') from error
    missing = next((file for file in names if file not in labels), None)
    if missing is not None:
        refuse(f"{name} has no label for {missing}: give every image one, or none")
    return [labels.get(file, UNLABELLED) for file in names]


def _members(path: Path, name: str, names: Sequence[str]) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        for member in names:
            data: bytes | DataError
            try:
                data = archive.read(member)
            except (*BROKEN_ZIP, OSError) as error:  # a place that lies before the file, for one
                data = DataError(f"{member} in {name} is damaged ({error}): make the zip again")
            yield f"{member} in {name}", data


FORMAT = (
    Format("edm_folder", 20, None, lambda _, path: (path / LABELS).is_file(), read_unpacked),
    Format("edm_zip", 50, "a zip", lambda _, path: path.is_file() and path.suffix.lower() == ".zip", read_zip),
)
