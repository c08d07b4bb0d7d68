"""PFGM++: noise of Student's t, its length in closed form, in training and sampling, and who refuses it."""

import json
from argparse import Namespace

import pytest
import torch
from pydantic import ValidationError
from runs import data, settings
from tiny import tiny_teacher

from diffdistill import Denoiser
from diffdistill.config.schema import Train
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.noise_law import NoiseLaw
from diffdistill.parts.exposure_bias.calibration.command import run as calibrate
from diffdistill.reporting.model_card import model_card
from diffdistill.sampling.generate import sample_batch
from diffdistill.sampling.noise import ImageNoise
from diffdistill.sampling.plan import plan_sampling
from diffdistill.training.device import Device
from diffdistill.training.randomness import seed_step
from diffdistill.training.tasks.by_objective import task_of
from diffdistill.training.tasks.scheduled import ScheduledTask
from diffdistill.training.tasks.teacher import TeacherTask

HEAVY = {"law": "student_t", "dimension": 3.0}
LAW = NoiseLaw(**HEAVY)
NEAR_GAUSSIAN = {"law": "student_t", "dimension": 1e16}  # its length differs by 7e-9 of itself


def heavy(law=HEAVY):
    model = tiny_teacher()
    model.metadata = {"noise": law}
    return model


@pytest.mark.parametrize("dimension", [5.0, 128.0])
def test_the_length_has_the_law_of_the_field_in_n_plus_d_dimensions(dimension):
    """R^2 / (N sigma^2) ~ F(N, D): the law of the kernel (R^2 + r^2)^(-(N + D) / 2) R^(N - 1)."""
    stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(0)
    noise = NoiseLaw("student_t", dimension).of(torch.randn(20000, 1, 4, 4)).double()
    ratio = noise.square().flatten(1).mean(1)
    levels = torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    below = [(ratio < stats.f.ppf(level, 16, dimension)).double().mean() for level in levels]
    torch.testing.assert_close(torch.stack(below), levels, rtol=0, atol=0.008)


@pytest.mark.parametrize(("dimension", "mean"), [(128.0, 1.0159), (2048.0, 1.0010)])
def test_its_mean_square_is_d_over_d_minus_two(dimension, mean):
    torch.manual_seed(0)
    found = NoiseLaw("student_t", dimension).factors(200_000).double().square().mean().item()
    assert found == pytest.approx(mean, abs=4 * (2 / dimension / 200_000) ** 0.5 * 2**0.5)
    assert found > 1 + 0.7 * (mean - 1)


@pytest.mark.parametrize("task", [TeacherTask, ScheduledTask])
def test_a_large_dimension_is_edm_to_rounding(task, tmp_path):
    name = "denoising" if task is TeacherTask else "scheduled_sampling"
    losses = []
    for law in ({}, NEAR_GAUSSIAN, HEAVY):
        made = task(settings("train", tmp_path, noise=law, objective={"name": name}), data(), Device("no"))
        seed_step(0, 0)
        losses.append(made.update(0)["loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] != pytest.approx(losses[0], rel=1e-2)
    x = [ImageNoise(0, range(3), (1, 8, 8), law=NoiseLaw(**law)).draw() for law in ({}, NEAR_GAUSSIAN)]
    torch.testing.assert_close(*x)


def test_training_scales_the_noise_of_an_image_by_one_number(tmp_path):
    pairs = []
    for law in ({}, HEAVY):
        made = TeacherTask(settings("train", tmp_path, noise=law), data(), Device("no"))
        seed_step(0, 0)
        x0, x_t, _, sigma, _ = made.noised(*data().draw(16, 0, 0))
        pairs.append((x_t - x0) / sigma.reshape(-1, 1, 1, 1))
    ratio = (pairs[1] / pairs[0]).flatten(1)
    torch.testing.assert_close(ratio, ratio.median(1, True).values.expand_as(ratio), rtol=1e-2, atol=0)
    assert ratio.median(1).values.unique().numel() == 16


def test_an_image_begins_with_the_same_noise_in_every_batch():
    whole = ImageNoise(7, range(5), (1, 8, 8), law=LAW).draw()
    assert torch.equal(whole[3:], ImageNoise(7, range(3, 5), (1, 8, 8), law=LAW).draw())
    plain = ImageNoise(7, range(5), (1, 8, 8)).draw()
    factors = (whole / plain).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
    assert factors[:, 0].unique().numel() == 5
    noise = ImageNoise(7, range(5), (1, 8, 8), law=LAW)
    noise.draw()
    assert noise.draw().flatten(1).std(1).sub(1).abs().max() < 0.4  # what follows is Gaussian


def test_a_folder_says_its_law_and_sampling_begins_with_it(tmp_path, monkeypatch):
    made = TeacherTask(settings("train", tmp_path, noise=HEAVY), data(), Device("no"))
    assert made.averaged().noise == LAW  # which the grids and figures of the run are drawn by
    made.averaged().save_pretrained(tmp_path / "model", role="teacher")
    model = Denoiser.from_pretrained(tmp_path / "model")
    assert (model.noise, "D = 3" in repr(model)) == (LAW, True)
    seen = []
    forward = Denoiser.forward

    def recorded(self, x_t, *rest):
        seen.append(x_t)
        return forward(self, x_t, *rest)

    monkeypatch.setattr(Denoiser, "forward", recorded)
    for sampler in ("heun", "vp_ddim"):
        seen.clear()
        sample_batch(model, plan_sampling(model, sampler=sampler, steps=2, class_labels=[0]), 5, range(3), 64)
        torch.testing.assert_close(
            seen[0][:3], 80 * ImageNoise(5, range(3), (1, 8, 8), law=LAW).draw(), rtol=1e-3, atol=0
        )
    card = model_card(metadata=json.loads((tmp_path / "model" / "diffdistill.json").read_text()))
    assert "Student's t with D = 3 (PFGM++" in card
    model.save_pretrained(tmp_path / "student", role="student", levels=[80.0])
    assert "noise" not in json.loads((tmp_path / "student" / "diffdistill.json").read_text())


def test_a_run_goes_on_with_the_law_of_its_model_unless_told(tmp_path):
    heavy().save_pretrained(tmp_path / "model", role="teacher")
    start = Denoiser.from_pretrained(tmp_path / "model")
    for law, wanted in (
        ({}, LAW),
        ({"law": "gaussian"}, NoiseLaw()),
        ({"law": "student_t", "dimension": 9}, NoiseLaw("student_t", 9.0)),
    ):
        made = TeacherTask(settings("train", tmp_path, noise=law), data(), Device("no"), start)
        assert made.noise == made.averaged().noise == wanted


@pytest.mark.parametrize("law", [{"law": "student_t"}, {"law": "student_t", "dimension": 2.0}, {"law": "cauchy"}])
def test_a_law_without_a_variance_is_refused(law, tmp_path):
    with pytest.raises(ValidationError):
        settings("train", tmp_path, noise=law)
    with pytest.raises(ConfigError, match="above 2"):
        NoiseLaw(**law)


@pytest.mark.parametrize(
    "law",
    [
        {"law": "student_t"},
        {"law": "student_t", "dimension": 2.0},
        {"law": "gaussian", "dimension": 3.0},
        "student_t",
        {},
    ],
)
def test_a_record_of_another_law_is_refused(law, tmp_path):
    heavy().save_pretrained(tmp_path / "model", role="teacher")
    file = tmp_path / "model" / "diffdistill.json"
    record = {key: value for key, value in json.loads(file.read_text()).items() if "sha256" not in key}
    file.write_text(json.dumps(record | {"noise": law}))
    with pytest.raises(CheckpointError, match="the noise"):
        Denoiser.from_pretrained(tmp_path / "model")


def test_what_counts_on_gaussian_noise_refuses_it(tmp_path):
    model = heavy()
    with pytest.raises(ConfigError, match="gives no score"):
        model.check_teacher("mine")
    for name in ("ddpm", "vp_ddpm", "euler_ancestral", "consistency"):
        with pytest.raises(ConfigError, match="draws Gaussian noise"):
            plan_sampling(model, sampler=name)
    with pytest.raises(ConfigError, match="Time-Shift count"):
        plan_sampling(model, epsilon_scaling="1.01")
    model.save_pretrained(tmp_path / "model", role="teacher")
    with pytest.raises(ConfigError, match="calibrate compares"):
        calibrate(
            Namespace(
                fit="exposure",
                out=tmp_path / "x.json",
                data="builtin:fashion_mnist",
                split="test",
                model=str(tmp_path / "model"),
                device="cpu",
            )
        )
    objective = {"name": "consistency"}
    with pytest.raises(ConfigError, match="made for Gaussian noise"):
        task_of(Train(output_dir="x", initialize_from=str(tmp_path / "model"), objective=objective), Device("no"))
