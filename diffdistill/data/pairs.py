"""Pairs of images of one caption, of which one is wanted: Pick-a-Pic's parquet columns, and folders."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffdistill.assets import BUILTIN, is_builtin
from diffdistill.data.emoji import PAIRS, emoji_pairs
from diffdistill.data.folder import parse_jsonl
from diffdistill.data.parquet import column_of, files_of_split, open_table
from diffdistill.data.pixels import decode, fit
from diffdistill.data.source import Encoded, inside, only_split
from diffdistill.errors import DataError

COLUMNS = ("jpg_0", "jpg_1", "label_0", "label_1", "caption")
TABLE = "metadata.jsonl"
ALLOWED = (
    f"a parquet file or folder with the columns {', '.join(COLUMNS)}, or a folder with a {TABLE} of lines "
    '{"win": FILE, "lose": FILE, "text": CAPTION}, or builtin:emoji_pairs'
)


@dataclass(frozen=True)
class Pair:
    """One choice; in a tie the order means nothing."""

    win: Encoded
    lose: Encoded
    text: str
    tie: bool = False


@dataclass(frozen=True)
class PairSet:
    """Pairs, not decoded. counts: what was left out and why, such as {"ties": 12}. fingerprint: see `digest_of`."""

    pairs: tuple[Pair, ...]
    name: str
    counts: dict[str, int]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class Picture:
    """An image cut to a square, and what SDXL is told of it (2307.01952, section 2.2).

    pixels: uint8 `(3, S, S)`; original: height and width of the file; crop: top and left of the square in the image
    resized to a shorter side of S.
    """

    pixels: Tensor
    original: tuple[int, int]
    crop: tuple[int, int]

    def mirrored(self) -> "Picture":
        """Left and right exchanged; the left margin becomes what was the right one."""
        size = self.pixels.shape[-1]
        width = round(self.original[1] * size / min(self.original))
        return Picture(self.pixels.flip(-1), self.original, (self.crop[0], width - size - self.crop[1]))


def picture(encoded: Encoded, size: int) -> Picture:
    """Decode one image of a pair; DataError, naming it, if it is damaged."""
    name, data = encoded
    pixels = decode(data, name)
    height, width = pixels.shape[:2]
    squared = np.asarray(fit(Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels), size))
    if squared.ndim == 2:
        squared = np.repeat(squared[..., None], 3, axis=-1)
    top, left = (round((side * size / min(height, width) - size) / 2) for side in (height, width))
    return Picture(torch.from_numpy(squared.copy()).permute(2, 0, 1), (height, width), (top, left))


def load_pairs(data: str, *, split: str = "train", limit: int | None = None, ties: str = "drop") -> PairSet:
    """Read all pairs of DATA; images stay encoded (of a folder: on the disk, of parquet: in memory).

    Parquet: Pick-a-Pic's columns, `label_0` the chance that jpg_0 is the better one: 1, 0, or 0.5 for a tie. Rows
    whose `has_label` is false and pairs of one and the same image are left out, and ties too unless `ties` is "keep".
    Folder: `metadata.jsonl` with the files `win` and `lose`, relative to the folder, and `text`.
    Raises DataError for a missing image, labels that name no winner, an empty caption, and a set without a pair.
    """
    path = Path(data).expanduser()
    if is_builtin(data):
        return _bundled_pairs(data, split, limit)
    if not path.exists():
        raise DataError(f"there is no file or folder {data!r} with pairs: give {ALLOWED}")
    counts: dict[str, int] = {"ties": 0, "without label": 0, "of one image": 0}
    if (path / TABLE).is_file():
        only_split(split, data)
        rows = _folder_pairs(path)
    elif path.suffix.lower() == ".parquet" or any(path.rglob("*.parquet")):
        rows = _parquet_pairs(path, data, split, counts)
    else:
        raise DataError(f"{data} holds no pairs: give {ALLOWED}")
    pairs: list[Pair] = []
    for pair in rows:
        if pair.win[1] == pair.lose[1]:
            counts["of one image"] += 1
        elif pair.tie and ties == "drop":
            counts["ties"] += 1
        else:
            pairs.append(pair)
    counts = {name: count for name, count in counts.items() if count}
    if not pairs:
        left_out = ", ".join(f"{count} {name}" for name, count in counts.items()) or "it is empty"
        raise DataError(f"{data} has no pair to learn from ({left_out}): give pairs of which one image is wanted")
    pairs = pairs[:limit]
    return PairSet(tuple(pairs), data, counts, digest_of(pairs))


def _bundled_pairs(data: str, split: str, limit: int | None) -> PairSet:
    """One concept in two drawing styles; the caption names the concept, the choice is the style."""
    name = data.removeprefix(BUILTIN)
    if name not in PAIRS:
        raise DataError(f"{data} holds no pairs: choose one of {', '.join(BUILTIN + known for known in PAIRS)}")
    pairs = [Pair(win, lose, text) for win, lose, text in emoji_pairs(split, PAIRS[name])[:limit]]
    return PairSet(tuple(pairs), data, {}, digest_of(pairs))


def _folder_pairs(folder: Path) -> list[Pair]:
    pairs = []
    for line, row in parse_jsonl(folder / TABLE):
        where = f"line {line} of {folder / TABLE}"
        files = []
        for key in ("win", "lose"):
            if not isinstance(row.get(key), str) or not row[key]:
                raise DataError(f"{where} has no '{key}': name both images of the pair, relative to the folder")
            file = folder / inside(row[key], str(folder / TABLE))
            if not file.is_file():
                raise DataError(f"{where}: there is no image {file}: add it or take the pair off the list")
            files.append(file)
        if files[0] == files[1]:
            raise DataError(
                f"{where}: 'win' and 'lose' are both {row['win']!r}: name two images, of which one is wanted"
            )
        pairs.append(Pair((str(files[0]), files[0]), (str(files[1]), files[1]), _caption(row.get("text"), where)))
    return pairs


def _caption(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where} has no caption: give every pair the text that both images were made for")
    return value


def _parquet_pairs(path: Path, name: str, split: str, counts: dict[str, int]) -> list[Pair]:
    if path.is_file():
        only_split(split, name)
    files = [path] if path.is_file() else files_of_split(path, name, split)
    pairs: list[Pair] = []
    for file in files:
        table = open_table(file)
        names = table.schema_arrow.names
        missing = [column for column in COLUMNS if column not in names]
        if missing:
            raise DataError(
                f"{file} has no column {missing[0]!r}, only {', '.join(names)}: pairs need {', '.join(COLUMNS)}"
            )
        columns = [column_of([table], [file], column) for column in COLUMNS]
        labelled = column_of([table], [file], "has_label") if "has_label" in names else [True] * len(columns[0])
        for row, (has_label, *values) in enumerate(zip(labelled, *columns, strict=True)):
            if has_label:
                pairs.append(_row_pair(values, f"row {row} of {file}"))
            else:
                counts["without label"] += 1
    return pairs


def _row_pair(values: Sequence[Any], where: str) -> Pair:
    images, labels = [], tuple(values[2:4])
    for column, value in zip(COLUMNS[:2], values[:2], strict=True):
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or not data:
            raise DataError(f"{where} has no image in '{column}': a pair needs both, give it or take the row out")
        images.append((f"{column} in {where}", data))
    if labels not in ((0, 1), (1, 0), (0.5, 0.5)):
        both = f"are both {labels[0]}" if labels[0] == labels[1] else f"are {labels[0]} and {labels[1]}"
        raise DataError(f"{where}: label_0 and label_1 {both}: one must be 1 and the other 0, or both 0.5 for a tie")
    first, second = images if labels != (0, 1) else images[::-1]
    return Pair(first, second, _caption(values[4], where), tie=labels == (0.5, 0.5))


def digest_of(pairs: Sequence[Pair]) -> str:
    """SHA-256 over captions, ties and the encoded images (of a folder: their names and sizes, which is quicker)."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.text}\0{int(pair.tie)}\0".encode())
        for _, data in (pair.win, pair.lose):
            digest.update(hashlib.sha256(data if isinstance(data, bytes) else _file_identity(data)).digest())
    return digest.hexdigest()


def _file_identity(file: Path) -> bytes:
    return f"{file.name}\0{file.stat().st_size}".encode()


def split_by_caption(pairs: PairSet, part: float) -> tuple[PairSet, PairSet]:
    """`(training, held out)`: every caption falls on one side with all its pairs, by a hash of the caption alone.

    So a pair that is added or removed moves no other. Raises DataError if either side would be empty.
    """
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs.pairs:
        word = int.from_bytes(hashlib.sha256(pair.text.encode()).digest()[:8], "big")
        sides[word < part * 2**64].append(pair)
    if not sides[0] or not sides[1]:
        captions = len({pair.text for pair in pairs.pairs})
        raise DataError(
            f"{pairs.name} has {captions} captions, of which {part:g} held out leaves one side empty: "
            f"give more pairs, another data.held_out, or data.held_out_path"
        )
    train, held = (PairSet(tuple(side), pairs.name, pairs.counts, digest_of(side)) for side in sides)
    return train, held
