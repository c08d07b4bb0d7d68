"""A run on texts from start to report: captions in its grids, CLIP score and rewards in its table."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs transformers (extra `text`)")

from PIL import Image
from reward_models import tiny_clip
from tiny_text import captioned_folder, stable_diffusion

from diffdistill.cli import main
from diffdistill.data.prompts import Prompt, digest_of, spread


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
    assert main(["distill", "run.yaml", "--allow-code", "--quiet"]) == 0
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


def figures(run):
    return json.loads((Path(run) / "evaluation.json").read_text())["student"]


def test_evaluations_draw_the_prompts_asked_for_or_the_captions_of_the_reference(here):
    captioned_folder(here / "held_out")
    lines = [json.loads(line) for line in Path("held_out/metadata.jsonl").read_text().splitlines()]
    other = [f"another {i}" for i in range(len(lines))]
    rows = [json.dumps(line | {"text": text}) for line, text in zip(lines, other, strict=True)]
    Path("held_out/metadata.jsonl").write_text("\n".join(rows))
    short = ["evaluation.every=0", "sample_every=0", "--quiet"]
    assert main(["distill", "run.yaml", "--allow-code", "output_dir=a", "evaluation.reference=held_out", *short]) == 0
    assert figures("a")["protocol"]["texts"]["sha256"] == digest_of([Prompt(text) for text in spread(other, 4)])
    Path("p.txt").write_text("x\ny\n")
    words = ["evaluation.reference=held_out", "evaluation.prompts=p.txt"]
    assert main(["distill", "run.yaml", "--allow-code", "output_dir=b", *words, *short]) == 0
    assert figures("b")["protocol"]["texts"] == {"count": 2, "sha256": digest_of([Prompt("x"), Prompt("y")])}


def test_a_run_on_prompts_alone_is_measured_without_a_reference_and_watched(here, capsys):
    Path("p.txt").write_text("a\nb\nc\nd\n")
    Path("held_out.txt").write_text("e\nf\n")
    Path("fall.py").write_text(
        "calls = 0\ndef fall(images, prompts):\n    global calls\n    calls += 1\n"
        "    assert set(prompts) <= {'e', 'f'}\n    return images.mean((1, 2, 3)) * 0 - calls\n"
    )
    words = ["data.path=builtin:fashion_mnist", "data.prompts=p.txt", "evaluation.prompts=held_out.txt", "--quiet"]
    alone = ["method.adversarial=null", "max_train_steps=5", "evaluation.features=fashion_mnist"]
    watch = ["evaluation.metrics=[]", "evaluation.rewards=[fall.py:fall]"]
    stop = ["evaluation.stop.metric=reward/fall", "evaluation.stop.margin=1.5"]
    assert main(["distill", "run.yaml", "--allow-code", *words, *alone, *watch, *stop]) == 0
    # -1 before the first step, -2 after it, good still, -3 after the second: worse than the best by more than 1.5.
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["evaluation/reward/fall"] for line in logged if "evaluation/reward/fall" in line] == [-1, -2, -3]
    assert max(line["step"] for line in logged) == 2
    assert set(figures("run")["metrics"]) == {"reward/fall"}
    page = Path("run/report.html").read_text()
    assert "The run was ended early" in page
    assert "the model is that of step 1, with -2 the last within the margin of 1.5" in page
    capsys.readouterr()
    fid = ["output_dir=two", "evaluation.metrics=[fid]"]
    assert main(["distill", "run.yaml", "--allow-code", *words, *alone, *fid]) == 2
    assert "evaluation.metrics=fid compares with images, and data.prompts gives prompts alone" in refused(capsys)
    stop[0] = "evaluation.stop.metric=reward/fell"
    assert main(["distill", "run.yaml", "--allow-code", "output_dir=two", *words, *alone, *watch, *stop]) == 2
    assert "'reward/fell', and what scores is reward/fall; watch one" in refused(capsys)
    assert not Path("two").exists()


def test_what_cannot_score_is_said_before_training(here, capsys):
    assert main(["distill", "run.yaml", "--allow-code", "evaluation.clip=absent", "--quiet"]) == 4
    assert "there is no folder 'absent'" in refused(capsys)
    assert main(["distill", "run.yaml", "--allow-code", "output_dir=two", "evaluation.rewards=[clp]", "--quiet"]) == 2
    assert "reward 'clp' is not known (did you mean clip?)" in refused(capsys)
    Path("classes.yaml").write_text(
        "teacher: builtin:fashion_mnist_teacher\nmethod: {name: diff_instruct}\noutput_dir: three\n"
        "data: {path: builtin:fashion_mnist, limit: 16}\nevaluation: {metrics: [clip]}\n"
    )
    assert main(["distill", "classes.yaml", "--quiet"]) == 2
    assert "are of models that draw texts, and this one draws none; leave them out" in refused(capsys)
    assert main(["distill", "run.yaml", "--allow-code", "evaluation.reference=absent", "--quiet"]) == 3
    assert "there is no file or folder 'absent'" in refused(capsys)
    assert main(["distill", "run.yaml", "--allow-code", "evaluation.prompts=absent.txt", "--quiet"]) == 3
    assert "'absent.txt' cannot be read" in refused(capsys)
    Path("classes.yaml").write_text(Path("classes.yaml").read_text().replace("[clip]", "[fid], reference: absent"))
    assert main(["distill", "classes.yaml", "--quiet"]) == 3
    assert "there is no file or folder 'absent'" in refused(capsys)
    assert not any(Path(run).exists() for run in ("run", "two", "three"))
