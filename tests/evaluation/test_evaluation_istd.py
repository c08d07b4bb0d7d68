"""ISTD: linear maps in closed form, a model through the command line, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from tiny import tiny_teacher

from diffdistill.cli import main
from diffdistill.config.schema import Evaluation
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation import Evaluator, evaluate
from diffdistill.evaluation.interpolation import istd, slerp, step_lengths


def test_a_path_is_an_even_walk_on_a_sphere():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 8, 8, generator=g, dtype=torch.float64)
    path = slerp(a, 2 * b, 7)
    torch.testing.assert_close(path.flatten(1).norm(dim=1), a.norm().expand(7))
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[-1], b * a.norm() / b.norm())
    angle = torch.acos((a * b).sum() / a.norm() / b.norm())
    torch.testing.assert_close(step_lengths(path), (2 * a.norm() * (angle / 12).sin()).expand(6))


def test_a_map_that_keeps_angles_has_none():
    turn, _ = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    found = istd(lambda noise, _: (0.3 * noise.flatten(1) @ turn.T).reshape(noise.shape), (1, 8, 8), paths=5)
    assert float(found["istd"]) < 1e-6
    assert float(found["mean_step"]) == pytest.approx(0.15 * 2 * 8 * math.sin(math.pi / 32), rel=0.1)  # norm 8


def test_a_linear_map_of_two_axes_in_closed_form():
    """x -> (p x_1, q x_2): on the circle of radius r, d_j = 2 r sin(d/2) sqrt(p^2 sin^2 f_j + q^2 cos^2 f_j)."""
    p, q, steps = 2.0, 0.5, 9
    found = istd(lambda noise, _: noise * torch.tensor([p, q]), (1, 1, 2), paths=40, steps=steps, seed=3)
    g = torch.Generator().manual_seed(3)
    spread, part = [], []
    for _ in range(40):
        a, b = torch.randn(2, 2, generator=g, dtype=torch.float64)
        r, start, end = float(a.norm()), math.atan2(a[1], a[0]), math.atan2(b[1], b[0])
        whole = (end - start + math.pi) % (2 * math.pi) - math.pi
        middle = start + whole * (torch.arange(steps - 1, dtype=torch.float64) + 0.5) / (steps - 1)
        lengths = (
            r * abs(math.sin(whole / 2 / (steps - 1))) * (p**2 * middle.sin() ** 2 + q**2 * middle.cos() ** 2).sqrt()
        )
        spread.append(float(lengths.std()))
        part.append(float(lengths.std() / lengths.mean()))
    assert float(found["istd"]) == pytest.approx(sum(spread) / 40, rel=1e-4)  # noise is float32
    assert float(found["istd_relative"]) == pytest.approx(sum(part) / 40, rel=1e-4)
    assert found["istd"].standard_error == pytest.approx(float(torch.tensor(spread).std()) / 40**0.5, rel=1e-4)
    with pytest.raises(DataError, match="istd of 1 paths of 9 images was asked for"):
        istd(lambda noise, _: noise, (1, 1, 2), paths=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("istd")
    tiny_teacher().save_pretrained(folder / "teacher", role="teacher")
    tiny_teacher().save_pretrained(folder / "student", role="student", levels=(2.5,))
    return folder


def test_teachers_and_students_are_walked_and_draw_nothing_else(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("diffdistill.evaluation.subjects.run_shared", lambda *_, **__: iter(()))
    out = tmp_path / "answer.json"
    words = ["evaluate", "--metrics", "istd", "--num-images", "30", "--device", "cpu", "--json", str(out)]
    words += ["--model", f"{models / 'teacher'}@2", "--model", str(models / "student")]
    assert main(words) == 0
    assert "ISTD, of the mean step" in capsys.readouterr().out
    teacher, student = json.loads(out.read_text())["models"]
    for result in (teacher, student):
        entry = result["metrics"]["istd"]
        assert (entry["n"], entry["images"], result["protocol"]["num_images"]) == (3, 27, 27)
        assert 0 < entry["istd"] < entry["mean_step"]
        assert entry["istd_relative"] > 0
        assert result["figures"]["istd"]["lower_is_better"] is True
    assert teacher["metrics"]["istd"]["istd"] != student["metrics"]["istd"]["istd"]
    assert main(words) == 0  # the same request again


def test_later_noise_is_the_same_along_a_path(models):
    """An ancestral sampler draws more: of every image of a path the same, or no path would be smooth."""
    settings = {"metrics": ["istd"], "num_images": 18, "device": "cpu", "steps": 3}
    model = str(models / "teacher")
    smooth, ancestral = (
        evaluate(model=model, sampler=name, **settings)["metrics"]["istd"] for name in ("euler", "ddpm")
    )
    assert ancestral["mean_step"] < 2 * smooth["mean_step"]


def test_images_are_measured_beside_the_model(models, tmp_path):
    np.savez(tmp_path / "real.npz", images=np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8))
    settings = {"reference": str(tmp_path / "real.npz"), "num_images": 18, "device": "cpu"}
    result = evaluate(model=str(models / "student"), metrics=["istd", "brightness"], **settings)
    assert list(result["metrics"]) == ["istd", "brightness"]
    assert {"brightness_spread", "istd"} <= result["figures"].keys()
    assert result["protocol"]["num_images"] == 18


def test_what_has_no_model_is_refused(models, capsys):
    words = ["evaluate", "--images", str(models), "--metrics", "istd"]
    assert main(words) == 2
    assert (
        "istd is of a model, which makes images for it: give --model in place of --images" in capsys.readouterr().err
    )
    with pytest.raises(ConfigError, match="metric 'istd' is of a model, which makes images for it"):
        evaluate(images=torch.zeros(2, 1, 8, 8, dtype=torch.uint8), metrics=["istd"])
    with pytest.raises(ConfigError, match="metric 'istd' is of a model, not of images"):
        Evaluator(metrics=["istd"])
    with pytest.raises(ValueError, match="metric 'istd' is of a finished model"):
        Evaluation(metrics=("istd",))
    assert main(["evaluate", "--model", str(models / "teacher"), "--metrics", "istd", "--num-images", "10"]) == 2
    assert "metric 'istd' needs 18 at least" in capsys.readouterr().err
