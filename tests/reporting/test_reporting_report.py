"""The report: one file, everything the run has, nothing from elsewhere."""

import json
import re
from argparse import Namespace
from html.parser import HTMLParser

import pytest
import torch

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.reporting.grid import image_grid
from diffdistill.reporting.report import run as report_command
from diffdistill.reporting.report import write_report
from diffdistill.reporting.rundata import read_metrics, read_run


class Balanced(HTMLParser):
    """Fails on a tag that closes what is not open."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def evaluation(fid, evaluations=None):
    known = {} if evaluations is None else {"sampling": {"evaluations": evaluations}}
    return {
        "metrics": {
            "fid": {"value": fid, "standard_error": 0.05, "floor": {"value": 0.31}},
            "prdc": {
                "precision": 0.8,
                "recall": 0.7,
                "density": 0.9,
                "coverage": 0.95,
                "floor": {"value": {"recall": 0.85}},
            },
        },
        "protocol": {
            "num_images": 5000,
            "features": {"id": "fashion_mnist", "sha256": "ab" * 32, "dim": 128},
            "reference": {"name": "builtin:fashion_mnist", "num_images": 60000, "fingerprint": "cd" * 32},
        },
        "warnings": [],
        **known,
    }


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "my_run"
    (folder / "samples").mkdir(parents=True)
    (folder / "student").mkdir()
    for step in (0, 100, 200):
        image_grid(torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), 3).save(
            folder / f"samples/step-{step:06d}.png"
        )
    image_grid(torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), 3).save(folder / "samples/teacher.png")
    lines = [
        {"step": s, "time": 1.5 * s, "critic/loss": 1 / s, "x0/std": 0.5, "odd/thing": s, "score_gap/level_0": 0.1}
        for s in range(1, 201)
    ]
    lines += [{"step": s, "time": 1.5 * s, "evaluation/fid": 300 / s} for s in (100, 200)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 201, "ti')
    (folder / "config.yaml").write_text(
        "teacher: builtin:t\nmethod: {name: dmd2}  # <script>alert(1)</script>\n"
        "data: {path: builtin:d}\ntrain_batch_size: 64\n"
    )
    (folder / "evaluation.json").write_text(json.dumps({"student": evaluation(1.8), "teacher": evaluation(1.6, 35)}))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.13.0", "gpu": None, "threads": 2}))
    (folder / "student" / "diffdistill.json").write_text(json.dumps({"levels": [2.5], "config_sha256": "ef" * 32}))
    return folder


def parsed(file):
    page = Balanced()
    page.feed(file.read_text())
    page.close()
    assert page.open == []
    return " ".join(" ".join(page.text).split())


def test_a_grid_that_is_wide_for_its_words_has_the_whole_page(run):
    wide = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    image_grid(wide, 8, ["an emoji of cow"] * 8).save(run / "samples/teacher.png")
    shown = re.findall(r'<figure class="([^"]*)"><img alt="([^"]*)"', write_report(run).read_text())
    assert ("large legible", "Teacher") in shown
    assert ("large", "Student, step 200") in shown


def test_report_shows_the_run(run):
    text = parsed(write_report(run))
    for words in (
        "my run",
        "A one-step student of builtin:t , distilled with dmd2 on builtin:d",
        "Student FID (fashion_mnist) 1.80 1 evaluation an image",
        "Teacher FID (fashion_mnist) 1.60 35 evaluations an image",
        "Student / teacher 1.12×",
        "Training 5.0 min 200 steps of 64 images",
        "Recall higher is better 0.70 0.70 0.85",
        "fashion_mnist, 128 dimensions, SHA-256 abababababab",
        "Student, step 200",
        "FID (fashion_mnist) improved to the end",
        "Odd",
        "torch 2.13.0",
    ):
        assert words in text, words
    assert "gpu" not in text


def test_clip_score_and_rewards_of_a_run_on_texts_are_in_the_table_with_what_scored(run):
    held = evaluation(1.8)
    held["metrics"] |= {
        "clip": {"value": 27.25, "standard_error": 0.2, "of_the_reference": 29.5},
        "reward/hps_v2": {"value": 0.26, "standard_error": 0.01, "of_the_reference": None},
    }
    held["protocol"] |= {
        "texts": {"count": 3000, "sha256": "12" * 32},
        "clip_model": {"id": "clip:tiny", "sha256": "34" * 32},
        "rewards": {"reward/hps_v2": "hps_v2 0123456789ab"},
    }
    (run / "evaluation.json").write_text(json.dumps({"student": held}))
    text = parsed(write_report(run))
    assert "Student CLIP score 27.25 29.50 of real images and their captions" in text
    assert "CLIP score higher is better 27.25 ± 0.20 29.50" in text
    assert "Reward hps_v2 higher is better 0.26 ± 0.01" in text
    assert "Texts 3,000, SHA-256 121212121212" in text
    assert "CLIP clip:tiny, SHA-256 343434343434" in text
    assert "Rewards hps_v2 0123456789ab" in text


def test_report_needs_no_network_and_no_other_file(run):
    html = write_report(run).read_text()
    assert not re.findall(r"<(?:link|script|iframe|object)\b", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', html))
    assert not re.findall(r"url\(|@import|https?://", html)
    assert html.count("data:image/png") == 2 + 3  # the last grid and the teacher's, then the strip


def test_what_a_file_says_is_never_markup(run):
    assert "<script>" not in write_report(run).read_text()


@pytest.mark.parametrize(
    "missing", ["metrics.jsonl", "config.yaml", "evaluation.json", "environment.json", "student/diffdistill.json"]
)
def test_a_missing_piece_is_left_out(run, missing):
    (run / missing).unlink()
    assert "my run" in parsed(write_report(run))


@pytest.mark.parametrize("damaged", ["evaluation.json", "environment.json", "samples/step-000200.png", "config.yaml"])
def test_a_damaged_piece_is_left_out(run, damaged):
    (run / damaged).write_bytes(b"\x89PNG{: [")
    assert "my run" in parsed(write_report(run))


def test_a_bare_run_that_just_started_has_a_report(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert "A diffusion model trained by denoising score matching" in parsed(write_report(tmp_path))


def test_a_cut_line_and_odd_values_are_skipped():
    found = read_metrics(
        '{"step": 1, "a": 2}\n[1]\n{"step": 2, "a": null, "b": NaN, "c": true, "d": "x"}\n{"step": 3, "a"'
    )
    assert list(found) == ["a"]
    assert found["a"].values == [2.0]


def test_grids_are_read_in_the_order_of_their_steps(run):
    data = read_run(run)
    assert [step for step, _ in data.grids] == [0, 100, 200]
    assert list(data.pictures) == ["teacher"]
    assert (data.steps, data.seconds) == (200, 300.0)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"is no run folder .* give the output_dir of train or distill"):
        write_report(tmp_path)
    with pytest.raises(CheckpointError):
        write_report(tmp_path / "nowhere")


def test_out_names_the_file_and_a_folder_is_refused(run, tmp_path, capsys):
    assert report_command(Namespace(run=str(run), out=str(tmp_path / "other.html"))) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "other.html")
    assert (tmp_path / "other.html").exists()
    assert not (run / "report.html").exists()
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        write_report(run, tmp_path)
    with pytest.raises(ConfigError, match=r"could not write .*No such file.*name another path"):
        write_report(run, tmp_path / "no" / "where.html")


def test_a_file_that_is_no_report_is_left_alone(run, tmp_path):
    other = tmp_path / "precious.html"
    other.write_text("<!doctype html>mine")
    with pytest.raises(ConfigError, match="exists and is no report: delete it or name another file"):
        write_report(run, other)
    assert other.read_text() == "<!doctype html>mine"
    other.write_text("")
    assert write_report(run, other) == other
    first = other.read_text()
    assert write_report(run, other) == other  # an earlier report, and one of an earlier version
    other.write_text(first.replace('<meta name="generator"', "<meta "))
    assert write_report(run, other).read_text() == first
    (run / "report.html").write_bytes(bytes(100))  # of the run itself, torn by a loss of power
    assert write_report(run, run / "report.html").read_text() == first


@pytest.mark.parametrize(("name", "words"), [("consistency", "A consistency model"), ("ddo", "A diffusion model")])
def test_a_report_says_which_objective_a_model_was_trained_by(name, words, tmp_path):
    (tmp_path / "config.yaml").write_text(f"seed: 0\nobjective: {{name: {name}}}\n")
    assert f"{words} trained by {name}" in parsed(write_report(tmp_path))
    (tmp_path / "model").mkdir()
    about = '{"role": "student", "levels": [80.0], "training": "improved consistency training"}'
    (tmp_path / "model" / "diffdistill.json").write_text(about)
    assert "A one-step model trained by improved consistency training" in parsed(write_report(tmp_path))
