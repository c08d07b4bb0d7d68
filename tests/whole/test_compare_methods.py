"""The comparison of methods: held-out seeds, its part of the page, and what its sentences count."""

import argparse
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "compare_methods.py"))


def arguments(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"seeds": None, "tuning": False, "table": None, "out": Path("runs/try")} | given)


def test_reported_seeds_are_held_out_and_tuning_seeds_go_to_no_page() -> None:
    reported, tuning = arguments(), arguments(tuning=True)
    assert SCRIPT["checked"](reported) is None
    assert SCRIPT["checked"](tuning) is None
    assert not set(reported.seeds) & set(range(10))
    assert set(tuning.seeds) < set(range(10))
    assert reported.table == Path("docs/comparison")
    assert tuning.table == Path("runs/try/comparison")
    assert "seed 3 is not of this set" in SCRIPT["checked"](arguments(seeds=[10, 3]))
    assert "seed 10 is not of this set" in SCRIPT["checked"](arguments(seeds=[0, 10], tuning=True))


def test_only_what_is_between_the_marks_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Head\n<!-- compared -->\nold\n<!-- end -->\n## Tail <!-- end -->\n")
    SCRIPT["write_between"](page, "new\n")
    assert page.read_text() == "# Head\n<!-- compared -->\nnew\n<!-- end -->\n## Tail <!-- end -->\n"
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match="has no marks"):
        SCRIPT["write_between"](page, "new\n")


def test_pairs_apart_by_chance_are_those_of_students_t() -> None:
    """|mean - mean'| > sqrt(s^2 + s'^2) is |t| > sqrt(n) with 2 (n - 1) degrees of freedom: 0.158 of 4, 0.092 of 6."""
    assert SCRIPT["by_chance"](3) == pytest.approx(0.158, abs=0.004)
    assert SCRIPT["by_chance"](4) == pytest.approx(0.092, abs=0.004)


def run(method: str, seed: int, fid: float, recall: float) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "divergence": "reverse_kl", "seed": seed, "fid": fid, "kid": fid / 10}
    return row | {"precision": 0.9, "recall": recall, "steps": 5, "seconds_per_step": 1.0, "peak_memory_mb": 100}


def test_the_sentences_count_rows_and_pairs() -> None:
    """Three methods: two alike in FID, one apart and worse than the start; recall rises for one."""
    values = {"one": ([3.0, 3.2], [0.5, 0.5]), "two": ([3.1, 3.3], [0.6, 0.62]), "three": ([9.0, 9.2], [0.4, 0.4])}
    rows = [run(name, 10 + i, *pair) for name, v in values.items() for i, pair in enumerate(zip(*v, strict=True))]
    groups = SCRIPT["grouped_by_row"](rows)
    assert [name.split(" ")[0] for name in groups] == ["one", "two", "three"], "lowest FID first"
    head, fid, _, _, recall = SCRIPT["reading"](groups, run("start", 10, 5.0, 0.5))
    assert "3 pairs" in head
    assert "2 of 3 pairs are apart" in fid
    assert "2 of 3 rows are better than the start and 1 worse" in fid
    assert "3 of 3 pairs are apart" in recall
    assert "1 of 3 rows are better than the start and 1 worse" in recall
