"""A process that decodes images for another one: it reads requests, and writes pixels, until it is asked nothing more.

A message is the length of a line of JSON (8 bytes, little-endian), the line, and bytes that follow it. It needs
neither torch nor a pickle, and starts in a tenth of a second or two.
"""

import json
import os
import signal
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from diffdistill.data.looking import unreadable
from diffdistill.data.pixels import Lost, decode
from diffdistill.data.source import Entry, Span
from diffdistill.errors import DataError
from diffdistill.machine import stop_signals

LENGTH = 8


def send(stream: IO[bytes], about: Any, parts: Sequence[Any]) -> None:
    """Write a message."""
    said = json.dumps(about).encode()
    stream.write(len(said).to_bytes(LENGTH, "little") + said)
    for part in parts:
        stream.write(part)
    stream.flush()


def heard(stream: IO[bytes]) -> Any:
    """The JSON of the next message, whose bytes are read next; None at the end."""
    length = stream.read(LENGTH)
    if len(length) < LENGTH:
        return None
    said = stream.read(int.from_bytes(length, "little"))
    return json.loads(said)


@dataclass(frozen=True)
class Place:
    """Where images are written to, one row (C, H, W) after the other, from row `first` on."""

    file: str
    first: int
    shape: tuple[int, int, int]


def request(entries: Sequence[Entry], image_size: int | None, to: Place | None) -> tuple[dict[str, Any], list[bytes]]:
    """What is asked for some images: their places or bytes, how they are brought to one size, where they go."""
    items: list[list[Any]] = []
    parts: list[bytes] = []
    for name, encoded in entries:
        if isinstance(encoded, bytes):
            items.append([name, "bytes", len(encoded)])
            parts.append(encoded)
        elif isinstance(encoded, Path):
            items.append([name, "path", os.fsdecode(encoded)])
        elif isinstance(encoded, Span):
            items.append([name, "span", os.fsdecode(encoded.file), *encoded.place])
        else:
            items.append([name, "lost", str(encoded)])
    where = None if to is None else asdict(to)
    return {"items": items, "image_size": image_size, "most": Image.MAX_IMAGE_PIXELS, "to": where}, parts


def answer(asked: dict[str, Any], stream: IO[bytes]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The images asked for, up to the first that cannot be read, and why that cannot: their pixels, or their sums."""
    Image.MAX_IMAGE_PIXELS = asked["most"]
    entries = [(item[0], _encoded(item, stream)) for item in asked["items"]]
    if asked["to"] is not None:
        return asdict(write(entries, asked["image_size"], Place(**asked["to"]))), []
    found = decode_all(entries, asked["image_size"])
    about = {"shapes": [image.shape for image in found.images], "error": found.error, "lost": asdict(found.lost)}
    return about, found.images


@dataclass
class Decoded:
    """Images (H, W, C) up to the first that could not be read, and the sentence that says why."""

    images: list[np.ndarray] = field(default_factory=list)
    error: str | None = None
    lost: Lost = field(default_factory=Lost)


def decode_all(entries: Iterable[Entry], image_size: int | None) -> Decoded:
    """Decode images, up to the first that cannot be read."""
    done = Decoded()
    for name, encoded in entries:
        try:
            done.images.append(np.ascontiguousarray(decode(encoded, name, image_size, done.lost.note)))
        except (DataError, OSError) as problem:
            done.error = said_of(problem, name)
            break
    return done


def said_of(problem: DataError | OSError, name: str) -> str:
    return str(problem if isinstance(problem, DataError) else unreadable(problem, name))


@dataclass
class Written:
    """What became of images: the CRC-32 of each row; why one cannot be read; or the name and the shape of one that is
    of another height or width, or has more channels; or the number and the words of what the disk said.
    """

    sums: list[int] = field(default_factory=list)
    error: str | None = None
    odd: tuple[str, tuple[int, int, int]] | None = None
    disk: tuple[int, str] | None = None
    lost: Lost = field(default_factory=Lost)


def write(entries: Iterable[Entry], image_size: int | None, to: Place) -> Written:
    """Decode images and write their rows, up to the first that cannot be read or has another shape."""
    done = Written()
    channels, height, width = to.shape
    with open(to.file, "r+b", buffering=0) as file:
        file.seek(to.first * channels * height * width)
        for name, encoded in entries:
            try:
                image = decode(encoded, name, image_size, done.lost.note)
            except (DataError, OSError) as problem:
                done.error = said_of(problem, name)
                break
            if image.shape[:2] != (height, width) or image.shape[2] > channels:
                done.odd = name, image.shape
                break
            row = np.ascontiguousarray(np.broadcast_to(image.transpose(2, 0, 1), to.shape))  # gray becomes RGB
            try:
                write_whole(file, row)
            except OSError as problem:
                done.disk = problem.errno or 0, problem.strerror or str(problem)
                break
            done.sums.append(zlib.crc32(row.data))
    return done


def write_whole(file: IO[bytes], row: np.ndarray) -> None:
    """Write a row to a file without a buffer, which may take a part of it at a time."""
    left = row.reshape(-1).data.cast("B")
    while left:
        left = left[file.write(left) :]


def _encoded(item: list[Any], stream: IO[bytes]) -> bytes | Path | Span | DataError:
    _, kind, *values = item
    if kind == "bytes":
        return stream.read(values[0])
    if kind == "path":
        return Path(values[0])
    return Span(Path(values[0]), *values[1:]) if kind == "span" else DataError(values[0])


def main() -> None:
    """Answer until the other process ends. Signals are for the other to obey, which may save first."""
    for number in (*stop_signals(), signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    asking, answering = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no message
    while (asked := heard(asking)) is not None:
        send(answering, *answer(asked, asking))
