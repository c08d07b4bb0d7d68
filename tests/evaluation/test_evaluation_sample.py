"""What a metric looks at of a large set: some images at random, never the first ones; and classes by their names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffdistill.cli import main
from diffdistill.evaluation import evaluate
from diffdistill.evaluation.sample import StreamSample


def test_all_rows_stay_in_order_where_they_fit():
    sample = StreamSample(10)
    for start in (0, 4):
        sample.add(torch.arange(start, start + 4), torch.arange(start, start + 4) * 2)
    index, rows, doubled = sample.rows()
    assert index.tolist() == rows.tolist() == list(range(8))
    assert doubled.tolist() == [2 * i for i in range(8)]


def test_the_rows_are_as_many_from_every_part_whatever_the_batches():
    kept = []
    for size in (1, 7, 1000):
        sample = StreamSample(100)
        for part in torch.arange(1000).split(size):
            sample.add(part)
        index, rows = sample.rows()
        assert torch.equal(index, rows)
        kept.append(index.tolist())
    assert kept[0] == kept[1] == kept[2]
    assert len(set(kept[0])) == 100
    parts = np.histogram(kept[0], 4, (0, 1000))[0]
    assert parts.min() >= 15, parts  # 25 each, with a standard deviation of 4


@pytest.mark.parametrize("metric", ["prdc", "kid", "neighbours", "per_class_fid"])
def test_a_set_sorted_by_class_is_measured_as_one_that_is_shuffled(tmp_path, monkeypatch, metric):
    for module in ("evaluator", "reference"):
        monkeypatch.setattr(f"diffdistill.evaluation.{module}.sample_rows", lambda _: 90)
    for name in ("prdc", "neighbours"):
        monkeypatch.setattr(f"diffdistill.evaluation.metrics.{name}.LIMIT", 60)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [240, 80])
    images = np.where(labels[:, None, None], 200, 20) + rng.integers(0, 50, (320, 8, 8))
    order = rng.permutation(320)
    found = {}
    for name, rows in (("sorted", np.arange(320)), ("shuffled", order)):
        np.savez(tmp_path / f"{name}.npz", images=images[rows].astype(np.uint8), labels=labels[rows])
        data, reference = tmp_path / f"{name}.npz", str(tmp_path / "sorted.npz")
        result = evaluate(images=data, reference=reference, features="pixels", metrics=[metric])
        found[name] = result["metrics"][metric]
    if metric == "per_class_fid":  # of the first images alone there would be one class
        assert set(found["sorted"]["classes"]) == set(found["shuffled"]["classes"]) == {"0", "1"}
    elif metric == "kid":
        assert abs(found["sorted"]["value"] - found["shuffled"]["value"]) < 0.1 * 200
    else:
        key = {"prdc": "recall", "neighbours": "value"}[metric]
        assert abs(found["sorted"][key] - found["shuffled"][key]) < 0.15, found


def classes(folder: Path, names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(ord(name) * 100 + i).normal(60 + 50 * (ord(name) - 97), 10, (8, 8))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")


def test_classes_are_matched_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    classes(Path("real"), "abc")
    classes(Path("made"), "ac")
    words = ["evaluate", "--reference", "real", "--features", "pixels", "--metrics", "per_class_fid"]
    assert main([*words, "--images", "made", "--json", "r.json"]) == 0
    found = json.loads(Path("r.json").read_text())["metrics"]["per_class_fid"]["classes"]
    assert {name: round(entry["value"], 3) for name, entry in found.items()} == {"a": 0, "c": 0}
    classes(Path("other"), "ad")
    assert main([*words, "--images", "other", "--json", "o.json"]) == 3
    assert "other has the class 'd', and the reference has a, b, c: call the classes alike" in capsys.readouterr().err
    assert not Path("o.json").exists()
