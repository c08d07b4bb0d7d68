"""Figures that would mislead: classes by name, limits, numbers that do not fit; said or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_teacher

from diffdistill.cli import main
from diffdistill.data import ImageSet
from diffdistill.evaluation.features import load_features
from diffdistill.evaluation.figures import label_of, undefined
from diffdistill.evaluation.subjects import Subject, some_of, unshown


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def classes(place: str, counts: dict[str, int], colour: bool = False) -> str:
    """Class folders of pictures whose gray says the class: of `a` near 40, of `b` near 120, of `c` near 200."""
    for name, count in counts.items():
        for i in range(count):
            noise = np.random.default_rng(1000 * ord(name[0]) + i).integers(0, 30, (8, 8, 3), dtype=np.uint8)
            pixels = noise + np.uint8(40 + 80 * "abc".index(name[0]))
            Path(place, name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels if colour else pixels[..., 0]).save(Path(place, name, f"{i:02d}.png"))
    return place


def evaluate(*words: str, code: int = 0) -> dict:
    assert main(["evaluate", "--features", "pixels", "--json", "r.json", "--quiet", *words]) == code
    return json.loads(Path("r.json").read_text("utf-8"))


def test_a_limit_takes_images_of_every_class(capsys):
    classes("real", {"a": 12, "b": 12, "c": 12})
    result = evaluate("--images", "real", "--reference", "real", "--num-images", "18", "--metrics", "per_class_fid")
    assert set(result["metrics"]["per_class_fid"]["classes"]) == {"a", "b", "c"}
    assert result["subject"] == {"images": "real", "of": 36}
    assert "18 images of 36, at random" in capsys.readouterr().out


def test_some_are_no_first_ones_and_always_the_same():
    chosen = some_of(1000, 100)
    assert len(set(chosen.tolist())) == 100
    assert (np.diff(chosen) > 0).all()
    assert 35 < (chosen < 500).sum() < 65
    assert (some_of(1000, 100) == chosen).all()
    assert some_of(7, None).tolist() == list(range(7))


def test_a_missing_class_and_few_images_of_one_are_said(capsys):
    classes("real", {"a": 8, "b": 8, "c": 8})
    classes("made", {"a": 8, "c": 8})
    result = evaluate("--images", "made", "--reference", "real", "--metrics", "per_class_fid")
    said = " ".join(result["warnings"])
    assert "no image is of the class b; the mean is that of the other 2" in said
    assert "2 of 2 classes have at most 768 images, as many as there are features" in said


def test_one_metric_that_fails_loses_no_other(capsys):
    classes("real", {"a": 8, "b": 8})
    classes("made", {"a": 8, "b": 1})
    words = ("--images", "made", "--reference", "real", "--metrics", "fid,per_class_fid")
    result = evaluate(*words, code=3)
    said = capsys.readouterr()
    assert set(result["metrics"]) == {"fid"}
    assert "FID (pixels-3x16x16)" in said.out
    assert "metric 'per_class_fid' is not measured, the others are: class b has 8 real and 1 generated" in said.err


def test_precision_and_recall_are_of_equal_numbers(capsys):
    classes("real", {"a": 12})
    classes("made", {"a": 30})
    result = evaluate("--images", "made", "--reference", "real", "--metrics", "prdc")
    assert (result["metrics"]["prdc"]["n"], result["metrics"]["prdc"]["n_reference"]) == (12, 12)
    assert any("are of 12 of 30 images" in text for text in result["warnings"])


def test_colours_that_features_do_not_see_are_said(capsys):
    classes("real", {"a": 8}, colour=True)
    words = ["--images", "real", "--reference", "real", "--features"]
    assert main(["evaluate", *words, "fashion_mnist", "--quiet"]) == 0
    assert "'fashion_mnist' see gray alone: the figures say nothing about colours" in capsys.readouterr().err
    assert main(["evaluate", *words, "pixels", "--quiet"]) == 0
    assert "see gray alone" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("features", "shape", "said"),
    [
        ("fashion_mnist", (1, 28, 28), 0),
        ("fashion_mnist", (3, 28, 28), 1),
        ("fashion_mnist", (3, 64, 64), 2),
        ("emoji", (3, 32, 32), 0),
        ("emoji", (1, 32, 32), 1),
        ("pixels", (3, 32, 32), 0),
        ("pixels", (3, 64, 64), 1),
    ],
)
def test_what_features_do_not_see(features: str, shape: tuple[int, int, int], said: int):
    assert len(load_features(features).unseen(*shape)) == said


def test_the_inception_score_of_another_classifier_says_whose_it_is():
    assert label_of("is", "fashion_mnist") == "Inception score (fashion_mnist)"
    assert label_of("is", "inception-2015-12-05") == "Inception score"


def test_a_figure_that_is_no_number_is_said():
    result = {"metrics": {"fid": {"value": float("nan"), "n": 3}, "kid": {"value": 1.0, "n": 3}}, "figures": {}}
    assert [text.split(",")[0] for text in undefined(result)] == ["FID is nan"]


def test_too_few_images_for_all_classes_of_a_model_are_said():
    assert "are of the first 4 alone" in unshown(4, range(10))[0]
    assert unshown(10, range(10)) == unshown(4, None) == ()


def reference(names: tuple[str, ...] | None) -> ImageSet:
    return ImageSet(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2]), None, names, "ref", "f")


def subject(names: tuple[str, ...] | None, drawn: tuple[int, ...] = (0, 1), trained_on: str | None = None) -> Subject:
    batches = iter([(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))])
    return Subject("m", 2, batches, None, {}, names, drawn, trained_on=trained_on)


def test_a_models_classes_are_those_of_the_reference_by_name():
    renamed = subject(("c", "a", "other")).by_names(reference(("a", "b", "c")))
    assert [labels.tolist() for _, labels in renamed.batches] == [[2, 0]]  # what is not drawn need not be there
    assert renamed.warnings == ()
    assert "m has no names of its classes" in subject(None).by_names(reference(("a", "b", "c"))).warnings[0]
    assert "ref has no names" in subject(("a", "b", "c")).by_names(reference(None)).warnings[0]
    assert subject(None, trained_on="f").by_names(reference(("a", "b", "c"))).warnings == ()


def test_a_model_says_the_names_of_its_classes(capsys):
    tiny_teacher().save_pretrained("m", role="teacher", class_names=["c", "b", "a"])
    classes("real", {"a": 8, "b": 8, "c": 8})
    words = ("--reference", "real", "--metrics", "per_class_fid", "--steps", "1", "--sampler", "euler")
    counts = {}
    for labels in ("0", "2"):
        Path("r.json").unlink(missing_ok=True)
        result = evaluate("--model", "m", *words, "--num-images", "6", "--class-labels", labels)
        (counts[labels],) = result["metrics"]["per_class_fid"]["classes"]
    assert counts == {"0": "c", "2": "a"}
