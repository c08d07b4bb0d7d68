"""WebDataset: tar files whose members of one name, up to its first dot, are one sample: `0001.jpg`, `0001.txt`.

Layout as in the package `webdataset` (A. Aizman, G. Maltby, T. Breuel, 2001.01858): an image, and `cls` with the
label, `txt` with the caption, or `json` with `label`, `text` or `caption`, and perhaps `split`. A tar without such
members is what the folder in it would be. Nothing is unpacked to disk; links, devices and sparse files in a tar are
refused.
"""

import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from diffdistill.data.formats import Format
from diffdistill.data.formats.packed import MAX_MEMBER, Packed, read_packed, visible_files
from diffdistill.data.layout import are_splits, of_split
from diffdistill.data.looking import given, refuse, say, say_unlisted, tell_read
from diffdistill.data.shards import alone, shards_of_split
from diffdistill.data.source import (
    SUFFIXES,
    UNLABELLED,
    Entry,
    Source,
    Span,
    as_labels,
    as_texts,
    inside,
    is_hidden,
)
from diffdistill.data.tables import caption_keys, rows_of_split, say_unread_splits, split_column
from diffdistill.data.text import text_or_error
from diffdistill.data.walk import LISTS, files_below, listed_of, pictures
from diffdistill.errors import DataError
from diffdistill.files import Twice, parse_json, stamp

BRACES = re.compile(r"(?P<head>.*)\{(?P<first>\d+)\.\.(?P<last>\d+)\}(?P<tail>.*\.tar)")
MOST_FILES = 1_000_000
MOST_FOLDERS = 20  # folders of a folder that are looked into for tar files
PACKED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
LABELS, TEXTS, RECORD = ("cls", "label"), ("txt", "text", "caption"), "json"


@dataclass(frozen=True)
class Member:
    """A file in a tar: its name there, where its bytes lie, and the state of the tar when that was read."""

    path: str
    tar: Path
    offset: int
    size: int
    state: str

    @property
    def span(self) -> Span:
        return Span(self.tar, self.offset, self.size, state=self.state)

    def read(self, most: int | None = None) -> bytes:
        return self.span.read(most)


@dataclass
class Sample:
    """Members of one name, by what follows its first dot, in lower case."""

    key: PurePosixPath
    tar: Path
    parts: dict[str, Member] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.key} in {self.tar}"

    def called(self, ending: str) -> str:
        """A member, for messages."""
        return f"{self.key}.{ending} in {self.tar}"

    def text(self, ending: str) -> str | DataError:
        return text_or_error(self.parts[ending].read(), self.called(ending))


def is_webdataset(data: str, path: Path) -> bool:
    """A tar file, also packed ones, which are refused; `shard-{0000..0012}.tar`; a folder of tar files."""
    if path.is_dir():
        folders = [path, *[sub for sub in sorted(path.iterdir()) if sub.is_dir() and not is_hidden(sub.name)]]
        there = any(_is_tar(file) for folder in folders[: MOST_FOLDERS + 1] for file in folder.iterdir())
        return there and not pictures(path)  # an archive beside what was unpacked from it is no set
    return path.name.lower().endswith((".tar", *PACKED)) if path.exists() else BRACES.fullmatch(data) is not None


def _is_tar(file: Path) -> bool:
    return file.name.lower().endswith(".tar") and not is_hidden(file.name)


def read_webdataset(name: str, path: Path, split: str) -> Source:
    """The samples of one tar file, or of those of a split, in their order.

    Raises DataError for a damaged file, a member that is no plain file or leads out of it, a sample with two images,
    and for labels or texts that some samples lack. Samples without an image are left out, with a warning.
    """
    files, named = _files(name, path, split)
    members = [member for file in files for member in members_of(file)]
    samples = list(_samples(members))
    if _is_folder(samples, members):
        visible = visible_files(((member.path, member) for member in members), name)
        packed = Packed(
            name,
            visible,
            lambda wanted, most: (visible[one].read(most) for one in wanted),
            lambda one: visible[one].span,
        )
        inner = are_splits({file.parts[0] for file in visible if len(file.parts) > 1})
        return read_packed(packed, "train" if named and not inner else split)
    return _source(samples, name, None if named else split)


def _is_folder(samples: Sequence[Sample], members: Sequence[Member]) -> bool:
    """Whether tar files hold a folder of images, with a list or with folders of classes, no samples with labels."""
    images = [sample for sample in samples if _images_of(sample)]
    labelled = any(sample.parts.keys() & {*LABELS, RECORD} for sample in images)
    lists = any(PurePosixPath(member.path).name in LISTS for member in members)
    return lists or (not labelled and any(len(sample.key.parts) > 1 for sample in images))


def _files(name: str, path: Path, split: str) -> tuple[list[Path], bool]:
    """The tar files, and whether their names say that they are of the split."""
    braces = None if path.exists() else BRACES.fullmatch(str(path))
    if braces is not None:
        width, first = len(braces["first"]), int(braces["first"])
        numbers = range(first, min(int(braces["last"]), first + MOST_FILES) + 1)
        files = [Path(f"{braces['head']}{i:0{width}d}{braces['tail']}") for i in numbers]
        missing = [file for file in files if not file.is_file()]
        if missing or not files:
            refuse(
                f"{name} names {len(files)} files and {len(missing)} are missing ({listed_of(missing)}): fetch them, "
                "or name those that are there"
            )
        return [file for file in files if file.is_file()], False
    if path.is_file():
        if path.name.lower().endswith(PACKED):
            raise DataError(f"{name} is packed as a whole, so no image can be read alone: unpack it to a .tar")
        return alone(path), False
    return shards_of_split(name, path, split, (".tar",))


def members_of(tar: Path) -> list[Member]:
    """The plain files of a tar; DataError for damage, which `tarfile` would take for its end, and other members."""
    members: list[Member] = []
    try:
        _check_end(tar, _read_members(tar, members))
    except DataError as error:
        refuse(str(error))
    return members


def _read_members(tar: Path, members: list[Member]) -> int:
    """Append what is in a tar; returns where it ends."""
    known, end = tar.stat(), 0
    state = stamp(known)  # one for all members
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                if info.isdir():
                    end = max(end, info.offset_data)
                    continue
                end = info.offset_data + -(-info.size // 512) * 512
                if _is_plain(info, tar, known.st_size):
                    members.append(Member(info.name, tar, info.offset_data, info.size, state))
    except (tarfile.TarError, EOFError, OverflowError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{tar} is damaged or not a tar file ({error}): fetch it again") from error
    return end


def _is_plain(info: tarfile.TarInfo, tar: Path, size: int) -> bool:
    """Whether a member may be read; DataError for another, and where the tar ends inside of it."""
    if not info.isreg() or info.issparse():
        kind = "a link" if info.issym() or info.islnk() else "a device, a pipe or a sparse file"
        refuse(f"{tar} has the member {info.name!r}, which is {kind}: a data set has plain files only", f"kinds {tar}")
        return False
    if not 0 <= info.size <= MAX_MEMBER:
        refuse(f"{tar} has the file {info.name}, of more than 256 MB: take it out")
        return False
    if info.offset_data + info.size > size:
        raise DataError(f"{tar} ends inside of {info.name}: fetch it again")
    return True


def _check_end(tar: Path, end: int) -> None:
    """DataError where a tar does not end with the empty block that says so, or goes on behind it."""
    with tar.open("rb") as file:
        file.seek(end)
        rest = file.read(512)
        if len(rest) < 512 or any(rest):
            raise DataError(f"{tar} is damaged or cut short at byte {end}: fetch it again")
        while rest := file.read(1 << 20):
            if any(rest):
                raise DataError(
                    f"{tar} goes on behind its end, as several tar files joined to one do: give them apart, in a "
                    "folder"
                )


def _samples(members: Sequence[Member]) -> Iterator[Sample]:
    """Members by their tar and their name up to its first dot, in the order of their first."""
    found: dict[tuple[Path, PurePosixPath], Sample] = {}
    for member in members:
        file = PurePosixPath(inside(member.path, str(member.tar)))
        stem, dot, ending = file.name.partition(".")
        if not stem or not dot or any(map(is_hidden, file.parts)):
            continue
        key = file.with_name(stem)
        sample = found.setdefault((member.tar, key), Sample(key, member.tar))
        if ending.lower() in sample.parts:
            refuse(
                f"{member.tar} has {member.path} twice: give each sample a name of its own",
                f"twice in {member.tar}",
            )
            continue
        sample.parts[ending.lower()] = member
    yield from found.values()


def _source(samples: list[Sample], name: str, split: str | None) -> Source:
    """split: that samples are of by their records, or else by their folders; None: of one that is known."""
    images = [_image_of(sample) for sample in samples]
    left_out = [sample for sample, image in zip(samples, images, strict=True) if image is None]
    if left_out:
        say(f"{name} has {len(left_out)} samples without an image, left out ({left_out[0].name})")
    _say_unread(samples, name)
    kept = [(sample, image) for sample, image in zip(samples, images, strict=True) if image is not None]
    records = [_record(sample) for sample, _ in kept]
    if split is not None:
        chosen = _of_split([sample for sample, _ in kept], records, split, name)
        kept, records = [kept[i] for i in chosen], [records[i] for i in chosen]
    pairs = [(sample, record) for (sample, _), record in zip(kept, records, strict=True)]
    labels = [_value(sample, record, LABELS, ("label", "cls"), UNLABELLED) for sample, record in pairs]
    endings, keys = caption_keys(TEXTS), caption_keys(("text", "caption"))
    texts = [_value(sample, record, endings, keys, "") for sample, record in pairs]

    def where(index: int) -> str:
        return kept[index][0].name

    values, class_names, captions = None, None, None
    if any(label is not None for label in labels):
        values, class_names = as_labels(labels, name, where=where)
    if any(text is not None for text in texts):
        captions = as_texts(texts, name, where)
    return Source(len(kept), Samples(kept), values, captions, class_names)


def _of_split(samples: list[Sample], records: list[dict[str, Any]], split: str, name: str) -> list[int]:
    """The samples of a split, by a key of splits in their records, or else by the folders in their names."""
    keys = {key for record in records for key in record}
    for key in split_column(keys):
        kept = rows_of_split(
            key, [record.get(key) for record in records], split, name, lambda index: samples[index].name
        )
        if kept is not None:
            return kept
    say_unread_splits(keys, lambda key: [record.get(key) for record in records], name)
    return of_split([sample.key for sample in samples], split, name)


def _image_of(sample: Sample) -> str | None:
    """The ending of a sample's image; DataError for one of several, none of which is called by its format alone."""
    endings = _images_of(sample)
    if len(endings) > 1:
        refuse(
            f"{sample.name} has the images {' and '.join(endings)}: a sample has one, and its name ends at the "
            "first dot",
            f"two images in {sample.tar}",
        )
    return endings[0] if endings else None


def _images_of(sample: Sample) -> list[str]:
    """The endings of a sample's images; of those called by their format alone, where there is one."""
    endings = [ending for ending in sample.parts if f".{ending.rpartition('.')[2]}" in SUFFIXES]
    return [ending for ending in endings if "." not in ending] or endings


def _record(sample: Sample) -> dict[str, Any]:
    if RECORD not in sample.parts:
        return {}
    tell_read([PurePosixPath(sample.parts[RECORD].path)])
    try:
        record = parse_json(given(sample.text(RECORD), "{}", f"text in {sample.tar}"), unique=True)
    except Twice as error:
        refuse(f"{sample.name}: its json has {error}: which counts? leave one", f"twice in a json in {sample.tar}")
        return {}
    except ValueError as error:
        refuse(f"{sample.name}: its json is damaged ({error}); mend it or take it out", f"json in {sample.tar}")
        return {}
    return record if isinstance(record, dict) else {}


def _value(sample: Sample, record: dict[str, Any], endings: Sequence[str], keys: Sequence[str], missing: Any) -> Any:
    """A label or text of a sample: of its own member, or of its record; `missing` where its member is damaged."""
    ending = next((ending for ending in endings if ending in sample.parts), None)
    value = next((record[key] for key in keys if record.get(key) is not None), None)
    if ending is not None:
        tell_read([PurePosixPath(sample.parts[ending].path)])
        text = given(sample.text(ending), None, f"text in {sample.tar}")
        if text is not None and isinstance(value, int) and text.strip().isdecimal() and int(text[:18]) != value:
            refuse(
                f"{sample.name} has the label {text.strip():.80} in its {ending} and {value} in its json: an image "
                "has one",
                f"two labels in {sample.tar}",
            )
        return missing if text is None else text.strip()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _say_unread(samples: list[Sample], name: str) -> None:
    known = {*LABELS, *TEXTS, RECORD, *(ending.lstrip(".") for ending in SUFFIXES)}
    counts = Counter(ending for sample in samples for ending in sample.parts if ending not in known)
    if counts:
        listed = ", ".join(f"{count} .{ending}" for ending, count in sorted(counts.items())[:5])
        say_unlisted(f"{name} has members that are not read ({listed})")


@dataclass(frozen=True)
class Samples:
    """The images of samples, each by the ending of its member."""

    kept: Sequence[tuple[Sample, str]]

    def __iter__(self) -> Iterator[Entry]:
        return self.at(range(len(self.kept)))

    def at(self, places: Sequence[int]) -> Iterator[Entry]:
        for sample, ending in (self.kept[place] for place in places):
            yield sample.called(ending), sample.parts[ending].span


def _files_read(name: str, path: Path) -> list[Path]:
    return files_below(path) if path.is_dir() else [path] if path.is_file() else _files(name, path, "train")[0]


FORMAT = Format(
    "webdataset", 25, "a tar file or a folder of them (WebDataset)", is_webdataset, read_webdataset, files=_files_read
)
