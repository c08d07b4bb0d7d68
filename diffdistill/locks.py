"""Locks that the system keeps: they end with their process, however that ends, so none is ever stale."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PATIENCE = 0.1  # seconds between two looks at a lock that another process holds


def try_lock(descriptor: int) -> bool:
    """Whether the system gave the lock on an open file; OSError or ImportError where it has none to give."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextlib.contextmanager
def taking_turns(file: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Within, this process alone is at work on what `file`, which is made and stays, stands for; others wait.

    waiting: called once where another is at work. A signal ends the waiting. Where the file system has no locks, all
    go on at once, and must do no harm to each other. OSError where the file cannot be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, taking_turns(Path(folder, "cache.lock")):
    ...     "nobody else makes this cache now"
    'nobody else makes this cache now'
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError, ImportError):
            if not try_lock(descriptor):
                waiting()
                while not try_lock(descriptor):
                    time.sleep(PATIENCE)
        yield
    finally:
        os.close(descriptor)
