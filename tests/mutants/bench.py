"""A pytest session that collects the tests once and then, for every mutant, forks, changes the code and runs a few.

What costs time is imports and collection, so they are done before the fork. In the fork the functions of the changed
line get new code in place; a line outside functions cannot be changed so, nor what was computed during collection:
for those there are runs from the start (`workshop.Run`).
"""

import contextlib
import gc
import json
import os
import signal
import sys
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

FUNCTION = 0x2  # CO_NEWLOCALS: the code of a function, not of a module or a class


class CannotPatch(Exception):
    """The change is outside functions, or changes what a function closes over."""


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def own(code: types.CodeType) -> tuple[Any, ...]:
    """What a code object says itself, without the functions inside it."""
    plain = tuple(repr(c) for c in code.co_consts if not isinstance(c, types.CodeType))
    return code.co_code, plain, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars


def patches(file: str, before: str, after: str) -> dict[tuple[str, int], types.CodeType]:
    """New code by qualified name and first line, for every function that holds the change; CannotPatch if none may."""
    old, new = (list(codes(compile(text, file, "exec"))) for text in (before, after))
    found: dict[tuple[str, int], types.CodeType] = {}
    if len(old) != len(new):
        # A function more or less: all functions around it change, which their names and lines still tell.
        new_by_place = {(c.co_qualname, c.co_firstlineno): c for c in new}
        pairs = [(c, new_by_place.get((c.co_qualname, c.co_firstlineno))) for c in old]
    else:
        pairs = list(zip(old, new, strict=True))
    for one, other in pairs:
        if other is None or one == other:
            continue
        if not one.co_flags & FUNCTION:
            if own(one) != own(other):
                raise CannotPatch
            continue
        if one.co_freevars != other.co_freevars:
            raise CannotPatch
        found[one.co_qualname, one.co_firstlineno] = other
    return found


class Bench:
    """The plugin: a loop over requests in place of pytest's over its items."""

    def __init__(self, requests: int, answers: int, tree: Path):
        self.requests, self.answers, self.tree = os.fdopen(requests, "r"), os.fdopen(answers, "w"), tree
        self.failed: list[str] = []
        self.functions: dict[str, list[types.FunctionType]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        prefix = str(self.tree / "diffdistill")
        for thing in gc.get_objects():
            if type(thing) is types.FunctionType and thing.__code__.co_filename.startswith(prefix):
                self.functions.setdefault(thing.__code__.co_filename, []).append(thing)
        self._say({"ready": len(items)})
        gc.collect()
        gc.freeze()
        for line in self.requests:
            self._say(self._served(session, items, json.loads(line)))
        return True

    def _say(self, value: dict[str, Any]) -> None:
        self.answers.write(json.dumps(value) + "\n")
        self.answers.flush()

    def _served(
        self, session: pytest.Session, items: dict[str, pytest.Item], request: dict[str, Any]
    ) -> dict[str, Any]:
        answer = self.tree.parent / f"{self.tree.name}.bench.json"
        answer.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            self._run(session, [items[name] for name in request["names"] if name in items], request, answer)
        deadline = time.monotonic() + request["limit"]
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return {"code": -1, "failed": []}
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what a test left running
        return json.loads(answer.read_text()) if answer.exists() else {"code": -2, "failed": []}

    def _run(
        self, session: pytest.Session, items: Sequence[pytest.Item], request: dict[str, Any], answer: Path
    ) -> None:
        """In the fork: the change, then the tests until one fails."""
        try:
            os.setsid()
            factory: Any = session.config._tmp_path_factory  # type: ignore[attr-defined]
            factory._given_basetemp, factory._basetemp = Path(f"{self.tree}.bench.tmp"), None
            try:
                self._patch(request)
            except CannotPatch:
                answer.write_text(json.dumps({"code": -3, "failed": []}))
                return
            for item, following in zip(items, [*items[1:], None], strict=True):
                # A shared fixture is set up again for the next file, and torn down at once if the test failed.
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.failed:
                    break
            partial = answer.with_suffix(".partial")
            partial.write_text(json.dumps({"code": int(bool(self.failed)), "failed": self.failed}))
            partial.replace(answer)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            os._exit(0)

    def _patch(self, request: dict[str, Any]) -> None:
        if request["before"] == request["after"]:
            return
        file = str(self.tree / request["file"])
        found = patches(file, request["before"], request["after"])
        for function in self.functions.get(file, []):
            code = found.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
            if code is not None:
                function.__code__ = code
