"""The benchmarks of effects: what their pairs and their tables are; their runs take minutes and are not tests."""

import argparse
import importlib
import json
from pathlib import Path

import pytest
import torch


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module


def test_of_pairs_the_right_ones_want_what_is_further_right(benchmark):
    drawn = benchmark("effect_robust_preferences").drawn
    right, swapped = drawn(50, seed=3), drawn(50, seed=3, wrong=0.4)
    assert bool((right[0][..., 0] > right[1][..., 0]).all())
    assert [torch.equal(swapped[0][i], right[1][i]) for i in range(50)] == [True] * 20 + [False] * 30
    assert torch.equal(swapped[0][20:], right[0][20:])


def test_modes_are_counted_and_how_evenly_they_are_held(benchmark):
    shared = benchmark("effect_preference_divergences").shared
    angle = torch.arange(8).repeat_interleave(10) * torch.pi / 4
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    assert shared(ring) == pytest.approx({"modes": 8.0, "shares": 8.0})
    assert shared(ring[20:40]) == pytest.approx({"modes": 2.0, "shares": 2.0})
    assert shared(torch.cat([ring[:10], 3 * ring[10:]])) == pytest.approx({"modes": 1.0, "shares": 1.0})  # far away


def test_labels_of_the_lit_world_say_how_bright_its_images_are(benchmark):
    world = benchmark("effect_one_more_step")
    black = world.ImageSet(torch.zeros(2000, 1, 8, 8, dtype=torch.uint8), None, None, None, "black", "0" * 64)
    made = world.lit(black)
    light = world.mean_colours(made.images)[:, 0]
    means = torch.stack([light[made.labels == label].mean() for label in range(10)])
    torch.testing.assert_close(means.float(), world.LEVELS, atol=0.06, rtol=0)
    assert world.judged(made.images, made.labels, made) == pytest.approx({"spread": 1, "labels": 1, "within": 1})


def test_a_table_takes_differences_seed_by_seed(benchmark, capsys, tmp_path):
    rows = {0: {"a": {"FID": 1.0}, "b": {"FID": 3.0}}, 1: {"a": {"FID": 5.0}, "b": {"FID": 5.5}}}
    out = tmp_path / "x.json"
    benchmark("small_worlds").compared(argparse.Namespace(seeds=[0, 1], json=out, steps=7), rows.get, first="a")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("b "))
    assert line.split(maxsplit=1)[1] == "FID 4.250 (3.000 to 5.500) [+1.250: +0.500 to +2.000]"
    said = json.loads(out.read_text())
    assert said["seeds"] == list(rows.values())
    assert said["options"] == {"seeds": [0, 1], "steps": 7}
