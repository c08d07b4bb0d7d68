"""An error of several processes is told once, and is that of all: the first one's, which the others find in a store.

Whoever fails writes its sentence into the store by which all have met, where the first one stays; whoever fails later,
of the same or because it waits for one that has ended, ends with that one's exit code and is silent. Where all fail at
once the leader is let be the first. What is told does not go by the group's own calls: those wait for processes that
will not come.
"""

import json
import os
import time
from typing import Any

from diffdistill import errors
from diffdistill.errors import DiffDistillError
from diffdistill.explain import explained

MOMENT = 1.0  # seconds in which processes that meet the same error fail
GRACE = 15.0  # seconds for which the one that has the store waits, at its end, for the others to read it
LOOK = 0.02  # seconds between looks


class Gone(DiffDistillError):
    """Another process of the run has ended: what it said is the reason."""


def kind_of(error: DiffDistillError) -> str:
    """The name of the class in `errors` that an error is of."""
    return next(kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)


def of_kind(name: str, text: str) -> DiffDistillError:
    """An error of another process.

    >>> kind_of(of_kind("DataError", "there is no image")), of_kind("DataError", "there is no image").exit_code
    ('DataError', 3)
    """
    error: DiffDistillError = getattr(errors, name)(text)
    return error


class Failures:
    """The failures of a group of processes. store: that of the group; rank, size: of this process in it."""

    def __init__(self, store: Any, rank: int, size: int):
        self.store, self.rank, self.size = store, rank, size
        self.round = 0  # of all that fail together, and may go on
        self._awaited = 0  # processes that are to read the store yet

    def settle(self, error: BaseException) -> tuple[BaseException, bool]:
        """What this process raises in the place of an error, and whether others go on and may wait for it.

        An Exception, or Ctrl-C, is written down; another BaseException is what it is, unless one has failed before.
        """
        raised = error
        try:
            if not isinstance(error, Exception | KeyboardInterrupt) and not self._has_first():
                return error, False
            known, until = explained(error), time.monotonic() + MOMENT
            while self.rank and not self._has_first() and time.monotonic() < until:
                time.sleep(LOOK)
            raised = error if known.told else self._first(error, known)
            return raised, self._go_on_after(known, until)
        except RuntimeError:  # the store has ended with its process
            return raised, True

    def _has_first(self) -> bool:
        return bool(self.store.check([f"first {self.round}"]))

    def _go_on_after(self, known: DiffDistillError, until: float) -> bool:
        """Whether others have not failed, for all that is known at that time."""
        ended = self.store.add(f"ended {self.round}", 1)
        while ended < self.size and time.monotonic() < until:
            time.sleep(LOOK)
            ended = self.store.add(f"ended {self.round}", 0)
        if ended < self.size:
            self._awaited = self.size - isinstance(known, Gone)
            return True
        self.round += 1
        return False

    def _first(self, error: BaseException, known: DiffDistillError) -> BaseException:
        """The error itself if it is the first, else that one, which is told."""
        mine = json.dumps([self.rank, kind_of(known), str(known)])
        rank, kind, text = json.loads(self.store.compare_set(f"first {self.round}", "", mine))
        if rank == self.rank:
            return error
        first = of_kind(kind, text)
        first.told, first.__cause__ = True, error
        return first

    def wait(self) -> None:
        """Before the end: the process that has the store keeps it until the others have read it, or are late."""
        if self.rank or not self._awaited or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return
        until = time.monotonic() + GRACE
        while time.monotonic() < until and self.store.add(f"ended {self.round}", 0) < self._awaited:
            time.sleep(LOOK)
        self._awaited = 0
