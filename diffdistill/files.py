"""The ground floor: digests, JSON, caches, and files and folders that appear whole or not at all."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffdistill.errors import ConfigError, DiskError

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")
"""Endings of files that are, or may be, pickles: opening one can run code, so only `pickle_reader` looks inside."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
ON_DISK = (*PICKLES, ".safetensors", ".json", ".yaml", ".npz", ".npy", ".zip", ".parquet", ".png", ".jpg")
MOST_JSON, MOST_LISTS = 1 << 28, 4_000_000
"""Bytes of a JSON file, and lists and objects in it: an index of a large set has both below, a hostile file above."""


def is_hub_id(name: str) -> bool:
    """Whether a name can only be OWNER/NAME of the Hub, for what is no file or folder here.

    Where there is a folder OWNER, or NAME ends as a file does, it is a path that was mistyped: asking the Hub would
    tell it to others, and take half a minute without a network.
    """
    if HUB_ID.fullmatch(name) is None or name.lower().endswith(ON_DISK):
        return False
    return not (Path(name).exists() or Path(name).parent.exists())


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_text(file: Path) -> str:
    """The text of a file; UTF-8 on every machine."""
    return file.read_text("utf-8")


def read_bounded(file: Path, most: int) -> bytes:
    """The bytes of a file, or of a pipe; ValueError where there are more than `most`, of which no more are read."""
    with file.open("rb") as stream:
        parts, left = [], most + 1
        while left and (part := stream.read(min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
    if not left:
        raise ValueError(f"it is larger than {most >> 10:,} KiB")
    return b"".join(parts)


def read_json(file: Path) -> Any:
    """What a JSON file holds; raises OSError or ValueError, which the caller explains."""
    return parse_json(read_bounded(file, MOST_JSON).decode("utf-8"))


def parse_json(text: str | bytes) -> Any:
    """What JSON says; ValueError for text that is none, or of so many lists that they would fill the memory."""
    opened = (text.count("[") + text.count("{")) if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if opened > MOST_LISTS:
        raise ValueError(f"it holds more than {MOST_LISTS:,} lists")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place at the end: the old or the new, never half.

    The name keeps its ending, by which some writers choose a format. Nothing is left behind by an error.
    """
    partial = file.with_name(f".{file.stem}.partial-{os.getpid()}{file.suffix}")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; an existing file is replaced."""
    with replacing(file) as partial:
        partial.write_text(text, "utf-8")


def write_json(file: Path, value: Any) -> None:
    """Write JSON, whole or not at all; ValueError for NaN and infinity, which JSON has no words for."""
    write_text(file, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder that must not exist yet: written beside it under another name, then renamed. Nothing is
    overwritten.

    Raises ConfigError where it holds files already, DiskError where it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output folder '{folder}' already holds files; name a new one, nothing is overwritten")
    staged = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        staged.mkdir(parents=True)
        yield staged
        share(staged)
        if folder.exists():
            folder.rmdir()
        staged.rename(folder)
    except OSError as error:
        raise DiskError(
            f"could not write '{folder}' ({error.strerror or error}); free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def share(folder: Path) -> None:
    """Give weights the mode that the user's umask gives other files: safetensors leaves them to their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*.safetensors"):
        file.chmod(mode)


def cache_dir() -> Path:
    """`$DIFFDISTILL_CACHE`, else the platform's place for a user's caches."""
    if given := os.environ.get("DIFFDISTILL_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "diffdistill"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "diffdistill"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "diffdistill"
