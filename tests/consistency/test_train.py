"""Consistency training on data alone: `train` with objective.name consistency or scm."""

import json

import pytest
import torch
from runs import data, run, settings, task, without

from diffdistill import api
from diffdistill.config import load_config
from diffdistill.config.schema import Train
from diffdistill.consistency.discrete import pseudo_huber
from diffdistill.consistency.settings import HUBER
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError, Problems
from diffdistill.process import per_sample
from diffdistill.training.randomness import seed_step

FEW = {"name": "consistency", "intervals": (3, 6)}
CONFIG = "fashion_mnist/ict"


def test_a_step_compares_neighbouring_levels_of_one_noise(tmp_path):
    config = settings("train", tmp_path, objective=FEW, train_batch_size=8)
    mine = task(config)
    found = {}
    mine.updater.optimizer.step = lambda: found.update({n: p.grad.clone() for n, p in mine.model.named_parameters()})
    seed_step(0, 0)
    mine.update(0)
    mine.model.zero_grad()
    seed_step(0, 0)
    x0, cond = data().draw(8, 0, 0)
    noise = mine.loss.objective.draw(x0, 0)
    high, low = (x0 + per_sample(level, x0) * noise.eps for level in (noise.high, noise.low))
    with torch.no_grad():
        target = torch.where(per_sample(noise.low < 0.0021, x0), low, mine.model(low, noise.low, cond))
    loss = pseudo_huber(mine.model(high, noise.high, cond), target, HUBER * 8) / (noise.high - noise.low)
    loss.mean().backward()
    norm = torch.stack([p.grad.norm() for p in mine.model.parameters()]).norm()
    bound = min(1.0, (config.optimizer.max_grad_norm or 1e9) / float(norm))
    for name, weight in mine.model.named_parameters():
        assert torch.allclose(found[name], bound * weight.grad, rtol=1e-3, atol=1e-5), name


def test_the_model_is_of_few_steps_and_has_no_null_class(tmp_path):
    mine = task(settings("train", tmp_path, objective=FEW | {"steps": 2}))
    assert (mine.role, mine.model.null_class, mine.model.num_classes) == ("student", None, 3)
    assert mine.levels[0] == pytest.approx(80.0)
    assert len(mine.levels) == 2
    assert mine.averaged().default_sampler == "consistency"


@pytest.mark.parametrize("name", ["consistency", "scm"])
def test_a_resumed_run_is_the_run(name, tmp_path):
    objective = FEW if name == "consistency" else {"name": name}
    whole = run("train", tmp_path / "whole", objective=objective, max_train_steps=4)
    run("train", tmp_path / "cut", objective=objective, max_train_steps=4)
    without(tmp_path / "cut", 2)
    again = run("train", tmp_path / "cut", objective=objective, max_train_steps=4, resume_from_checkpoint="latest")
    assert all(torch.equal(value, again[key]) for key, value in whole.items())


def test_it_begins_as_a_teacher_and_is_published_as_what_few_steps_sample(tmp_path):
    few = {"max_train_steps": 2, "objective__intervals": (2, 4), "objective__levels": (80.0, 0.8)}
    quick = {"train_batch_size": 2, "sample_every": 0, "evaluation__at_end": False, "data__limit": 8}
    done = api.train(CONFIG, output_dir=str(tmp_path / "run"), objective__steps=2, **few, **quick)
    model, teacher = done.model, Denoiser.from_pretrained("builtin:fashion_mnist_teacher")
    assert model.levels == pytest.approx((80.0, 0.8), rel=2e-3)
    about = json.loads((done.model_folder / "diffdistill.json").read_text())
    assert (about["role"], about["initialize_from"]) == ("student", "builtin:fashion_mnist_teacher")
    assert "trained by improved consistency training" in (tmp_path / "run" / "report.html").read_text()
    x, sigma, cond = torch.randn(1, 1, 28, 28), torch.tensor([1.0]), torch.tensor([3])
    with torch.no_grad():  # two small updates from it
        near, far = model(x, sigma, cond), torch.zeros(1, 1, 28, 28)
        exact = teacher(x, sigma, cond)
    assert (near - exact).norm() < 0.5 * (far - exact).norm()


def test_coupled_noise_is_nearer_to_its_image_within_its_class(tmp_path):
    seen = []
    for coupling in ("independent", "c2ot"):
        mine = task(settings("train", tmp_path, objective=FEW | {"coupling": coupling}, train_batch_size=12))
        losses = mine.loss.objective.losses

        def spied(model, x0, cond, noise, step, losses=losses):
            seen.append((x0, cond, noise.eps))
            return losses(model, x0, cond, noise, step)

        mine.loss.objective.losses = spied
        seed_step(0, 0)
        mine.update(0)
    (x0, cond, free), (same, _, held) = seen
    assert torch.equal(x0, same)
    assert ((x0 - held) ** 2).sum() < ((x0 - free) ** 2).sum()
    for label in cond.unique():  # the noise of a class is its own
        ours, theirs = ({tuple(row.flatten().tolist()) for row in eps[cond == label]} for eps in (free, held))
        assert ours == theirs


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["objective.steps=2", "objective.levels=[1.0,2.0]"], "must descend"),
        (["objective.levels=[5.0,2.0]"], "objective.steps is 1 and objective.levels has 2 values"),
        (["level.mean=1.0"], "'level.mean' is not used by a consistency model"),
        (["class_dropout=0.2"], "'class_dropout' is not used by a consistency model"),
        (["objective.solver=euler"], "'objective.solver' is not used without a teacher"),
        (["teacher=x"], "unknown key 'teacher'"),
        (["objective.intervals=[2,10000000]"], "as many or more, up to 1000000"),
        (["objective.rho=0.001"], "'objective.rho' is 0.001; it must be"),  # 80^1000
        (["objective={name: scm, difference: 1.0e-9}"], "'objective.difference' is 1.0e-09; it must be"),
    ],
)
def test_settings_that_it_does_not_have_are_refused(words, sentence):
    with pytest.raises((ConfigError, Problems), match=sentence):
        load_config(Train, CONFIG, words)


def test_plain_transport_beside_labels_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="coupling 'ot' gives each class a part of the noise only"):
        task(settings("train", tmp_path, objective=FEW | {"coupling": "ot"}))


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        ((2.0,), r"starts from noise alone, and at student level 2 .* set objective\.levels to begin with 5 or more"),
        ((500.0,), "the first of objective.levels, 500, is above the network's highest, 80"),
        ((80.0, 79.999), "two on one or the last on its end; give levels further apart"),
        ((80.0, 1e-9), "two on one or the last on its end; give levels further apart"),
    ],
)
def test_levels_where_it_would_not_be_sampled_as_it_is_trained_are_refused(levels, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        task(settings("train", tmp_path, objective=FEW | {"steps": len(levels), "levels": levels}))


def test_more_steps_than_the_stock_grid_has_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="3000 steps are more than the 2519 of"):
        task(settings("train", tmp_path, objective=FEW | {"steps": 3000}))
