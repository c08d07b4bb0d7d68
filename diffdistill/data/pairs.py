"""Pairs of images of one caption, of which one is wanted: read, counted, cut to squares, kept apart by caption."""

import filecmp
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffdistill.data.formats import open_pairs
from diffdistill.data.pixels import decode, fit
from diffdistill.data.source import Encoded, Pair
from diffdistill.errors import DataError
from diffdistill.files import reading


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
    """Read all pairs of DATA, in any format that has them (`diffdistill.data.formats.allowed_pairs`); images stay
    encoded: of a folder on the disk, of parquet in memory.

    Pairs of one and the same image are left out, and ties too unless `ties` is "keep".
    Raises DataError for a missing image, labels that name no winner, an empty caption, and a set without a pair.
    """
    counts: Counter[str] = Counter({"ties": 0, "without label": 0, "of one image": 0})
    pairs: list[Pair] = []
    with reading(data, DataError):
        for pair in open_pairs(data, split, counts):
            if _same(pair.win[1], pair.lose[1]):
                counts["of one image"] += 1
            elif pair.tie and ties == "drop":
                counts["ties"] += 1
            else:
                pairs.append(pair)
    nonzero = {name: count for name, count in counts.items() if count}
    if not pairs:
        left_out = ", ".join(f"{count} {name}" for name, count in nonzero.items()) or "it is empty"
        raise DataError(f"{data} has no pair to learn from ({left_out}): give pairs of which one image is wanted")
    pairs = pairs[:limit]
    return PairSet(tuple(pairs), data, nonzero, digest_of(pairs))


def _same(one: bytes | Path, other: bytes | Path) -> bool:
    """Whether two images are one: the same bytes, also in files of two names."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one == other or filecmp.cmp(one, other, shallow=False)
    return one == other


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
