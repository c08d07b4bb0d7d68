"""What is counted of the pictures of one set, one picture at a time; of a picture a hash and its name are kept."""

import hashlib
import io
import warnings
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffdistill.data.looking import Look
from diffdistill.data.pixels import TURNS, UNREADABLE, Lost, decode, orientation_of, several_sizes
from diffdistill.data.source import Span
from diffdistill.errors import DataError

LISTED = 1000  # unreadable files, duplicates and others that are named; all are counted
FRAMED = ("GIF", "TIFF")  # formats whose frames are counted by going through the file
CAMERAS = ("JPEG", "MPO")  # of others Pillow reads the pixels first, to say how a picture is to be turned
Seen = Callable[[int, np.ndarray], object]


@dataclass
class Tally:
    """The pictures of one set or split, as they would be stacked; `look` keeps what training would refuse of them.

    data: its name, for messages; count: how many there are; image_size: what they are brought to, or None.
    """

    data: str
    count: int
    image_size: int | None
    look: Look
    seen: Seen | None = None
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    traits: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[str, str]] = field(default_factory=list)
    failed_at: "array[int]" = field(default_factory=lambda: array("Q"))
    channels: int = 1
    darkest: int = 255
    brightest: int = 0
    first: tuple[str, tuple[int, int]] | None = None
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    places: "array[int]" = field(default_factory=lambda: array("Q"))
    names: list[str] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)
    lost: Lost = field(default_factory=Lost)

    @property
    def read(self) -> int:
        return len(self.hashes)

    @property
    def unreadable(self) -> int:
        return len(self.failed_at)

    def lose(self, start: int) -> None:
        """Count the pictures from `start` on as lost, with the file that held them."""
        self.failed_at.extend(range(start, self.count))

    def add(self, index: int, name: str, entry: bytes | Path | Span | DataError) -> None:
        """Count one picture that a file or bytes hold."""
        if isinstance(entry, Path):
            self.files.add(entry)
        kind: list[str] = []

        def look(opened: Image.Image) -> None:
            kind.extend(traits_of(opened))
            self.lost.note_range(opened)  # frames are counted by going through the file

        try:
            entry = entry.read() if isinstance(entry, Span) else entry
            pixels = decode(entry, name, look=look)
        except DataError as error:
            self._fail(index, name, str(error))
            return
        except OSError as error:
            self._fail(
                index, name, f"{name} cannot be read ({error.strerror or error}): check the path and its rights"
            )
            return
        mode, file_format, *traits = kind
        if file_format in FRAMED and not isinstance(entry, DataError) and has_frames(entry):
            traits.append("animated")
        self.modes[mode] += 1
        self.formats[file_format] += 1
        self.traits.update(traits)
        self.add_pixels(index, name, pixels)

    def add_array(self, index: int, pixels: np.ndarray) -> None:
        """Count one picture (H, W, 1 or 3) of a file of numbers."""
        self.modes["L" if pixels.shape[2] == 1 else "RGB"] += 1
        self.formats["array"] += 1
        self.add_pixels(index, f"image {index}", pixels)

    def add_pixels(self, index: int, name: str, pixels: np.ndarray) -> None:
        height, width, channels = pixels.shape
        self.sizes[width, height] += 1
        if channels == 3 and is_gray(pixels):
            self.traits["gray_as_colour"] += 1
            self._hash(pixels[..., :1])
        else:
            self._hash(pixels)
        self.places.append(index)
        self.names.append(name)
        low, high = int(pixels.min()), int(pixels.max())
        self.darkest, self.brightest = min(self.darkest, low), max(self.brightest, high)
        self.traits["blank"] += low == high
        self._fits(name, height, width, channels)
        if self.seen is not None:
            self.seen(index, pixels)

    def shape(self) -> tuple[int, int, int] | None:
        """`(C, H, W)` of what training would see; None where nothing can be read."""
        if self.first is None:
            return None
        return (self.channels, *(self.first[1] if self.image_size is None else (self.image_size, self.image_size)))

    def _fits(self, name: str, height: int, width: int, channels: int) -> None:
        """Keep what `pixels.stack` would refuse at this picture."""
        self.first = self.first or (name, (height, width))
        self.channels = max(self.channels, channels)
        if self.image_size is None and (height, width) != self.first[1]:
            self.look.keep(several_sizes(self.data, *self.first, name, (height, width)), "sizes")

    def _fail(self, index: int, name: str, reason: str) -> None:
        self.failed_at.append(index)
        if len(self.failed) < LISTED:
            self.failed.append((name, reason))
        self.look.keep(reason, "unreadable")

    def _hash(self, pixels: np.ndarray) -> None:
        """64 bits of the pixels and the shape: of a million pictures, two that differ have one by a chance of 3e-8."""
        digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
        digest.update(np.ascontiguousarray(pixels).data)
        self.hashes.append(int.from_bytes(digest.digest(), "little"))


def is_gray(pixels: np.ndarray) -> bool:
    """Whether the three channels of (H, W, 3) are one."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    return bool(np.array_equal(red, green) and np.array_equal(red, blue))


def traits_of(image: Image.Image) -> list[str]:
    """Mode and format of an opened picture by Pillow's names, then what else there is to say of it."""
    tiles: Any = getattr(image, "tile", None)
    stored = str(tiles[0][3]) if tiles else ""
    traits = [image.mode, image.format or "?"]
    if "A" in image.mode or "a" in image.mode or image.info.get("transparency") is not None:
        traits.append("transparent")
    if image.mode.startswith("I") or ";16" in stored:
        traits.append("sixteen_bit")
    if image.format not in FRAMED and image.format != "MPO" and getattr(image, "is_animated", False):
        traits.append("animated")
    if image.format in CAMERAS and orientation_of(image) in TURNS:
        traits.append("turned")
    return traits


def has_frames(entry: bytes | Path) -> bool:
    """Whether a GIF or TIFF has more than its first picture, so far as it can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(entry) if isinstance(entry, bytes) else entry, formats=FRAMED) as image:
                return bool(getattr(image, "is_animated", False))
    except (*UNREADABLE, Image.DecompressionBombError):
        return False


def duplicates(tally: Tally) -> list[np.ndarray]:
    """Places in `tally.names` of pictures that have the same pixels, a group each, in the order of the first."""
    hashes = np.frombuffer(tally.hashes, np.uint64) if tally.hashes else np.zeros(0, np.uint64)
    order = np.argsort(hashes, kind="stable")
    edges = np.flatnonzero(np.diff(hashes[order])) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(order)]])
    several = np.flatnonzero(ends - starts > 1)
    return sorted((order[starts[i] : ends[i]] for i in several), key=lambda group: int(group[0]))


def in_both(tally: Tally, other: Tally) -> list[tuple[int, int]]:
    """`(place in tally, place in other)` of every picture of `other` that `tally` has too."""
    mine = np.frombuffer(tally.hashes, np.uint64) if tally.hashes else np.zeros(0, np.uint64)
    known, first = np.unique(mine, return_index=True)
    theirs = np.frombuffer(other.hashes, np.uint64) if other.hashes else np.zeros(0, np.uint64)
    if not len(known) or not len(theirs):
        return []
    place = np.searchsorted(known, theirs).clip(max=len(known) - 1)
    found = np.flatnonzero(known[place] == theirs)
    return [(int(first[place[i]]), int(i)) for i in found]
