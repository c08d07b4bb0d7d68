"""A run on texts from start to report: captions in its grids, CLIP score and rewards in its table."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs transformers (extra `text`)")

from PIL import Image
from reward_models import tiny_clip
from tiny_text import captioned_folder, stable_diffusion

from diffdistill.cli import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    stable_diffusion(tmp_path / "sd")
    captioned_folder(tmp_path / "images")
    (tmp_path / "clip").mkdir()
    tiny_clip(tmp_path / "clip")
    Path("mean.py").write_text("def brightness(images, prompts):\n    return images.mean((1, 2, 3))\n")
    Path("run.yaml").write_text(
        "teacher: sd\noutput_dir: run\nmax_train_steps: 2\ntrain_batch_size: 2\nsample_every: 1\nlog_every: 1\n"
        "method: {name: diff_instruct, guidance_scale: 2.0}\ndata: {path: images}\n"
        "evaluation: {every: 1, metrics: [fid, clip], features: pixels, num_images: 4, clip: clip,\n"
        "  rewards: ['mean.py:brightness']}\n"
    )
    return tmp_path


def refused(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffdistill: error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("diffdistill: error: ")


def test_a_run_on_texts_reports_captions_clip_score_and_rewards(here):
    assert main(["distill", "run.yaml", "--quiet"]) == 0
    with Image.open("run/samples/step-000001.png") as grid:  # eight prompts, four seeds, one line of text each
        assert grid.size == (8 * (112 + 4) + 4, 4 * (112 + 14 + 4) + 4)
    student = json.loads(Path("run/evaluation.json").read_text())["student"]
    assert student["protocol"]["texts"]["count"] == 4
    assert student["protocol"]["clip_model"]["id"] == "clip:clip"
    assert set(student["metrics"]) == {"fid", "clip", "reward/brightness"}
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert sum("evaluation/clip" in line and "evaluation/reward/brightness" in line for line in logged) == 2
    page = Path("run/report.html").read_text()
    for part in ("CLIP score", "Reward brightness", "Rewards of the evaluation", "of real images and their captions"):
        assert part in page
    evaluate = [
        "evaluate",
        "--model",
        "run/student",
        "--reference",
        "images",
        "--features",
        "pixels",
        "--seed",
        "1000",
    ]
    more = ["--num-images", "4", "--metrics", "fid,clip", "--clip", "clip", "--json", "r.json", "--quiet"]
    assert main([*evaluate, *more]) == 0
    again = json.loads(Path("r.json").read_text())
    for name in ("fid", "clip"):
        assert again["metrics"][name]["value"] == pytest.approx(student["metrics"][name]["value"], rel=1e-6)
    assert again["protocol"]["texts"] == student["protocol"]["texts"]


def test_what_cannot_score_is_said_before_training(here, capsys):
    assert main(["distill", "run.yaml", "evaluation.clip=absent", "--quiet"]) == 4
    assert "'absent' is no local folder and cannot be fetched from the Hub" in refused(capsys)
    assert main(["distill", "run.yaml", "output_dir=two", "evaluation.rewards=[clp]", "--quiet"]) == 2
    assert "reward 'clp' is not known (did you mean clip?)" in refused(capsys)
    Path("classes.yaml").write_text(
        "teacher: builtin:fashion_mnist_teacher\nmethod: {name: diff_instruct}\noutput_dir: three\n"
        "data: {path: builtin:fashion_mnist, limit: 16}\nevaluation: {metrics: [clip]}\n"
    )
    assert main(["distill", "classes.yaml", "--quiet"]) == 2
    assert "score images for their texts, and this model draws none; leave them out" in refused(capsys)
    assert not any(Path(run).exists() for run in ("run", "two", "three"))
