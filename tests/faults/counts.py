"""How often an attack is tried, and what came of it: a JSON file an attack, from which docs/reliability.md is written.

The environment variable FAULTS says how often: `full` (the default), `ci`, or a number of tries of each attack.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

SCALE = os.environ.get("FAULTS", "full")
OUT = os.environ.get("FAULTS_OUT")
SHOWN = 12  # wrong tries that are kept in words
T = TypeVar("T")


def tries(full: int, ci: int) -> int:
    """How many tries this sitting makes of an attack."""
    return {"full": full, "ci": ci}.get(SCALE) or min(int(SCALE), full)


def chosen(values: Sequence[T], ci: int) -> list[T]:
    """All of the values, or evenly spaced ones where the sitting is a shorter one; the first is among them."""
    count = min(len(values), tries(len(values), ci))
    return [values[i * len(values) // count] for i in range(count)]


@dataclass
class Counts:
    """family, attack: rows of the page. right: what must come of every try. facts: figures beside the counts."""

    family: str
    attack: str
    right: str
    outcomes: Counter[str] = field(default_factory=Counter)
    wrongs: list[str] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    tried: int = 0
    wrong_tries: int = 0

    def good(self, outcome: str) -> None:
        """A try that ended as it must."""
        self.tried += 1
        self.outcomes[outcome] += 1

    def wrong(self, what: str) -> None:
        """A try that did not; `what` names what makes it again."""
        self.tried += 1
        self.wrong_tries += 1
        if len(self.wrongs) < SHOWN:
            self.wrongs.append(what)

    def judge(self, problem: str | None, outcome: str, which: str) -> None:
        """Good unless there is a problem."""
        if problem is None:
            self.good(outcome)
        else:
            self.wrong(f"{which}: {problem}")

    def record(self, seconds: float) -> dict[str, Any]:
        return {
            "family": self.family, "attack": self.attack, "right": self.right, "tries": self.tried,
            "outcomes": dict(sorted(self.outcomes.items())), "wrong": self.wrong_tries, "facts": self.facts,
            "seconds": round(seconds, 1), "scale": SCALE,
        }  # fmt: skip


@contextmanager
def counting(family: str, attack: str, right: str) -> Iterator[Counts]:
    """Counts of one attack; at the end they are written, and a wrong try fails the test that made it."""
    counts, began = Counts(family, attack, right), time.monotonic()
    try:
        yield counts
    finally:
        if OUT is not None:
            folder = Path(OUT)
            folder.mkdir(parents=True, exist_ok=True)
            name = "".join(c if c.isalnum() else "_" for c in f"{family}-{attack}")
            (folder / f"{name}.json").write_text(json.dumps(counts.record(time.monotonic() - began), indent=1) + "\n")
    print(f"\n{family}, {attack}: {counts.tried} tries, {dict(counts.outcomes)}, wrong {counts.wrong_tries}")
    assert counts.tried, f"{attack}: nothing was tried"
    assert not counts.wrong_tries, f"{counts.wrong_tries} of {counts.tried} wrong:\n" + "\n".join(counts.wrongs)
