"""What happens to one mutant: which tests can see it, in which order they run, and what they say."""

import os
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from .catalogue import Mutant, area_of, assigned_at, homes_of_bases, is_used_in, lines_of, module_of

SOON = 5.0  # seconds of processor time of the tests in the first, fastest run
Examination = Generator["Request", dict[str, Any], "Result"]


class Request(NamedTuple):
    """Tests to run, on the source as it is (`after` = `before`) or changed; fresh: from the start."""

    file: str
    before: str
    after: str
    names: list[str]
    limit: float
    fresh: bool


@dataclass(frozen=True)
class Result:
    """state: killed, timed out, survived, unseen (no test runs its line), not run, does not apply."""

    file: str
    name: str
    old: str
    new: str
    state: str
    by: str = ""
    seconds: float = 0.0
    tests: int = 0

    @property
    def area(self) -> str:
        return area_of(self.file)

    @property
    def dead(self) -> bool:
        return self.state in ("killed", "timed out")

    @property
    def counts(self) -> bool:
        return self.state not in ("not run", "does not apply")


def result_of(mutant: Mutant, state: str, **more: Any) -> Result:
    return Result(mutant.file, mutant.name, mutant.old, mutant.new, state, **more)


def as_json(result: Result) -> dict[str, Any]:
    return asdict(result)


@dataclass
class Knowledge:
    """The tests with the lines that each runs, and what earlier mutants taught."""

    tests: dict[str, dict[str, Any]]
    killers: dict[str, Counter[str]] = field(default_factory=dict)  # file -> how often a test killed there
    before: dict[str, str] = field(default_factory=dict)  # mutant -> what killed it in another state of the tree
    most: float = float("inf")  # seconds of tests that a mutant gets, the fastest
    sound: dict[str, bool] = field(default_factory=dict)  # whether a killer passes on the tree as it is

    def __post_init__(self) -> None:
        self.seeing: dict[tuple[str, int], list[str]] = {}
        self.by_file: dict[str, set[str]] = {}
        for name, test in self.tests.items():
            if not test["passed"] or test["skipped"]:
                continue
            for file, lines in test["lines"].items():
                self.by_file.setdefault(file, set()).add(name)
                for line in lines:
                    self.seeing.setdefault((file, line), []).append(name)

    def passing(self) -> set[str]:
        return {
            name
            for name, test in self.tests.items()
            if test["passed"] and not test["skipped"] and self.sound.get(name, True)
        }

    def seconds(self, names: Sequence[str]) -> float:
        return sum(self.tests[name]["seconds"] for name in names)

    def stages(self, mutant: Mutant, source: str, tree: Path) -> Iterator[list[str]]:
        """Tests to run, one list after the other: the likeliest and fastest, then all that run the line.

        A line outside functions is run by the import alone, so all tests that run any line of the file can see it,
        and of the files that use what it sets.
        """
        line = mutant.line(source)
        lines, inside = lines_of(source, line)
        exact = set(self.seeing.get((mutant.file, line), []))
        seeing = {name for number in lines for name in self.seeing.get((mutant.file, number), [])}
        if not inside:
            for file in (mutant.file, *users_of(mutant.file, source, line, tree)):
                seeing |= self.by_file.get(file, set())
        seeing &= self.passing()
        killed = self.killers.get(mutant.file, Counter())
        own = self.by_file.get(mutant.file, set()) if not inside else exact
        before = self.before.get(mutant.title)
        far = {name: distance(name, mutant.file) for name in seeing}
        order = sorted(
            seeing,
            key=lambda n: (n != before, -killed[n], far[n], n not in exact, n not in own, self.tests[n]["seconds"], n),
        )
        first: list[str] = []
        for name in order:
            if first and self.seconds(first) + self.tests[name]["seconds"] > SOON:
                break
            first.append(name)
        yield first
        left = self.most - self.seconds(first)
        rest = [name for name in order if name not in set(first)]
        rest = [
            name
            for name, total in zip(rest, accumulate(self.tests[n]["seconds"] for n in rest), strict=True)
            if total <= left
        ]
        yield sorted(rest, key=lambda n: (-killed[n], n.partition("::")[0], self.tests[n]["seconds"]))

    def beside(self, mutant: Mutant, source: str, tree: Path) -> list[str]:
        """All tests of the files with tests that see it, for a run from the start: what a helper or a collection
        keeps is recorded for the first test only that asks for it. For a line outside functions, all tests.
        """
        _, inside = lines_of(source, mutant.line(source))
        seeing = {name for stage in self.stages(mutant, source, tree) for name in stage}
        files = {name.partition("::")[0] for name in seeing}
        return sorted(n for n in self.passing() if not inside or n.partition("::")[0] in files)


def distance(test: str, file: str) -> int:
    """0 for a test in a file named after the module, 1 for one in the room of its folder, 2 for another."""
    place, module = Path(test.partition("::")[0]), Path(file)
    if module.stem.strip("_") in place.stem:
        return 0
    return 1 if set(place.parts[1:-1]) & set(module.parts[1:-1]) else 2


def users_of(file: str, source: str, line: int, tree: Path) -> Iterator[str]:
    """Files where a value that is set outside functions is used: of the bases of the classes, which read what their
    heirs set, and those that import the name.
    """
    homes, module, names = homes_of_bases(source), module_of(file), assigned_at(source, line)
    for path in sorted((tree / "diffdistill").rglob("*.py")):
        other = path.relative_to(tree).as_posix()
        if module_of(other) in homes or (names and is_used_in(path.read_text(), module, names)):
            yield other


def examine(mutant: Mutant, knowledge: Knowledge, tree: Path, confirm: bool) -> Examination:
    """Breaks the line in `tree`, runs what can see it until a test fails, and mends it again.

    confirm: what survives is run once more from the start, with all tests beside those that see it.
    """
    began = time.monotonic()
    path = tree / mutant.file
    source = path.read_text()
    changed = mutant.applied(source)
    fresh, ran = False, 0

    def request(names: list[str], after: str) -> Request:
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # the seconds known are of the processor alone
        limit = busy * (60 + 20 * knowledge.seconds([name for name in names if name in knowledge.tests]))
        return Request(mutant.file, source, after, names, limit, fresh)

    try:
        stages = list(knowledge.stages(mutant, source, tree))
        if confirm:
            stages.append(knowledge.beside(mutant, source, tree))
        for number, names in enumerate(stages):
            fresh = fresh or number == 2
            names = [n for n in names if knowledge.sound.get(n, True)]
            while names:
                path.write_text(changed)
                answer = yield request(names, changed)
                path.write_text(source)
                if answer["code"] == -3 and not fresh:
                    fresh = True
                    continue
                if answer["code"] == -1:
                    return result_of(mutant, "timed out", seconds=time.monotonic() - began)
                if answer["code"] == 0:
                    ran = max(ran, len(names)) if number == 2 else ran + len(names)
                    break
                killer = answer["failed"][0] if answer["failed"] else ""
                if killer not in knowledge.sound:
                    clean = yield request([killer] if killer else names, source)
                    knowledge.sound[killer] = clean["code"] in (0, 5)  # 5: a file that is collected without a test
                if knowledge.sound[killer]:
                    if killer in knowledge.tests:
                        knowledge.killers.setdefault(mutant.file, Counter())[killer] += 1
                    seconds = time.monotonic() - began
                    return result_of(mutant, "killed", by=killer or "the whole run", seconds=seconds)
                if killer not in names:
                    raise RuntimeError(f"{tree}: the tests do not run on the tree as it is; see {tree}.log")
                names = [name for name in names if name != killer]
        state = "survived" if ran else "unseen"
        return result_of(mutant, state, seconds=time.monotonic() - began, tests=ran)
    finally:
        path.write_text(source)
