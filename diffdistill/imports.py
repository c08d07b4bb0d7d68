"""Signals that come in the middle of an import wait for its end.

An exception out of a signal's handler that is raised within an import leaves what is imported half-made: the C code of
torch swallows it, names a module that has no such attribute, or ends the process by a fault of memory. An import takes
seconds, and nothing of a run exists in them; so the signal comes again when it is done.
"""

import _thread
import os
import signal
import sys
import threading
import time
from types import FrameType

MOST = 30.0  # seconds for which a signal waits: what imports and never ends is a program, as a script that is imported
LOOK = 0.02  # seconds between looks
IMPORT = "<frozen importlib._bootstrap>"  # the file of Python's own frames of an import

_until: dict[int, float] = {}  # when a signal that waits waits no longer
_watched: set[int] = set()


def put_off(number: int, frame: FrameType | None) -> bool:
    """Whether a handler is to leave a signal alone, for it comes again once the import that is under way is done.

    number, frame: what the handler was given.
    """
    until = _until.setdefault(number, time.monotonic() + MOST)
    if time.monotonic() >= until or not importing(frame):
        _until.pop(number, None)
        return False
    if number not in _watched:
        _watched.add(number)
        # No Thread: its start takes locks that the code may hold which the signal has interrupted.
        _thread.start_new_thread(_send_again, (number, until))
    return True


def importing(frame: FrameType | None) -> bool:
    """Whether a frame is of code that an import runs.

    >>> importing(sys._getframe())
    False
    """
    while frame is not None:
        if frame.f_code.co_filename == IMPORT:
            return True
        frame = frame.f_back
    return False


def _send_again(number: int, until: float) -> None:
    main = threading.main_thread().ident
    assert main is not None
    while time.monotonic() < until and importing(sys._current_frames().get(main)):
        time.sleep(LOOK)
    _watched.discard(number)
    if os.name == "nt":
        signal.raise_signal(number)
    else:
        signal.pthread_kill(main, number)  # it wakes the main thread where that sleeps
