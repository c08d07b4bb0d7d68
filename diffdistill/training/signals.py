"""SIGTERM, SIGUSR1 and Ctrl-C as a wish to stop, which a run obeys at the next step boundary."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffdistill.errors import Interrupted, Preempted


class StopRequest:
    """Whether a signal has come, and the error that says so: its exit code is 75, or 130 after Ctrl-C."""

    requested = False
    error: type[Exception] = Preempted


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """The first signal is noted in what this yields; a second one interrupts at once."""
    stop = StopRequest()

    def handle(number: int, _frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        stop.error = Interrupted if number == signal.SIGINT else Preempted

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are the caller's
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
