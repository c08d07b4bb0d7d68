"""A metric is one file: declared once, inside the package or outside, and known wherever metrics are named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from diffdistill.cli import main
from diffdistill.config.loader import load_config
from diffdistill.config.schema import Train
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation import Evaluator, evaluate
from diffdistill.evaluation import metrics as registry
from diffdistill.evaluation.figures import figure_of, label_of, values_of
from diffdistill.evaluation.metrics import METRICS, Figure, Metric, metric, metrics
from diffdistill.registry import allow_code

FILE = """
from diffdistill.evaluation.metrics import Metric


def grey_value(images, texts):
    return images.double().mean((1, 2, 3))


METRIC = Metric(name="grey_value", label="Mean grey value", score=grey_value, lower_is_better=True)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_GIVEN", {})
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FILE)
    for name, seed in (("real", 0), ("fake", 1)):
        Path(name).mkdir()
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 8, 8), dtype=np.uint8)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(Path(name) / f"{i:02d}.png")
    yield tmp_path
    allow_code(False)


def grey(folder: str) -> float:
    return float(np.mean([np.asarray(Image.open(file)).mean() for file in Path(folder).iterdir()]))


TINY = {
    "max_train_steps": 1, "train_batch_size": 4, "log_every": 1, "sample_every": 0, "num_threads": 1,
    "network": {"block_out_channels": [8, 8], "norm_num_groups": 2, "attention_head_dim": 4},
    "data": {"path": "real"},
}  # fmt: skip


def test_a_metric_outside_the_package_is_known_everywhere(capsys: pytest.CaptureFixture[str]):
    # In a run, by its config: its log, its evaluation.json and its report.
    evaluation = {"num_images": 4, "metrics": ["fid", "mine.py:METRIC"], "every": 1, "features": "pixels", "steps": 1}
    stop = {"metric": "grey_value", "margin": 1000.0}
    settings = {"output_dir": "run", **TINY, "evaluation": {**evaluation, "stop": stop}}
    Path("run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", "run.yaml", "--quiet"]) == 2
    assert "say --allow-code if you trust the file" in capsys.readouterr().err
    assert main(["train", "run.yaml", "--quiet", "--allow-code"]) == 0
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert 0 <= logged[-1]["evaluation/grey_value"] <= 255
    result = json.loads(Path("run/evaluation.json").read_text())["teacher"]
    assert result["metrics"]["grey_value"]["value"] == pytest.approx(logged[-1]["evaluation/grey_value"])
    assert result["metrics"]["grey_value"]["of_the_reference"] == pytest.approx(grey("real"), abs=30)  # of 4 images
    assert result["figures"]["grey_value"] == {"label": "Mean grey value", "lower_is_better": True}
    registry._GIVEN.clear()  # as in another process, which does not know the file
    assert main(["report", "run"]) == 0
    assert "Mean grey value<small>lower is better</small>" in Path("run/report.html").read_text("utf-8")
    assert "Mean grey value |" in Path("run/model/README.md").read_text("utf-8")


def test_a_metric_outside_the_package_on_the_command_line(capsys: pytest.CaptureFixture[str]):
    words = ["evaluate", "--images", "fake", "--metrics", "mine.py:METRIC", "--quiet", "--json", "r.json"]
    assert main(words) == 2
    assert "--allow-code" in capsys.readouterr().err
    assert main([*words, "--allow-code"]) == 0  # it compares nothing, so it needs no reference
    assert "Mean grey value" in capsys.readouterr().out
    entry = json.loads(Path("r.json").read_text())["metrics"]["grey_value"]
    assert (entry["value"], entry["n"]) == (pytest.approx(grey("fake")), 12)


def test_plug_ins_of_the_environment_are_in_the_help():
    environment = {**os.environ, "DIFFDISTILL_PLUGINS": "mine.py", "COLUMNS": "200"}
    words = [sys.executable, "-m", "diffdistill", "evaluate"]
    shown = subprocess.run([*words, "--help"], env=environment, capture_output=True, text=True, check=True).stdout
    assert "two_halves,grey_value" in shown
    run = [*words, "--images", "fake", "--metrics", "grey_value", "--json", "r.json", "--quiet"]
    subprocess.run(run, env=environment, check=True, capture_output=True)
    assert json.loads(Path("r.json").read_text())["metrics"]["grey_value"]["value"] == pytest.approx(grey("fake"))


def test_every_metric_may_stand_in_a_config():
    names = [name for name, row in metrics().items() if row.probe is None]  # the others are of models
    assert names[:4] == ["fid", "kid", "prdc", "is"]
    Path("c.yaml").write_text(yaml.safe_dump({"output_dir": "r", "evaluation": {"metrics": names}}))
    settings = load_config(Train, "c.yaml").config.evaluation
    assert settings.metrics == tuple(names)
    assert {"fid", "precision", "coverage", "is", "neighbours"} <= set(settings.figures())
    with pytest.raises(ConfigError, match=r"metric 'fdi' is not known \(did you mean fid\?\)"):
        load_config(Train, "c.yaml", ["evaluation.metrics=[fdi]"])


def test_a_metric_of_several_figures_is_several_rows():
    row = Metric(
        "both", "Both", compute=lambda _: {}, figures=(Figure("left", "Left"), Figure("right", "Right", True))
    )
    registry._GIVEN["both"] = row
    result = {"metrics": {"both": {"left": 1.0, "right": 2.0, "n": 5, "floor": {"value": {"left": 0.5}, "n": 5}}}}
    values = values_of(result)
    assert [(name, value.value, value.real) for name, value in values.items()] == [
        ("left", 1.0, 0.5),
        ("right", 2.0, None),
    ]
    assert (figure_of("left").lower_is_better, figure_of("right").lower_is_better) == (False, True)


def test_labels_and_directions_are_told_once():
    assert label_of("fid", "inception-2015-12-05") == "FID"
    assert label_of("fid", "pixels") == "FID (pixels)"
    assert label_of("precision", "pixels") == "Precision"
    assert label_of("reward/hps_v2") == "Reward hps_v2"
    assert label_of("judge_win_rate/clip") == "Win rate over the start, judge clip"
    directions = {
        name: figure_of(name).lower_is_better for name in ("fid", "kid", "cmmd", "per_class_fid", "loss_win")
    }
    assert set(directions.values()) == {True}
    assert {figure_of(name).lower_is_better for name in ("loss_lose", "judge_at_start/clip", "unheard")} == {None}
    assert figure_of("unheard", {"unheard": {"label": "U", "lower_is_better": True}}) == Figure("unheard", "U", True)


def test_a_metric_that_declares_nonsense_is_refused():
    with pytest.raises(ValueError, match="compute, score or probe, one of them"):
        Metric("a", "A")
    with pytest.raises(ValueError, match="needs 'money', which must be one of reference"):
        Metric("a", "A", compute=lambda _: {}, needs=("money",))
    Path("wrong.py").write_text("METRIC = 3\n")
    allow_code()
    with pytest.raises(ConfigError, match=r"'wrong.py:METRIC' is no metric"):
        metric("wrong.py:METRIC")


def test_without_a_reference_only_what_compares_nothing_is_measured():
    with pytest.raises(ConfigError, match="metric 'fid' cannot be measured without a reference: choose clip, rewards"):
        Evaluator()
    with pytest.raises(ConfigError, match="no metric is asked for"):
        Evaluator(metrics=())


def test_a_folder_of_features_may_name_a_class_of_its_own():
    Path("own").mkdir()
    Path("own/config.json").write_text(json.dumps({"architecture": "net.py:Corner"}))
    Path("own/net.py").write_text("""
from diffdistill.evaluation.extractors.base import FeatureExtractor


class Corner(FeatureExtractor):
    id, sha256, dim, channels = "corner", "0", 4, None

    def __init__(self, folder, device):
        self.folder = folder

    def embed(self, images):
        return images[:, 0, :2, :2].flatten(1)
""")
    words = {"images": "fake", "reference": "real", "features": "own", "metrics": ["fid"]}
    with pytest.raises(ConfigError, match="say --allow-code"):
        evaluate(**words)
    allow_code()
    assert evaluate(**words)["protocol"]["features"]["id"] == "corner"


def test_evaluate_from_python_is_the_command():
    assert main(["evaluate", "--images", "fake", "--reference", "real", "--quiet", "--json", "r.json"]) == 0
    result = evaluate(images="fake", reference="real")
    held = json.loads(Path("r.json").read_text())
    assert {name: held[name] for name in held if name != "seconds"} == {
        name: value for name, value in json.loads(json.dumps(result)).items() if name != "seconds"
    }
    with pytest.raises(ConfigError, match="evaluate has no setting 'refrence'"):
        evaluate(images="fake", refrence="real")
    with pytest.raises(ConfigError, match="give images or a model"):
        evaluate(reference="real")


def test_the_split_that_is_measured_is_said(caplog):
    for split, level in (("train", 10), ("test", 200)):
        Path("both", split).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), level + i).save(Path("both", split, f"{i}.png"))
    words = {"features": "pixels", "metrics": ["fid"]}
    with caplog.at_level("WARNING"):
        result = evaluate(images="both", reference="both/train", **words)
    assert "both has the splits test, train: the images of 'train' are measured" in caplog.text
    assert (result["subject"], result["metrics"]["fid"]["value"] < 1e-3) == (
        {"images": "both", "split": "train"},
        True,
    )
    caplog.clear()
    with caplog.at_level("WARNING"):
        assert evaluate(images="both/test", reference="both/train", **words)["subject"] == {"images": "both/test"}
    assert "splits" not in caplog.text
    Path("both/train/4.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"4\.png is damaged"):
        evaluate(images="both", reference="both/test", **words)


def test_a_plug_in_called_like_one_of_the_package_takes_its_place_wherever_it_is_asked_for(monkeypatch):
    assert METRICS.find("fid") is METRICS.rows()["fid"] is METRICS.rows(of_package=True)["fid"]
    for name, label in (("first", "First"), ("second", "Second")):
        Path(f"{name}.py").write_text(FILE.replace("grey_value", "fid").replace("Mean grey value", label))
    monkeypatch.setenv("DIFFDISTILL_PLUGINS", os.pathsep.join(["first.py", "second.py"]))
    assert METRICS.rows()["fid"].label == "Second"
    assert METRICS.find("fid") is METRICS.get("fid") is METRICS.rows()["fid"] is metric("fid")


def test_a_metric_named_in_the_call_is_not_called_like_another():
    allow_code()
    Path("mine.py").write_text(FILE.replace("grey_value", "fid"))
    with pytest.raises(ConfigError, match=r"'mine.py:METRIC' calls its metric 'fid', as another is called"):
        metric("mine.py:METRIC")
    assert metric("fid").label == "FID"
    Path("own.py").write_text(FILE)
    assert metric("own.py:METRIC") is metric("own.py:METRIC")  # named twice it is the same
    Path("other.py").write_text(FILE)
    with pytest.raises(ConfigError, match="two metrics of different files are called 'grey_value'"):
        Evaluator(metrics=["own.py:METRIC", "other.py:METRIC"])
    assert metric("other.py:METRIC").name == "grey_value"  # in a call of its own
