"""A metric, a divergence, a method and a sampler, each one new file outside the package: help, config, run, report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

METRIC = """
from diffdistill.evaluation.metrics import Metric

METRIC = Metric(
    name="brightness", label="Mean grey value", score=lambda images, texts: images.double().mean((1, 2, 3))
)
"""
DIVERGENCE = """
from diffdistill.divergences import Divergence

CUBE_ROOT = Divergence(
    name="cube_root",
    weight=lambda logit: (logit / 3).exp(),
    weight_slope=lambda logit: (logit / 3).exp() / 3,
    adversarial=lambda logit: -3 * (logit / 3).exp(),
)
"""
METHOD = '''
from typing import ClassVar, Literal

from diffdistill.methods.base import Adversarial, DivergenceName, Method, Ratio


class Own(Method):
    """The score gap, weighted by h(r)."""

    form: ClassVar[str] = "score_gap"
    name: Literal["own"] = "own"
    divergence: DivergenceName = "forward_kl"
    adversarial: Adversarial | None = Adversarial(taps=("mid_block",))
    ratio: Ratio = Ratio()


METHOD = Own
'''
SAMPLER = """
from diffdistill.sampling.sampler import Sampler


def halves(denoise, x, sigmas, draw):
    for sigma, following in zip(sigmas, sigmas[1:]):
        x = x + (following - sigma) * (x - denoise(x, sigma)) / sigma
    return x


SAMPLER = Sampler("halves", "first order", steps=4, run=halves)
"""
TEACHER = "builtin:fashion_mnist_teacher"


# Several command lines in one process, for each of which torch would be imported; what each printed.
MAIN = """
import contextlib, io, json, sys
from diffdistill.cli import main
from diffdistill.registry import allow_code
answers = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    if code:
        sys.exit(code)
    allow_code(False)
    answers.append(said.getvalue())
print(json.dumps(answers))
"""


@pytest.fixture
def diffdistill(tmp_path):
    """Commands, in a process of their own that knows the four files."""
    files = {"brightness.py": METRIC, "cube_root.py": DIVERGENCE, "own.py": METHOD, "halves.py": SAMPLER}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    plugins = os.pathsep.join(str(tmp_path / name) for name in files if name != "cube_root.py")
    environment = {**os.environ, "DIFFDISTILL_PLUGINS": plugins, "COLUMNS": "200"}

    def run(*commands: str) -> list[str]:
        command = [sys.executable, "-c", MAIN, json.dumps([line.split() for line in commands])]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_each_is_one_file(diffdistill, tmp_path: Path):
    # Help, config, run, and the sampler.
    settings = {
        "output_dir": "run", "max_train_steps": 2, "train_batch_size": 4, "sample_every": 0, "num_threads": 1,
        "log_every": 1, "data": {"path": "builtin:fashion_mnist", "limit": 64},
        "method": {"name": "own", "divergence": "cube_root.py:CUBE_ROOT"},
        "evaluation": {"metrics": ["fid", "brightness"], "num_images": 8},
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    metrics, samplers, keys, shown, _, _ = diffdistill(
        "evaluate --help",
        "sample --help",
        "config keys distill",
        "config show distill mine.yaml --allow-code",
        "distill mine.yaml --allow-code",
        f"sample {TEACHER} --num-images 2 --sampler halves --out images",
    )
    assert "brightness" in metrics
    assert "halves" in samplers
    assert "own" in keys
    assert "name: own" in shown
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all("discriminator/loss" in line for line in lines if "evaluation/fid" not in line), "h(r) asks for r"
    assert 0 < lines[-1]["evaluation/brightness"] < 255
    assert yaml.safe_load((run / "config.yaml").read_text())["method"]["divergence"] == "cube_root.py:CUBE_ROOT"
    # Report.
    report = (run / "report.html").read_text("utf-8")
    for words in ("Mean grey value", "cube_root.py:CUBE_ROOT", "own"):
        assert words in report, words
    # The sampler's record.
    about = json.loads((tmp_path / "images" / "samples.json").read_text())
    assert (about["sampler"], about["steps"], about["evaluations"]) == ("halves", 4, 4)
