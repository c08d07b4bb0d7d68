"""Signals that ask a run to stop: obeyed at once, but within an update and its save at their end.

A scheduler gives seconds. So a signal raises `Stopped` wherever nothing is lost by it: while data and networks are
made, images drawn, measured, published. An update and the save after it are whole or not at all: there the signal is
noted, and obeyed when they are done. In between nothing asks for it, so it costs a step nothing.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from diffdistill.errors import DiffDistillError, Interrupted, Preempted

Params = ParamSpec("Params")
Value = TypeVar("Value")

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGXCPU", "SIGINT")
SAME = 1.0  # seconds in which further signals are the same wish: a scheduler's to the process and to its group


class Stopped(BaseException):
    """A signal has come; no Exception, so that no handler of errors takes it for one."""


class StopRequest:
    """Whether a signal has come, and the error that says so: its exit code is 75, or 130 after Ctrl-C.

    sentence: of that error; how far things have come, and how to go on.
    """

    requested = False
    error: type[DiffDistillError] = Preempted
    sentence = "stopped before a step was trained; start it again with resume_from_checkpoint=latest"

    def __init__(self) -> None:
        self.holds = 0
        self._first, self._came = 0, 0.0

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The first signal is the wish to stop; a later Ctrl-C, or a second SIGTERM, does not wait for a save."""
        if self.requested:
            again = number == signal.SIGINT or number == signal.SIGTERM == self._first
            if again and time.monotonic() - self._came > SAME:
                raise KeyboardInterrupt
            return
        self.requested, self._first, self._came = True, number, time.monotonic()
        self.error = Interrupted if number == signal.SIGINT else Preempted
        self.obey()

    def obey(self) -> None:
        """Raise Stopped if a signal has come, unless it has to wait."""
        if self.requested and not self.holds:
            raise Stopped

    @contextmanager
    def held(self) -> Iterator[None]:
        """Signals wait until this is done, and until the caller asks for them or opens a window."""
        self.holds += 1
        try:
            yield
        finally:
            self.holds -= 1

    @contextmanager
    def window(self) -> Iterator[None]:
        """Signals are obeyed at once in here, though they wait around it."""
        before, self.holds = self.holds, 0
        try:
            self.obey()
            yield
        finally:
            self.holds = before


_now = StopRequest()  # of the run on its way in this process; no signal reaches it where there is none


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take the signals, and turn `Stopped` into the error to show; within another of these, that one's.

    Only the main thread is told of signals: in another, they are the caller's.
    """
    global _now
    if not _in_main_thread():
        yield StopRequest()
        return
    if signal.getsignal(signal.SIGTERM) == _now.handle:
        yield _now
        return
    _now = stop = StopRequest()
    before: dict[int, Any] = {}
    try:
        for number in _numbers():
            before[number] = signal.signal(number, stop.handle)
        yield stop
    except Stopped:
        raise stop.error(stop.sentence) from None
    finally:
        for taken, handler in before.items():
            signal.signal(taken, handler)


def _numbers() -> list[signal.Signals]:
    """Of SIGNALS those that this system has; not SIGHUP where it is ignored, as under nohup."""
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    return [n for n in numbers if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def stoppable() -> Iterator[None]:
    """Within an update: signals are obeyed at once in here, where no weight has moved yet."""
    with _now.window() if _in_main_thread() else nullcontext():
        yield


def stops(function: Callable[Params, Value]) -> Callable[Params, Value]:
    """A function within `stop_requests`."""

    @wraps(function)
    def stopping(*args: Params.args, **kwargs: Params.kwargs) -> Value:
        with stop_requests():
            return function(*args, **kwargs)

    return stopping
