"""Signals that ask a run to stop: obeyed at once, but within an update and its save at their end.

A scheduler gives seconds. So a signal raises `Stopped` wherever nothing is lost by it: while data and networks are
made, images drawn, measured, published; an import comes to its end first. An update and the save after it are whole or
not at all: there the signal is noted, and obeyed when they are done. In between nothing asks for it, so it costs a
step nothing.

Of several processes only the leader may stop at once, while it works for all; the others wait for it, and none leaves
a common call. What one has noted, all obey at the end of the step.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from diffdistill import processes
from diffdistill.errors import DiffDistillError, Interrupted, Preempted
from diffdistill.imports import put_off

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

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The first signal is the wish to stop; a later Ctrl-C, or a second SIGTERM, does not wait for a save."""
        if put_off(number, frame):
            return
        if self.requested:
            again = number == signal.SIGINT or number == signal.SIGTERM == self._first
            if again and time.monotonic() - self._came > SAME:
                raise KeyboardInterrupt
            return
        self.requested, self._first, self._came = True, number, time.monotonic()
        self.error = Interrupted if number == signal.SIGINT else Preempted
        self.obey()

    @property
    def word(self) -> int:
        """0: no signal; 1: to be preempted; 2: Ctrl-C. What processes tell each other."""
        return 0 if not self.requested else 2 if self.error is Interrupted else 1

    def hear(self, word: int) -> None:
        """A signal that has come to another process."""
        if word and not self.requested:
            self.requested, self._came = True, time.monotonic()
            self.error = Interrupted if word == 2 else Preempted

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
        raise processes.together_told(stop.error(stop.sentence)) from None
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
    with _now.window() if _in_main_thread() and processes.size() == 1 else nullcontext():
        yield


def stop_if_asked() -> None:
    """Within an update that moves no weight yet, in all processes at once: the same for several of them."""
    if processes.size() > 1 and (word := processes.most(_now.word)):
        _now.hear(word)
        raise Stopped


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within a window: a signal waits for the end of this, which other processes have a part in."""
    with _now.held():
        yield
    _now.obey()


def held_together() -> AbstractContextManager[None]:
    """Signals wait in each of several processes until all obey them; nothing for one process."""
    return _now.held() if processes.size() > 1 else nullcontext()


def led(act: Callable[[], object], at_once: bool = True) -> None:
    """The leader acts and the others wait; an error, and a stop, are those of all.

    at_once: whether the leader obeys signals all the while, or only where it opens a window itself.
    """
    if processes.size() == 1:
        act()
        return

    def acting() -> int | None:
        try:
            with _now.window() if at_once else nullcontext():
                act()
        except Stopped:
            return _now.word
        return None

    if (word := processes.lead(acting)) is not None:
        _now.hear(word)
        raise Stopped


def stops(function: Callable[Params, Value]) -> Callable[Params, Value]:
    """A function within `stop_requests`."""

    @wraps(function)
    def stopping(*args: Params.args, **kwargs: Params.kwargs) -> Value:
        with stop_requests():
            return function(*args, **kwargs)

    return stopping
