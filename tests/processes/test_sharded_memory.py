"""What two processes hold of a sharded run, by count, against the arithmetic of benchmarks/scaling.py, and while its
networks are made."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def launch(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    import sharded_memory

    yield sharded_memory.launch
    for name in ("sharded_memory", "scaling", "alignment_memory"):
        sys.modules.pop(name, None)


@pytest.mark.dist
def test_two_processes_hold_half_each_and_a_step_takes_what_the_arithmetic_says(launch):
    whole, parts = (found["processes"] for found in launch(2, 64))
    for mine in parts:
        for kind in ("weights", "gradients", "moments", "averages", "teacher"):
            assert mine[kind] / whole[0][kind] == pytest.approx(0.5, abs=0.002), kind
        assert mine["a step"] / mine["said"] == pytest.approx(1, abs=0.25)
    assert max(mine["a step"] for mine in parts) < whole[0]["a step"]


@pytest.mark.dist
def test_networks_that_are_to_be_sharded_share_one_memory_until_then(launch):
    """Student, critic and average in that of the teacher: with 10 million weights its own 40 MB, and no process takes
    room for their copies beside it, but for its halves of all four."""
    whole, parts = (found["processes"] for found in launch(2, 128))
    for mine, other in zip(whole, parts, strict=True):
        network = mine["teacher"]
        assert network > 40e6
        assert mine["before"] == pytest.approx(4 * network, rel=0.01)
        assert other["before"] == pytest.approx(network, rel=0.01)
        assert mine["rise"] > 2.5 * network
        assert other["rise"] < 2.3 * network
