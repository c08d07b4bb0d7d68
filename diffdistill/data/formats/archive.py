"""Images with a `dataset.json` of labels, in a zip or a folder: the format of StyleGAN and EDM (Karras et al.)."""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from diffdistill.data.bounds import RATIO
from diffdistill.data.formats import Format
from diffdistill.data.formats.images import files_source, pictures
from diffdistill.data.source import Encoded, Source, as_labels, inside, is_picture, only_split
from diffdistill.errors import DataError
from diffdistill.files import BROKEN_ZIP, MOST_JSON, parse_json

LABELS = "dataset.json"
MAX_PACKED_WELL = 2**24  # bytes up to which a file may be nothing but zeros
MAX_MEMBER = 2**28  # bytes; no picture of a data set is larger, a zip bomb is


def read_zip(name: str, path: Path, split: str) -> Source:
    """Images of a zip in the order of their names; labels from `{"labels": [[file, label], ...]}`, if there.

    Nothing is written to disk. Raises DataError for a damaged or encrypted file, and for members with unsafe paths.
    """
    only_split(split, name)
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
            names = sorted({member.filename for member in members if is_picture(PurePosixPath(member.filename))})
            listing = archive.read(LABELS) if LABELS in archive.NameToInfo else b"{}"
    except BROKEN_ZIP as error:
        raise DataError(f"{name} is damaged or not a zip file ({error}): make it again") from error
    labels = labels_of(listing, names, f"{LABELS} in {name}")
    if labels is None:
        return Source(len(names), _members(path, name, names))
    values, class_names = as_labels(labels, name)
    return Source(len(names), _members(path, name, names), values, class_names=class_names)


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
        raise DataError(f"{name} has no label for {missing}: give every image one, or none")
    return [labels[file] for file in names]


def _members(path: Path, name: str, names: Sequence[str]) -> Iterator[Encoded]:
    with zipfile.ZipFile(path) as archive:
        for member in names:
            try:
                data = archive.read(member)
            except BROKEN_ZIP as error:
                raise DataError(f"{member} in {name} is damaged ({error}): make the zip again") from error
            yield f"{member} in {name}", data


FORMAT = (
    Format("edm_folder", 20, None, lambda _, path: (path / LABELS).is_file(), read_unpacked),
    Format("edm_zip", 50, "a zip", lambda _, path: path.is_file() and path.suffix.lower() == ".zip", read_zip),
)
