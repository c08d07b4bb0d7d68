"""One process at a time in the folder of a run, and what killed ones left there.

The lock is the system's, on `RUN/.lock`: it ends with its process however that ends, so none is ever stale. Where the
file system has no locks (some of networks), `RUN/.lock-owner` is the lock, and says whose: host, boot and process.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from diffdistill.errors import ConfigError, DiskError
from diffdistill.files import LEFTOVER, beside, discard
from diffdistill.locks import try_lock

LOCK, OWNER = ".lock", ".lock-owner"
AT_WORK = "another process is at work in"


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder, which exists; ConfigError where another process does."""
    file = run / LOCK
    try:
        descriptor = _take(file)
    except OSError as error:
        raise DiskError(
            f"cannot lock '{run}' ({error.strerror}); choose another folder, or change its rights"
        ) from error
    if descriptor is None:
        raise ConfigError(f"{AT_WORK} '{run}'; wait until it has ended, or give another folder")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if sys.platform != "win32":  # an open file cannot be removed there, and stays: empty and free
                file.with_name(OWNER).unlink(missing_ok=True)
                file.unlink()
        os.close(descriptor)


def _take(file: Path) -> int | None:
    """The open lock file, which is ours now; None where it is another's."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            free = try_lock(descriptor)
        except (OSError, ImportError):  # no locks on this file system, or system
            os.close(descriptor)
            return _take_by_name(file)
        if not free:
            os.close(descriptor)
            return None
        # Whoever held it may have removed the file between our two calls: then we hold a lock that nobody sees.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                return descriptor
        os.close(descriptor)


def _take_by_name(file: Path) -> int | None:
    """A file as the lock: made whole by one process only, and another's where its maker may live."""
    owner, mine = file.with_name(OWNER), beside(file)
    mine.write_text(f"{socket.gethostname()} {_boot()} {os.getpid()}", "utf-8")
    try:
        with contextlib.suppress(FileNotFoundError):
            said = owner.read_text("utf-8", errors="replace")
            if _at_work(said) or not _taken_away(owner, said):
                return None
        os.link(mine, owner)
    except FileExistsError:
        return None
    finally:
        mine.unlink()
    return os.open(file, os.O_RDWR | os.O_CREAT, 0o644)


def _at_work(said: str) -> bool:
    """Whether the process that wrote this may live: on another host, or here, since this boot."""
    host, boot, process = [*said.split(), "", "", ""][:3]
    if host != socket.gethostname():
        return host != ""
    return boot == _boot() and process.isdigit() and int(process) != os.getpid() and _lives(int(process))


def _taken_away(owner: Path, said: str) -> bool:
    """Remove what a dead process left, unless another has removed it first, and stands there itself."""
    gone = beside(owner, "gone")
    owner.rename(gone)
    try:
        if gone.read_text("utf-8", errors="replace") == said:
            return True
        os.link(gone, owner)
        return False
    finally:
        gone.unlink()


def _boot() -> str:
    """What a restart of the machine changes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    except OSError:
        return "-"


def _lives(process: int) -> bool:
    if sys.platform == "win32":  # where this call would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def is_ours(path: Path) -> bool:
    """Whether a name in a run folder is the lock's or a leftover's, which make no run."""
    return path.name in (LOCK, OWNER) or LEFTOVER.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Take away what killed processes left on its way in a folder, by its name; for the holder of the lock.

    A folder that was put aside for its successor, which then did not come, gets its name back.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        name = path.with_name(f"{match['name']}{match['ending'] or ''}")
        try:
            if match["what"] == "old" and not name.exists():
                path.rename(name)
            else:
                discard(path)
        except OSError as error:
            tqdm.write(f"warning: could not remove '{path}', left by a killed run ({error.strerror})")
