"""What a step computes, by hand: the optimisers' updates, the rate, seeds, the loss of the regression, roles."""

import math
from itertools import product

import pytest
import torch
from runs import data, go, settings, task
from tiny import tiny_teacher
from torch import nn

from diffdistill.data import ImageSet
from diffdistill.errors import ConfigError, NonFiniteError
from diffdistill.optimizers import Optimizer
from diffdistill.process import EDM
from diffdistill.training.device import Device
from diffdistill.training.kinds.images import Images, student_levels
from diffdistill.training.observers import finite
from diffdistill.training.optim.updater import Updater
from diffdistill.training.randomness import mix, seed_step
from diffdistill.training.tasks.distill import DistillTask
from diffdistill.training.tasks.regression import through


def test_adamw_is_that_of_the_paper_with_the_moments_decay_and_rate_of_the_settings():
    """1711.05101, algorithm 2, with a rate that warms up over two steps and then falls."""
    chosen = Optimizer(
        learning_rate=0.1, betas=(0.5, 0.8), weight_decay=0.3, warmup_steps=2, schedule="linear", decay_from=0.0,
        max_grad_norm=None,
    )  # fmt: skip
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    updater = Updater("student", [weight], chosen, 6)
    x, m, v = weight.detach().clone(), torch.zeros(3).double(), torch.zeros(3).double()
    for step in range(5):
        gradient = torch.tensor([0.3, -0.1, 2.0]).double() * (step + 1)
        weight.grad = gradient.clone()
        updater.step(step)
        rate = 0.1 * (min(1.0, (step + 1) / 2) if step < 2 else 1 - (step - 2) / 4)
        m, v = 0.5 * m + 0.5 * gradient, 0.8 * v + 0.2 * gradient**2
        x = x - rate * (m / (1 - 0.5 ** (step + 1)) / ((v / (1 - 0.8 ** (step + 1))).sqrt() + 1e-8) + 0.3 * x)
        assert torch.allclose(weight.detach(), x, atol=1e-12), step


def test_adafactor_lets_weights_decay_by_the_rate_times_the_setting():
    """With an update of 0 only the decay is left: w (1 - rate * decay)."""
    weight = nn.Parameter(torch.full((4, 3), 2.0))
    chosen = Optimizer(name="adafactor", learning_rate=0.1, weight_decay=0.5, max_grad_norm=None)
    updater = Updater("student", [weight], chosen, 10)
    weight.grad = torch.zeros(4, 3)
    updater.step(0)
    assert torch.allclose(weight.detach(), torch.full((4, 3), 2.0 * (1 - 0.1 * 0.5)))


def test_each_seed_step_and_order_of_counters_draws_other_numbers(monkeypatch):
    drawn = set()
    for seed, step in product(range(6), repeat=2):
        seed_step(seed, step)
        drawn.add(float(torch.rand((), dtype=torch.float64)))
    assert len(drawn) == 36  # with seed + step there were 11
    assert mix(0, 1, 2) != mix(0, 2, 1)
    seed_step(3, 4)
    here = torch.rand(4)
    monkeypatch.setenv("RANK", "1")
    seed_step(3, 4)
    assert torch.equal(torch.rand(4), here), "what is drawn is the whole batch's, in every process"


def test_every_step_of_a_run_draws_anew(tmp_path):
    class Drawing:
        def __init__(self):
            self.weight, self.drawn = nn.Parameter(torch.zeros(1)), []
            self.parts = {"network": nn.ParameterList([self.weight])}

        def update(self, step):
            self.drawn.append(float(torch.rand(())))
            return {"loss": 0.5}

        def averaged(self):
            return self.weight

        def networks(self):
            return {}

    drawing = Drawing()
    go(drawing, settings("train", tmp_path, sample_every=0, checkpoint_every=0), tmp_path)
    assert len(set(drawing.drawn)) == 6


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_figure_that_is_not_finite_is_never_logged(value):
    with pytest.raises(NonFiniteError, match="loss not finite at step 3"):
        finite({"x": 1.0, "loss": value}, 3)


def test_the_regressions_loss_is_the_mean_square_of_the_error(tmp_path):
    config = settings("sid", tmp_path, student={"steps": 1, "regression": {"steps": 4, "pairs": 8, "solver_steps": 2}})
    made = task(config)
    x, sigma, target, cond = made.regression.pairs[0]
    with torch.no_grad():
        error = made.student(x, sigma, cond) - target
    assert float(made.update(0)["regression/loss"]) == pytest.approx(float(error.square().mean()), rel=1e-5)


def test_the_solvers_level_that_moves_is_the_nearest_by_ratio():
    """Of 10 and 1, 4 lies nearer to 1 by distance (6 against 3) and to 10 by ratio (2.5 against 4)."""
    assert through([80.0, 10.0, 1.0, 0.0], [4.0]) == [80.0, 4.0, 1.0, 0.0]


def test_roles_have_no_null_class_and_no_dropout_and_a_start_keeps_its_own_process(tmp_path):
    teacher, start = tiny_teacher(), tiny_teacher()
    start.process = EDM(sigma_data=0.25)
    config = settings("sid", tmp_path)
    student, critic = Images().roles(config, teacher, {}, Device("no"), start)
    assert teacher.null_class is not None
    for role in (student, critic):
        assert role.null_class is None
        assert role.num_classes == teacher.num_classes
    assert not any(module.training for module in student.modules())
    assert student.process == start.process
    assert critic.process == teacher.process
    assert not any(module.training for module in DistillTask(config, teacher, data(), Device("no")).student.modules())


@pytest.mark.parametrize("levels", [(1.0, 2.0), (2.0, 2.0)])
def test_a_students_levels_descend(tmp_path, levels):
    config = settings("sid", tmp_path, student={"steps": 2, "levels": levels})
    with pytest.raises(ConfigError, match="must descend"):
        student_levels(config, EDM(), 2.5)


@pytest.mark.parametrize("kind", ["train", "sid"])
@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_where_the_settings_say_so(tmp_path, monkeypatch, kind, flip):
    asked = []

    def draw(self, size, seed, step, flip=False, *rows, **more):
        asked.append(flip)
        return original(self, size, seed, step, flip, *rows, **more)

    original = ImageSet.draw
    monkeypatch.setattr(ImageSet, "draw", draw)
    task(settings(kind, tmp_path, data={"horizontal_flip": flip})).update(0)
    assert asked == [flip]
