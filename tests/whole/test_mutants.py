"""The list of deliberate errors fits the code: a line that was rewritten needs its error rewritten too."""

import tomllib
from collections import Counter
from pathlib import Path

import pytest
from mutants.bench import CannotPatch, patches
from mutants.catalogue import Mutant, catalogue, lines_of
from mutants.examine import Knowledge

MUTANTS = catalogue()


def test_every_mutant_changes_one_line_of_the_code_as_it_is(root):
    faults = [f"{mutant.title}: {fault}" for mutant in MUTANTS if (fault := mutant.fault(root))]
    assert faults == []


def test_their_names_are_unique_and_there_are_enough():
    assert [name for name, count in Counter(mutant.title for mutant in MUTANTS).items() if count > 1] == []
    assert [c for c, count in Counter((m.file, m.old, m.new) for m in MUTANTS).items() if count > 1] == []
    assert len(MUTANTS) >= 150


def test_every_part_that_computes_has_some():
    areas = {mutant.area for mutant in MUTANTS}
    assert areas >= {
        "methods", "training", "losses", "matching", "divergences", "process",
        "denoiser", "sampling", "parts/exposure_bias", "parts/scalelong", "parts/edm", "models", "evaluation",
        "rewards", "alignment", "pipelines", "data", "pickle_reader", "section",
    }  # fmt: skip


def test_the_survivors_that_are_known_are_mutants(root):
    known = tomllib.loads((root / "tests" / "mutants" / "survivors.toml").read_text())
    assert set(known) <= {mutant.title for mutant in MUTANTS}
    assert all(isinstance(reason, str) and reason for reason in known.values())


SOURCE = '''\
LIMIT = 3


def outer(x, scale=2):
    """Doc."""

    def inner(y):
        return y + x

    total = inner(
        x
    )
    return total * scale


class Thing:
    size = 4

    def area(self):
        return self.size**2
'''


@pytest.mark.parametrize(
    ("line", "lines", "inside"),
    [
        (1, range(1, 2), False),
        (4, range(5, 14), True),  # the head of a function: whoever calls it sees a default
        (8, range(8, 9), True),
        (11, range(10, 13), True),
        (13, range(13, 14), True),
        (17, range(17, 18), False),
        (20, range(20, 21), True),
    ],
)
def test_which_lines_tell_who_sees_an_error(line, lines, inside):
    assert lines_of(SOURCE, line) == (lines, inside)


FILES = {
    "base.py": "LIMIT = 3\n\n\nclass Base:\n    size = 1\n\n    def area(self):\n        return self.size\n",
    "heir.py": "from pack.base import Base\n\n\nclass Heir(Base):\n    size = 2\n",
    "user.py": "from pack.base import LIMIT\n\n\ndef most():\n    return LIMIT\n",
    "other.py": "def other():\n    return 4\n",
}


@pytest.mark.parametrize(
    ("file", "old", "wanted"),
    [
        ("heir.py", "size = 2", {"inherits", "bases"}),  # no line of an heir runs but on import, which is one test's
        ("base.py", "LIMIT = 3", {"bases", "uses"}),
        ("user.py", "return LIMIT", {"uses"}),
    ],
)
def test_what_stands_outside_functions_is_seen_where_it_is_used(tmp_path, file, old, wanted):
    def seen(lines: dict) -> dict:
        there = {f"diffdistill/{name}": numbers for name, numbers in lines.items()}
        return {"seconds": 0.1, "passed": True, "skipped": False, "lines": there}

    (tmp_path / "diffdistill").mkdir()
    for name, text in FILES.items():
        (tmp_path / "diffdistill" / name).write_text(text.replace("pack", "diffdistill"))
    tests = {
        "inherits": seen({"heir.py": [1, 4, 5]}),
        "bases": seen({"base.py": [8]}),
        "uses": seen({"user.py": [5]}),
        "else": seen({"other.py": [2]}),
    }
    source = (tmp_path / "diffdistill" / file).read_text()
    mutant = Mutant(f"diffdistill/{file}", "wrong", old, "pass")
    stages = Knowledge(tests).stages(mutant, source, tmp_path)
    assert {name for stage in stages for name in stage} == wanted


def test_a_function_takes_the_changed_code(tmp_path):
    namespace: dict = {}
    exec(compile(SOURCE, "f.py", "exec"), namespace)
    changed = SOURCE.replace("y + x", "y - x").replace("x, scale=2", "x, scale=2 ")
    found = patches("f.py", SOURCE, changed)
    assert ("outer", 4) in found
    namespace["outer"].__code__ = found["outer", 4]
    assert namespace["outer"](5) == 0


@pytest.mark.parametrize(
    ("old", "new"), [("LIMIT = 3", "LIMIT = 4"), ("size = 4", "size = 5"), ("scale=2", "scale=3")]
)
def test_what_is_outside_functions_asks_for_a_run_from_the_start(old, new):
    with pytest.raises(CannotPatch):
        patches("f.py", SOURCE, SOURCE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("return y", "return z", None),
        ("return nothing", "return z", "0 times"),
        ("self", "it", "2 times"),
        ("total = inner(", "total = inner((", "does not compile"),
        ("y + x", "y  +  x", "changes nothing"),
        ("def inner(y):\n        return", "pass", "not within one line"),
    ],
)
def test_an_entry_that_does_not_fit_is_told(tmp_path: Path, old, new, fault):
    (tmp_path / "f.py").write_text(SOURCE)
    found = Mutant("f.py", "wrong", old, new).fault(tmp_path)
    assert found is None if fault is None else fault in found
