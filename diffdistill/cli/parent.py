"""A run that another process began, as a sweep does, ends with that one, even where it was killed without a word."""

import os
import signal
import threading
import time

PARENT = "DIFFDISTILL_PARENT"  # the process whose end ends this one
LOOK = 0.5  # seconds between looks


def of_this_process() -> dict[str, str]:
    """The environment of a run that is to end with this process."""
    return {**os.environ, PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Where `of_this_process` asks for it: once that process is gone, this one gets SIGTERM, so a run saves and ends.

    By the number of the parent, which a system changes when that has ended. Windows does not, and nothing is watched
    there.
    """
    number = os.environ.pop(PARENT, "")  # what this process starts is its own
    if os.name != "nt" and number.isdecimal():
        threading.Thread(target=_wait, args=(int(number),), daemon=True, name="end with parent").start()


def _wait(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
