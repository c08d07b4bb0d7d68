"""Zips of images, and folders with a `dataset.json` of labels: the format of StyleGAN and EDM (Karras et al.)."""

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from diffdistill.data.bounds import RATIO
from diffdistill.data.formats import Format
from diffdistill.data.formats.images import files_source
from diffdistill.data.formats.packed import (
    LABELS,
    MAX_MEMBER,
    MAX_PACKED_WELL,
    Packed,
    labels_of,
    read_packed,
    visible_files,
)  # fmt: skip
from diffdistill.data.layout import of_split
from diffdistill.data.source import Source, Span, inside
from diffdistill.data.walk import files_below, head_of, pictures_of, say_hidden, say_left_out
from diffdistill.errors import DataError
from diffdistill.files import BROKEN_ZIP, MOST_JSON

LOCAL_HEADER = 30  # bytes before the name of a member, which end with the lengths of that and of what follows it


def read_zip(name: str, path: Path, split: str) -> Source:
    """The set in a zip, see `read_packed`. Nothing is written to disk.

    Raises DataError for a damaged or encrypted file, and for members with unsafe paths, or that unpack to too much.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except BROKEN_ZIP as error:
        raise DataError(f"{name} is damaged or not a zip file ({error}): make it again") from error
    if members and min(member.header_offset for member in members) > 0:  # as of a zip inside of a cut one
        raise DataError(f"{name} begins with something else than its first file: it is damaged, make it again")
    for member in members:
        _check(member, name)
    files = visible_files(((member.filename, member) for member in members if not member.is_dir()), name)

    def read(wanted: Sequence[PurePosixPath], most: int | None) -> Iterator[bytes | DataError]:
        with zipfile.ZipFile(path) as archive:
            for file in wanted:
                data: bytes | DataError
                try:
                    with archive.open(files[file]) as stream:
                        data = stream.read(-1 if most is None else most)
                except (*BROKEN_ZIP, OSError) as error:  # a place that lies before the file, for one
                    data = DataError(f"{file} in {name} is damaged ({error}): make the zip again")
                yield data

    return read_packed(Packed(name, files, read, lambda file: _placed(path, files[file], file, name)), split)


def _placed(path: Path, member: zipfile.ZipInfo, file: PurePosixPath, name: str) -> bytes | Span | DataError:
    """The bytes of one member, or where they lie, without reading the list of all members again."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    head = Span(path, member.header_offset, LOCAL_HEADER).read()
    names = sum(struct.unpack("<HH", head[-4:]))
    start = member.header_offset + LOCAL_HEADER + names
    if member.compress_type == zipfile.ZIP_STORED:
        return Span(path, start, member.compress_size, member.CRC)
    try:
        data = zlib.decompress(Span(path, start, member.compress_size).read(), -zlib.MAX_WBITS, member.file_size)
    except zlib.error as error:
        return DataError(f"{file} in {name} is damaged ({error}): make the zip again")
    whole = len(data) == member.file_size and zlib.crc32(data) == member.CRC
    return data if whole else DataError(f"{file} in {name} is damaged (bad checksum): make the zip again")


def _check(member: zipfile.ZipInfo, name: str) -> None:
    inside(member.filename, name)
    if member.flag_bits & 1:
        raise DataError(f"{name} is encrypted: give a zip without a password")
    if member.file_size > MAX_MEMBER:
        raise DataError(f"{name} has the file {member.filename}, which unpacks to more than 256 MB: take it out")
    if member.file_size > MAX_PACKED_WELL and member.file_size > RATIO * member.compress_size:
        raise DataError(
            f"{name} has the file {member.filename}, which unpacks to {member.file_size} bytes from "
            f"{member.compress_size}: no picture packs so well, take it out"
        )


def read_unpacked(name: str, folder: Path, split: str) -> Source:
    """A folder in the layout of such a zip file."""
    hidden: list[Path] = []
    found = files_below(folder, hidden=hidden)
    say_hidden(hidden, name)
    files = pictures_of(found, folder)
    names = [PurePosixPath(file.relative_to(folder).as_posix()) for file in files]
    say_left_out([file.relative_to(folder) for file in found], name, lambda file: head_of(folder / file))
    if (folder / LABELS).stat().st_size > MOST_JSON:
        raise DataError(f"{LABELS} in {name} is larger than {MOST_JSON >> 20} MiB: give the labels of fewer images")
    labels = labels_of((folder / LABELS).read_bytes(), names, f"{LABELS} in {name}")
    kept = of_split(names, split, name)
    return files_source(name, [files[i] for i in kept], None if labels is None else [labels[i] for i in kept])


FORMAT = (
    Format("edm_folder", 20, None, lambda _, path: (path / LABELS).is_file(), read_unpacked),
    Format("edm_zip", 50, "a zip", lambda _, path: path.is_file() and path.suffix.lower() == ".zip", read_zip),
)
