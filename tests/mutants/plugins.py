"""pytest plugins: one writes down which test runs which line (by `coverage`), one runs chosen tests in their order."""

import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import coverage
import pytest

CHILD = "MUTANTS_RECORD_INTO"
Lines = dict[str, set[int]]

# Put at the top of a copied tree, which is on the path of every process that a test starts: its lines count too.
SITECUSTOMIZE = f"""
import os
if os.environ.get("{CHILD}"):
    import atexit, json, time, coverage
    here = os.path.dirname(os.path.abspath(__file__))
    recorder = coverage.Coverage(data_file=None, include=[os.path.join(here, "diffdistill", "*")])
    def write(into=os.environ["{CHILD}"]):
        recorder.stop()
        data = recorder.get_data()
        lines = {{os.path.relpath(f, here): sorted(data.lines(f)) for f in data.measured_files()}}
        with open(os.path.join(into, f"{{os.getpid()}}-{{time.time_ns()}}.json"), "w") as file:
            json.dump(lines, file)
    atexit.register(write)
    recorder.start()
"""


class Mapper:
    """Writes, for every test file as soon as it is done, a JSON file into `into`:

    {"tests": {node id: {"seconds": ..., "passed": ..., "skipped": ..., "lines": {file: [...]}}}, "modules": [...]}
    """

    def __init__(self, tree: Path, into: Path):
        os.environ["COVERAGE_CORE"] = "ctrace"  # the others know no contexts
        self.tree, self.into = tree, into
        self.children = tree.parent / f"{tree.name}.children"
        self.children.mkdir(exist_ok=True)
        self.context = ""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        os.environ[CHILD] = str(self.children)
        self.last = {item.nodeid.partition("::")[0]: item.nodeid for item in session.items}
        self.uses = {item.nodeid: getattr(item, "fixturenames", ()) for item in session.items}
        self._begin()

    def _begin(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}
        self.more: dict[str, Lines] = defaultdict(dict)
        self.shared: dict[str, tuple[str, str]] = {}
        self.coverage = coverage.Coverage(data_file=None, include=[str(self.tree / "diffdistill" / "*")])
        self.coverage.start()

    def _switch(self, context: str) -> str:
        before, self.context = self.context, context
        self.coverage.switch_context(context)
        return before

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.tests[nodeid] = {"seconds": -cpu_seconds(), "passed": True, "skipped": False}
        self._switch(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self.tests[report.nodeid]
        test["passed"] &= not report.failed
        test["skipped"] |= report.skipped

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        for file in self.children.glob("*.json"):
            for name, lines in json.loads(file.read_text()).items():
                self.more[nodeid].setdefault(name, set()).update(lines)
            file.unlink()
        self.tests[nodeid]["seconds"] += cpu_seconds()
        self._switch("between tests")
        name = nodeid.partition("::")[0]
        if self.last[name] == nodeid:
            self._write(name)
            self._begin()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        """Lines of a fixture that several tests share are kept apart from those of the test that came first."""
        if fixturedef.scope == "function":
            return (yield)
        context = f"fixture {fixturedef.argname} of {fixturedef.baseid}"
        self.shared[context] = fixturedef.argname, fixturedef.baseid
        before = self._switch(context)
        try:
            return (yield)
        finally:
            self._switch(before)

    def _write(self, name: str) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        seen: dict[str, Lines] = defaultdict(dict, self.more)
        for file in data.measured_files():
            short = os.path.relpath(file, self.tree)
            for line, contexts in data.contexts_by_lineno(file).items():
                for context in contexts:
                    seen[context].setdefault(short, set()).add(line)
        for nodeid, test in self.tests.items():
            lines = {file: set(numbers) for file, numbers in seen[nodeid].items()}
            for context, (fixture, base) in self.shared.items():
                if fixture in self.uses[nodeid] and nodeid.startswith(base):
                    for file, numbers in seen[context].items():
                        lines.setdefault(file, set()).update(numbers)
            test["lines"] = {file: sorted(numbers) for file, numbers in lines.items()}
        target = self.into / f"{name.replace('/', '.')}.json"
        partial = target.with_suffix(".partial")
        touched = {file for test in self.tests.values() for file in test["lines"]}
        held = {"tests": self.tests, "modules": modules(), "digests": digests(self.tree, {name, *touched})}
        partial.write_text(json.dumps(held))
        partial.replace(target)


def cpu_seconds() -> float:
    """Of this process and those that it waited for: what a test costs on a busy machine too."""
    return sum(os.times()[:4])


def digests(tree: Path, files: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files of the tree and of the helpers that tests among them name; an empty text for an absent one."""
    paths = {name: tree / name for name in [*files, "tests/conftest.py"]}
    helpers = {p.stem: p for p in (tree / "tests").glob("**/*.py") if p.parent.name != "mutants"}
    waiting = [path for name, path in paths.items() if name.startswith("tests") and path.is_file()]
    while waiting:
        for word in set(re.findall(r"\w+", waiting.pop().read_text())) & helpers.keys():
            name = str(helpers[word].relative_to(tree))
            if name not in paths:
                paths[name] = helpers[word]
                waiting.append(helpers[word])
    return {name: sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for name, p in sorted(paths.items())}


def fits(held: dict[str, Any], tree: Path) -> bool:
    """Whether a record is of the tree as it is."""
    return held["digests"] == digests(tree, held["digests"])


def modules() -> list[str]:
    return [name for name, module in sys.modules.items() if module is not None]


class Chosen:
    """Runs the given tests, in their order, and keeps which failed."""

    def __init__(self, order: Sequence[str]):
        self.rank = {name: place for place, name in enumerate(order)}
        self.failed: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda i: self.rank[i.nodeid])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
