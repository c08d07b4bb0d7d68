"""What was measured is written and shown, whatever comes after it; what would fail after it is refused before."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_teacher

from diffdistill.cli import main
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation.metrics import Metric
from diffdistill.evaluation.run import Request
from diffdistill.evaluation.text_scores import one_a_picture
from diffdistill.registry import allow_code

MINE = """
from diffdistill.evaluation.metrics import Metric

def brightness(images, texts):
    return images.double().mean((1, 2, 3))

def broken(images, texts):
    raise KeyError("sun")

BRIGHT = Metric(name="bright", label="Brightness", score=brightness, lower_is_better=None)
BROKEN = Metric(name="broken", label="Broken", score=broken)
WORDS = Metric(name="words", label="Words", score=lambda images, texts: "very bright")
EMPTY = Metric(name="nothing", label="Nothing", compute=lambda context: None)
NAN = Metric(name="nan", label="NaN", compute=lambda context: context.entry(float("nan")))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", images=np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8))
    Path("mine.py").write_text(MINE, encoding="utf-8")


def evaluate(*words):
    return main(["evaluate", "--images", "data.npz", "--reference", "data.npz", "--features", "pixels", *words])


def test_a_dash_is_standard_output_and_the_table_goes_beside(capsys):
    assert evaluate("--json", "-") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["metrics"]["fid"]["n"] == 12
    assert "FID" in printed.err
    assert not Path("-").exists()


def test_a_file_that_cannot_be_written_leaves_the_table(capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffdistill.outputs.write_text", full)
    assert evaluate("--json", "r.json") == 6
    assert "FID" in capsys.readouterr().out


def test_a_later_model_that_fails_leaves_the_figures_of_the_first(capsys):
    tiny_teacher().save_pretrained("one", role="teacher")
    tiny_teacher().save_pretrained("two", role="teacher")
    weights = next(Path("two").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    words = ["--model", "one", "--model", "two", "--num-images", "4", "--steps", "1", "--json", "r.json"]
    assert main(["evaluate", "--reference", "data.npz", "--features", "pixels", *words]) == 4
    assert "FID" in capsys.readouterr().out
    models = json.loads(Path("r.json").read_text("utf-8"))["models"]
    assert [result["subject"]["model"] for result in models] == ["one"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "m", "metrics": ["kid"], "plot": "p.png"}, "draws the metric fid"),
        ({"images": "d", "metrics": ["fid"], "plot": "p.png"}, "draws FID against evaluations of models"),
        ({"model": "m", "metrics": ["fid"], "neighbours": "n.png"}, "add it to --metrics"),
        ({"model": ["a", "b"], "metrics": ["neighbours"], "neighbours": "n.png"}, "several models"),
    ],
)
def test_pictures_of_what_is_not_measured_are_refused_up_front(settings, words):
    with pytest.raises(ConfigError, match=words):
        Request(**settings)


@pytest.mark.parametrize("name", ["p", "p.txt", "data.npz"])
def test_files_that_could_not_be_pictures_are_refused_up_front(name):
    words = ["--model", "builtin:fashion_mnist_teacher", "--reference", "data.npz", "--features", "pixels"]
    assert main(["evaluate", *words, "--num-images", "2", "--plot", name]) == 2


@pytest.mark.parametrize(
    ("metric", "code", "words"),
    [
        ("BROKEN", 2, "line 8 (in broken) fails (KeyError: 'sun')"),
        ("WORDS", 3, "metric 'words' gave 'very bright' for 12 images: one number an image is needed"),
        ("EMPTY", 2, "metric 'nothing' gave None; its compute must return a dict with a number under 'value'"),
    ],
)
def test_a_metric_of_ones_own_that_fails_is_named(capsys, metric, code, words):
    assert evaluate("--metrics", f"mine.py:{metric}", "--allow-code") == code
    assert words in capsys.readouterr().err


def test_a_figure_that_is_no_number_is_text_in_the_file():
    assert evaluate("--metrics", "mine.py:NAN", "--allow-code", "--json", "r.json") == 0
    assert json.loads(Path("r.json").read_text("utf-8"))["metrics"]["nan"]["value"] == "nan"


def test_scores_of_single_images_compute_no_features(monkeypatch, capsys):
    def never(*_):
        raise AssertionError("features were computed")

    monkeypatch.setattr("diffdistill.evaluation.evaluator.choose_features", never)
    allow_code()
    words = ["--metrics", "mine.py:BRIGHT", "--allow-code", "--json", "r.json"]
    assert main(["evaluate", "--images", "data.npz", "--reference", "data.npz", *words]) == 0
    entry = json.loads(Path("r.json").read_text("utf-8"))["metrics"]["bright"]
    assert entry["value"] == pytest.approx(entry["of_the_reference"])
    assert "features" not in capsys.readouterr().out


def test_what_a_function_gives_is_one_number_an_image():
    assert one_a_picture("metric 'm'", [1, 2], 2).dtype == torch.float64
    for wrong in (None, "x", [1], torch.zeros(2, 1), [[1], [2, 3]]):
        with pytest.raises(DataError, match="metric 'm' gave"):
            one_a_picture("metric 'm'", wrong, 2)
    with pytest.raises(ConfigError, match="it must be a number"):
        Metric(name="m", label="M", compute=lambda _: {"value": "x"}).measure(None)
