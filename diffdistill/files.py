"""The ground floor: digests, JSON, caches, and files and folders that appear whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffdistill.errors import ConfigError, DiffDistillError, DiskError

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")
"""Endings of files that are, or may be, pickles: opening one can run code, so only `pickle_reader` looks inside."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
BROKEN_ZIP = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError, OverflowError,
)  # fmt: skip
"""What `zipfile` raises for a damaged file, besides OSError: lengths, versions, names, passwords."""

ON_DISK = (
    *PICKLES, ".safetensors", ".json", ".yaml", ".npz", ".npy", ".zip", ".tar", ".gz", ".parquet", ".png", ".jpg",
)  # fmt: skip
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


def expanded(path: str | Path) -> Path:
    """A path whose `~` is a home folder; as it is where there is nobody of that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stamp(known: os.stat_result) -> str:
    """What changes when the content of a file does: its size, and the times of its last changes in nanoseconds.

    The second of them, of its entry (`st_ctime`; where the system has none, that it was made), no program sets back.
    """
    return f"{known.st_size} {known.st_mtime_ns} {known.st_ctime_ns}"


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


class Twice(ValueError):
    """A key that is twice in one object of JSON, of which readers silently take the last."""


def parse_json(text: str | bytes, unique: bool = False) -> Any:
    """What JSON says; ValueError for text that is none, or of so many lists that they would fill the memory.

    unique: `Twice` where an object has a key two times, for what people write.
    """
    opened = (text.count("[") + text.count("{")) if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if opened > MOST_LISTS:
        raise ValueError(f"it holds more than {MOST_LISTS:,} lists")
    try:
        return json.loads(text, object_pairs_hook=_once if unique else None)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Twice(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.80} twice")
    return found


def reason_of(error: BaseException) -> str:
    """What an error says, on one line and without Python's number and repetition of the path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


@contextlib.contextmanager
def reading(what: str, kind: type[DiffDistillError]) -> Iterator[None]:
    """Within, an OSError is told as an error of `kind`: `what` cannot be read, and why."""
    try:
        yield
    except OSError as error:
        place = f"{error.filename}: " if error.filename and str(error.filename) != what else ""
        reason = error.strerror or str(error)
        raise kind(f"'{what:.200}' cannot be read ({place}{reason}); check the path and its rights") from error


def beside(path: Path, what: str = "partial") -> Path:
    """A hidden name beside `path` that nobody has, for what is on its way there; it keeps the ending.

    Of the process and of chance: in containers a restarted process has the number of the one that was killed.
    """
    stem = os.fsdecode(os.fsencode(path.stem)[:180])  # names of files have an end, of 255 bytes mostly
    return path.with_name(f".{stem}.{what}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")


def behind_links(path: Path) -> Path:
    """Where a path leads: itself, unless it is a link, or has no name of its own as `.` has none."""
    if os.path.islink(path) or path.name in ("", ".."):  # which says no where a name is too long
        end = Path(os.path.realpath(path))
        return path if path.exists() and not end.exists() else end  # /dev/stdout leads to a pipe without a name
    return path


LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<what>partial|old|gone)-\d+(-[0-9a-f]{8})?(?P<ending>\.\w+)?")
"""Names that `beside` gives, and gave earlier: what a killed process leaves."""


MANY = 256  # files, each of which takes milliseconds to be synced
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""What file systems say that sync no folders, as some of networks."""


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, survive a loss of power."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folder, and keeps names in order by itself
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in NO_SYNC):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` of everything in a folder, and of it; of very many files, as of images, the system's own in one go."""
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    if len(paths) > MANY and hasattr(os, "sync"):
        os.sync()
        return
    for path in (*paths, folder):
        sync(path)


def discard(path: Path) -> None:
    """Remove a file, a link or a folder; OSError where that cannot be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place at the end: the old or the new, never half.

    The name keeps its ending, by which some writers choose a format. Nothing is left behind by an error. Behind a
    link the file it leads to is replaced; a device or a pipe, such as /dev/stdout, is written to as it is.
    """
    file = behind_links(file)
    if file.exists() and not file.is_file():
        yield file
        return
    partial = beside(file)
    try:
        yield partial
        sync(partial)
        os.replace(partial, file)
        sync(file.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A path beside `folder` at which to make a folder, which takes its place at the end.

    A whole one is there at every moment, where the system can exchange two names; elsewhere the old one is aside for
    the time of two renames.
    """
    staged = beside(folder)
    try:
        yield staged
        put_in_place(staged, folder)
    finally:
        with contextlib.suppress(OSError):  # a leftover, removed later
            discard(staged)


def put_in_place(new: Path, old: Path) -> None:
    """Give the folder `new` the name `old`; what had it, if anything, has the name `new` afterwards, or is gone."""
    sync_tree(new)
    if not old.exists() and not old.is_symlink():
        new.rename(old)
    elif not _exchange(new, old):
        aside = beside(old, "old")
        old.rename(aside)
        try:
            new.rename(old)
        except BaseException:
            aside.rename(old)
            raise
        with contextlib.suppress(OSError):
            discard(aside)
    sync(old.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or its file system cannot."""
    import ctypes

    names = os.fsencode(one), os.fsencode(other)
    try:
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return libc.renamex_np(*names, 2) == 0  # RENAME_SWAP
        at_here = -100
        return libc.renameat2(at_here, names[0], at_here, names[1], 2) == 0  # RENAME_EXCHANGE
    except (AttributeError, OSError, TypeError):
        return False


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; an existing file is replaced."""
    with replacing(file) as partial:
        partial.write_text(text, "utf-8")


def write_json(file: Path, value: Any) -> None:
    """Write JSON, whole or not at all; ValueError for NaN and infinity, which JSON has no words for."""
    write_text(file, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder that must not exist yet, or be empty: written under another name beside it, then renamed. Nothing
    is overwritten.

    A link to an empty folder stays, and the folder behind it is filled; so is the current folder, and one that a disk
    is mounted on, which cannot be exchanged for another. Raises ConfigError where it holds files already, DiskError
    where it cannot be written.
    """
    given, folder = folder, behind_links(folder)
    with _told(given):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"output folder '{given}' already holds files; name a new one, nothing is overwritten")
        fixed = folder.exists() and (os.path.ismount(folder) or folder.samefile(os.curdir))
        staged = beside(folder / folder.name if fixed else folder)
        staged.mkdir(parents=True)
    try:
        with _told(given):
            yield staged
            share(staged)
            sync_tree(staged)
            if fixed:
                for file in sorted(staged.iterdir()):
                    file.rename(folder / file.name)
                staged.rmdir()
                sync(folder)
            else:
                if folder.exists():
                    folder.rmdir()
                staged.rename(folder)
                sync(folder.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise not_written(folder, error, "free space or choose another folder") from error


def not_written(place: str | Path, error: OSError, advice: str) -> DiffDistillError:
    """The sentence for a place that could not be written: ConfigError where nothing could have that path.

    advice: what to do on a disk that is full or may not be written. No room would mend a name that is too long, or a
    path through a file or a folder that is not there.
    """
    what = f"could not write '{place!s:.200}' ({error.strerror or error})"
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOENT, errno.EISDIR, errno.EEXIST, errno.ELOOP):
        return ConfigError(f"{what}; name another path")
    return DiskError(f"{what}; {advice}")


def share(folder: Path) -> None:
    """Give weights the mode that the user's umask gives other files: safetensors leaves them to their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*.safetensors"):
        file.chmod(mode)


def cache_dir() -> Path:
    """`$DIFFDISTILL_CACHE`, else the platform's place for a user's caches."""
    if given := os.environ.get("DIFFDISTILL_CACHE"):
        return expanded(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "diffdistill"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "diffdistill"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "diffdistill"
