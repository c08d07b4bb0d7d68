"""`diffdistill evaluate` from the command line: numbers, files, sentences and exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_teacher

from diffdistill.cli import main
from diffdistill.data import load_images
from diffdistill.evaluation import load_features
from diffdistill.evaluation.features import choose_features
from diffdistill.evaluation.frechet import fit
from diffdistill.evaluation.plot import plot_evaluations
from diffdistill.evaluation.statistics import Statistics, save_statistics


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write("fake", 30, 1)
    write("real", 40, 0)
    return tmp_path


def write(name: str, count: int, seed: int, size: int = 8) -> None:
    Path(name).mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(Path(name) / f"{seed}-{i:03d}.png")


def evaluate(*words: str) -> int:
    return main(["evaluate", "--reference", "real", "--quiet", *words])


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    return lines[0].removeprefix("diffdistill: error: ")


def test_images_against_a_reference(capsys: pytest.CaptureFixture[str]):
    assert evaluate("--images", "fake", "--metrics", "fid,kid,prdc,is", "--json", "r.json") == 0
    result = json.loads(Path("r.json").read_text())
    printed = capsys.readouterr().out
    extractor = load_features("fashion_mnist")
    assert result["subject"] == {"images": "fake"}
    assert result["protocol"]["features"]["sha256"] == extractor.sha256
    assert result["protocol"]["num_images"] == 30
    assert set(result["metrics"]) == {"fid", "kid", "prdc", "is"}
    for words in ("FID (fashion_mnist)", "Precision", "real vs real", extractor.sha256[:12], "resize     clean"):
        assert words in printed


def test_the_same_request_replaces_its_file_and_another_does_not(capsys: pytest.CaptureFixture[str]):
    assert evaluate("--images", "fake", "--json", "r.json") == 0
    assert evaluate("--images", "fake", "--json", "r.json", "--batch-size", "7") == 0
    before = Path("r.json").read_bytes()
    capsys.readouterr()
    assert evaluate("--images", "fake", "--json", "r.json", "--seed", "3") == 2
    assert refused(capsys) == "--json r.json exists and holds something else: delete it or name another file"
    Path("notes.json").write_text("mine")
    assert evaluate("--images", "fake", "--json", "notes.json") == 2
    assert (Path("r.json").read_bytes(), Path("notes.json").read_text()) == (before, "mine")
    assert evaluate("--images", "fake", "--json", "absent/r.json") == 2


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--images", "absent"), 3, "absent"),
        (("--images", "fake", "--num-images", "31"), 3, "fake has 30 images, but 31 were asked for"),
        (("--images", "fake", "--features", "fashon_mnist"), 2, "did you mean 'fashion_mnist'"),
        (("--images", "fake", "--metrics", "clip"), 2, "metric 'clip' needs a text for each image"),
        (("--images", "fake", "--steps", "2"), 2, "--steps goes with --model"),
        (("--images", "fake", "--features", "real"), 4, "no readable config.json"),
        (("--images", "fake", "--features", "inception:absent.pt"), 4, "there is no file absent.pt"),
        (("--model", "absent"), 4, "absent"),
        (("--images", "fake", "--metrics", "clip", "--prompts", "absent.txt"), 3, "'absent.txt' cannot be read"),
        (("--images", "fake", "--negative-prompt", "a hat"), 2, "--negative-prompt goes with --model"),
        (("--images", "fake", "--clip", "real"), 2, "--clip names the CLIP of metric 'clip', which is not asked for"),
        (("--images", "fake", "--rewards", "pikscore"), 2, "reward 'pikscore' is not known (did you mean pickscore?)"),
        (("--images", "fake", "--backend", "clean-fid"), 2, "backend 'clean-fid' needs clean-fid"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: tuple[str, ...],
    code: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(__import__("sys").modules, "cleanfid", None)
    assert evaluate(*words) == code
    assert sentence in refused(capsys)


def test_the_emoji_are_judged_by_features_of_their_own():
    assert choose_features(None, load_images("builtin:emoji", limit=4)).id == "emoji"


def test_images_of_several_sizes_need_a_mode(capsys: pytest.CaptureFixture[str]):
    write("fake", 5, 2, size=11)
    assert evaluate("--images", "fake") == 3
    assert "sizes" in refused(capsys)
    assert evaluate("--images", "fake", "--fid-mode", "clean") == 0


def test_a_statistics_file_is_a_reference(capsys: pytest.CaptureFixture[str]):
    extractor = load_features("fashion_mnist")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (200, 1, 28, 28), dtype=np.uint8))
    save_statistics("s.npz", Statistics(fit(extractor(images)), extractor.id, extractor.sha256, "none"))
    words = ["evaluate", "--reference", "s.npz", "--images", "fake", "--features", "fashion_mnist", "--quiet"]
    assert main(words) == 0
    assert "statistics only" in capsys.readouterr().out
    assert main([*words, "--metrics", "fid,kid"]) == 2
    other = Statistics(fit(torch.randn(50, 4)), "other", "0" * 64)
    save_statistics("other.npz", other)
    assert main(["evaluate", "--reference", "other.npz", *words[3:]]) == 3


def test_without_inception_weights_colour_images_are_refused_and_not_measured_as_gray_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    for name in ("real", "fake"):
        for file in Path(name).iterdir():
            Image.open(file).convert("RGB").save(file)
    assert evaluate("--images", "fake", "--json", "r.json") == 4
    assert "'real' is colour pictures of 8x8, measured by Inception where no features are named" in refused(capsys)
    assert not Path("r.json").exists()
    assert evaluate("--images", "fake", "--features", "fashion_mnist") == 0
    assert "warning: the features 'fashion_mnist' see gray alone: the figures say nothing about colours" in (
        capsys.readouterr().err
    )


@pytest.fixture
def models(folder: Path) -> tuple[str, str]:
    for seed, name in enumerate(("one", "two")):
        tiny_teacher(seed).save_pretrained(folder / name, role="teacher")
    return "one", "two"


def test_models_are_compared_under_one_protocol(models: tuple[str, str], capsys: pytest.CaptureFixture[str]):
    words = ("--model", "one@2", "--model", "two@3", "--num-images", "12", "--json", "r.json")
    assert evaluate(*words, "--sampler", "euler") == 0
    printed, held = capsys.readouterr().out, json.loads(Path("r.json").read_text())
    assert [result["subject"]["evaluations"] for result in held["models"]] == [2, 3]
    assert [result["subject"]["model"] for result in held["models"]] == ["one", "two"]
    assert held["models"][0]["protocol"] == held["models"][1]["protocol"]
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("one", "two", "real images"))] == [
        "one",
        "two",
        "real",
    ]


def test_a_models_number_does_not_depend_on_the_batch_size(models: tuple[str, str]):
    values = []
    for size in ("16", "20"):
        assert (
            evaluate(
                "--model", "one", "--steps", "1", "--num-images", "20", "--batch-size", size, "--json", f"{size}.json"
            )
            == 0
        )
        values.append(json.loads(Path(f"{size}.json").read_text())["metrics"]["fid"]["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_a_plot_has_a_line_for_each_model_and_sampler(models: tuple[str, str]):
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra `plot`)")
    words = ("--model", "one@2", "--model", "one@4", "--model", "two@2", "--num-images", "12", "--sampler", "euler")
    assert evaluate(*words, "--json", "r.json") == 0
    plot_evaluations(json.loads(Path("r.json").read_text())["models"], "plot.svg")
    drawn = Path("plot.svg").read_text()
    assert drawn.count("one (euler)") >= 1
    assert drawn.count("two (euler)") >= 1
    assert "real vs real, N = 12" in drawn
