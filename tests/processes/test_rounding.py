"""What several processes and one differ by in float32 is rounding: neither is nearer to float64 than the other.

Each network's first gradient of a run, by one process, by one in parts of two images, by two and by four processes,
against the same run in float64 on the very draws of float32. `pytest -s` prints the distances, parts of the norm.
"""

import pytest
from ranks import ranks
from same_run import in_double, single_draws, trained
from shared_runs import DISTILLED, TAUGHT, image_task

pytestmark = pytest.mark.dist
STEPS = 2  # the student moves from the second on
WAYS = {"one": (1, None), "one, in parts": (1, 2), "two": (2, None), "four": (4, None)}


def first_gradients(found):
    """By network, the first that is not nought: before the critic has moved a gap is rounding alone."""
    first = {}
    for name, value in found.items():
        if name.startswith("gradient "):
            first.setdefault(name.split(" ", 2)[2], value.double())
    return first


def part(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", [*DISTILLED, *TAUGHT])
def test_neither_is_nearer_to_float64(tmp_path, name):
    def exactly(_rank):
        with in_double(), single_draws():
            return trained(lambda: image_task(name, STEPS, micro_batch_size=None), STEPS)

    exact = first_gradients(ranks(exactly, 1, tmp_path / "exact")[0])
    ways = {}
    for way, (size, rows) in WAYS.items():
        if name in TAUGHT and rows is not None:  # has no parts
            continue
        made = ranks(
            lambda _rank, rows=rows: trained(lambda: image_task(name, STEPS, micro_batch_size=rows), STEPS),
            size,
            tmp_path / way,
        )
        ways[way] = first_gradients(made[0])
    for network, gradient in exact.items():
        gaps = {way: part(found[network], gradient) for way, found in ways.items()}
        between = {way: part(found[network], ways["one"][network].double()) for way, found in ways.items()}
        print(f"\n{name}, {network}: " + "; ".join(f"{way} {gaps[way]:.1e} ({between[way]:.1e})" for way in ways))
        assert gaps["one"] < 1e-3, f"{network}: other draws"
        floor = max(gaps["one"], gaps.get("one, in parts", 0.0))
        assert max(gaps.values()) <= 2 * floor, network
        assert max(between.values()) <= 2 * floor, network
