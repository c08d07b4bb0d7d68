"""The moving average of the weights: how long it remembers, in steps and in images."""

import math

import pytest
import torch
from runs import data, settings
from standin_runs import smallest
from torch import nn

from diffdistill import processes
from diffdistill.config import load_config
from diffdistill.config.schema import Distill, Student, Train
from diffdistill.data import ImageSet
from diffdistill.errors import ConfigError
from diffdistill.training.device import Device
from diffdistill.training.optim.updater import Ema
from diffdistill.training.tasks.distill import DistillTask
from diffdistill.training.tasks.teacher import TeacherTask


def in_images(half_life: float) -> Student:
    return Student(ema_half_life_images=half_life)


class Drift(nn.Module):
    """One weight, which counts the images seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))


def lag(batch: int, images: int, settings: Student) -> float:
    """How many images the average is behind a weight that moves evenly, after `images`."""
    network = Drift()
    ema = Ema(network, settings.ema_decay_for(batch))
    for step in range(1, images // batch + 1):
        network.weight.data.fill_(step * batch)
        ema.update(network)
    return images - float(ema.module.weight)


def test_a_half_life_is_the_decay_of_a_step_of_that_many_images():
    # 2307.13813: rho^kappa for a batch of kappa times as many; figures computed by hand from .9999 at a batch of 512.
    half_life = 512 * math.log(0.5) / math.log(0.9999)
    assert half_life == pytest.approx(3_548_736, abs=1)
    settings = in_images(half_life)
    assert settings.ema_decay_for(512) == pytest.approx(0.9999, abs=1e-12)
    assert settings.ema_decay_for(8 * 512) == pytest.approx(0.99920028, abs=5e-9)
    assert in_images(500_000).ema_decay_for(500_000) == 0.5


def test_a_decay_a_step_is_the_same_for_every_batch():
    assert Student(ema_decay=0.97).ema_decay_for(1) == Student(ema_decay=0.97).ema_decay_for(8192) == 0.97


@pytest.mark.parametrize("images", [256, 1024, 4096, 16384])
def test_runs_of_equal_images_average_alike_whatever_their_batch(images):
    """During the warm-up of the decay too: it is a part of the run, so it needs no half-life of its own."""
    settings, batch = in_images(256.0), 16
    one, four = lag(batch, images, settings), lag(4 * batch, images, settings)
    assert abs(four - one) < 2 * batch
    # In a long run a weight of even speed lags behind by rho / (1 - rho) steps; a decay a step lags four times as far.
    if images == 16384:
        rho = settings.ema_decay_for(batch)
        assert one == pytest.approx(batch * rho / (1 - rho), rel=1e-2)
        per_step = Student(ema_decay=rho)
        assert lag(4 * batch, images, per_step) > 3 * one


def test_the_average_of_a_short_run_is_of_its_last_tenth():
    # (1 + n) / (10 + n) of even speed: theta_n - average_n tends to n / 10.
    assert lag(1, 1000, Student(ema_decay=0.9999)) == pytest.approx(100, rel=0.02)


BOTH = "both say how long the average remembers; set one of them to null"


@pytest.mark.parametrize(("model", "prefix"), [(Distill, "student."), (Train, "")])
def test_exactly_one_of_the_two_is_given(model, prefix, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("output_dir: out\n" + ("method: {name: sid}\n" if model is Distill else ""))
    one, other = f"{prefix}ema_half_life_images=5.0e+5", f"{prefix}ema_decay=0.9"
    for words in ([one, other], [other, one]):
        with pytest.raises(ConfigError, match=BOTH):
            load_config(model, file, words)
    with pytest.raises(ConfigError, match=r"neither ema_decay nor ema_half_life_images"):
        load_config(model, file, [f"{prefix}ema_half_life_images=null"])
    resolved = load_config(model, file, [one, f"{prefix}ema_decay=null"])
    file.write_text(resolved.text_yaml)
    assert load_config(model, file).config == resolved.config  # as a resumed run reads it


def averages_of(words, text, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(f"output_dir: out\n{text}")
    student = load_config(Distill, file, words).config.student
    return student.ema_decay, student.ema_half_life_images


def test_one_of_them_replaces_the_other_of_what_lies_below(tmp_path):
    """So a decay a step of configs and command lines before there was a half-life means what it meant."""
    old = "base: fashion_mnist/quickstart\n"
    assert averages_of([], old, tmp_path) == (None, 1468.0)
    assert averages_of([], old + "student: {ema_decay: 0.97}\n", tmp_path) == (0.97, None)
    assert averages_of(["student.ema_decay=0.97"], old, tmp_path) == (0.97, None)
    assert averages_of(["student.ema_decay=0.97"], "method: {name: sid}\n", tmp_path) == (0.97, None)
    mixed = old + "student: {ema_decay: 0.97}\n"
    assert averages_of(["student.ema_half_life_images=500"], mixed, tmp_path) == (None, 500.0)
    with pytest.raises(ConfigError, match=BOTH):
        averages_of([], old + "student: {ema_decay: 0.97, ema_half_life_images: 500}\n", tmp_path)


@pytest.mark.parametrize(
    ("recipe", "decay"),
    [
        ("fashion_mnist/best", 0.99), ("fashion_mnist/ddo", 0.98), ("fashion_mnist/quickstart", 0.985),
        ("cifar10/cpu_teacher", 0.999), ("emoji/four_step_stage2", 0.995),
    ],
)  # fmt: skip
def test_recipes_with_published_figures_keep_the_decay_they_were_measured_with(recipe, decay):
    model = Train if recipe.endswith(("ddo", "teacher")) else Distill
    config = load_config(model, recipe).config
    average = config.student if model is Distill else config
    assert average.ema_decay is None
    assert 1 - average.ema_decay_for(config.train_batch_size) == pytest.approx(1 - decay, rel=5e-4)


@pytest.mark.parametrize(("parts", "count"), [(None, 1), (16, 1), (None, 2)], ids=["whole", "16 x 2", "2 processes"])
def test_a_step_is_of_all_its_images_in_parts_and_over_processes_too(parts, count, monkeypatch):
    monkeypatch.setattr(processes, "size", lambda: count)
    student = {"steps": 1, "ema_half_life_images": 64.0}
    whole = {"parallel": {"strategy": "ddp"}}
    config = settings("sid", "unused", train_batch_size=32, micro_batch_size=parts, student=student, **whole)
    assert DistillTask(config, smallest(), data(), Device("no")).ema.decay == 0.5 ** (32 / 64)


def test_a_teacher_is_averaged_by_images(tmp_path):
    settings = {
        "output_dir": str(tmp_path),
        "train_batch_size": 4,
        "ema_half_life_images": 8.0,
        "network": {"block_out_channels": (8, 16), "attention_head_dim": 8, "norm_num_groups": 4},
    }
    data = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), None, None, None, "black", "0")
    task = TeacherTask(Train.model_validate(settings), data, Device("no"))
    assert task.ema.decay == 0.5**0.5
