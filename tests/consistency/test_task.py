"""Consistency distillation as a run, as a start and beside matching: gradients, parts, resuming, folders, refusals."""

import copy
import shutil

import numpy as np
import pytest
import torch
from runs import data, go, run, settings, task, without
from tiny import tiny_teacher

from diffdistill import api
from diffdistill.config import load_config
from diffdistill.config.schema import Distill
from diffdistill.consistency.discrete import pseudo_huber, solver_step
from diffdistill.consistency.settings import HUBER
from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError, ConfigError, Problems
from diffdistill.process import per_sample
from diffdistill.training.device import Device
from diffdistill.training.randomness import seed_step
from diffdistill.training.tasks.consistency import ConsistencyTask
from diffdistill.training.tasks.distill import DistillTask, student_task

FEW = {"intervals": (3, 6)}
STUDENT = {"steps": 2, "sigma_init": 20.0, "optimizer": {"max_grad_norm": None}}


def made(name, folder, **more):
    method = FEW if name == "consistency" else {}
    return settings(name, folder, **{"method": method, "student": STUDENT} | more)


def gradient_of(task, step=0):
    """Of an update at the student's weights, which do not move."""
    updater = task.phase.updaters[0] if isinstance(task, ConsistencyTask) else task.student_updater
    found = {}
    updater.optimizer.step = lambda: found.update(
        {name: weight.grad.clone() for name, weight in task.student.named_parameters()}
    )
    seed_step(0, step)
    task.update(step)
    return found


def test_a_step_is_the_gradient_of_the_loss_of_its_batch(tmp_path):
    """By hand: levels and noise of the step, Heun's step of the guided teacher, the student as its own target."""
    config = made("consistency", tmp_path, method={"guidance_scale": 1.5, "intervals": (3, 3)}, train_batch_size=8)
    mine = task(config)
    found = gradient_of(mine, step=0)
    teacher, student = tiny_teacher(), mine.student
    student.zero_grad()
    seed_step(0, 0)
    x0, cond = data().draw(8, 0, 0)
    noise = mine.phase.loss.objective.draw(x0, 0)
    assert set(noise.low.tolist()) <= set(mine.phase.loss.objective.levels(0).float().tolist())
    flow = lambda x, sigma, cond: teacher.guided(x, sigma, cond, 1.5)  # noqa: E731
    x = x0 + per_sample(noise.high, x0) * noise.eps
    with torch.no_grad():
        low = solver_step(flow, x, noise.high, noise.low, cond, heun=True)
        target = torch.where(per_sample(noise.low < 0.0021, x), low, student(low, noise.low, cond))
    loss = pseudo_huber(student(x, noise.high, cond), target, HUBER * 8) / (noise.high - noise.low)
    loss.mean().backward()
    for name, weight in student.named_parameters():
        assert torch.allclose(found[name], weight.grad, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("name", ["consistency", "scm"])
def test_parts_of_a_batch_give_its_gradient(name, tmp_path):
    whole = gradient_of(task(made(name, tmp_path, train_batch_size=6)))
    parts = gradient_of(task(made(name, tmp_path, train_batch_size=6, micro_batch_size=4)))
    for key, value in whole.items():
        assert torch.allclose(value, parts[key], rtol=1e-4, atol=1e-5 * float(value.abs().max() + 1)), key


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("consistency", {}),
        ("scm", {}),
        ("sid", {"student": STUDENT | {"consistency": {"steps": 2, "objective": {"name": "consistency", **FEW}}}}),
        ("sid", {"method": {"consistency": {"weight": 0.5}}}),
    ],
)
def test_a_resumed_run_is_the_run(name, more, tmp_path):
    more = {"max_train_steps": 4} | ({"method": FEW} | more if name == "consistency" else more)
    whole = run(name, tmp_path / "whole", **{"student": STUDENT} | more)
    run(name, tmp_path / "cut", **{"student": STUDENT} | more)
    without(tmp_path / "cut", 2)
    again = run(name, tmp_path / "cut", **{"student": STUDENT} | more, resume_from_checkpoint="latest")
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    moved = [key for key in whole if key.startswith("student_ema") and "num_updates" not in key]
    assert any(not torch.equal(whole[key], whole[key.replace("student_ema.module", "student")]) for key in moved
               if key.replace("student_ema.module", "student") in whole)  # fmt: skip


def test_the_start_hands_over_to_matching(tmp_path):
    start = {"steps": 2, "objective": {"name": "scm"}}
    config = made("sid", tmp_path, student=STUDENT | {"consistency": start})
    mine = task(config)
    assert isinstance(mine, DistillTask)
    assert (mine.first, mine.started) == (2, "consistency")
    first, critic = mine.update(1), copy.deepcopy(mine.critic.state_dict())
    assert "consistency/loss" in first
    assert "critic/loss" not in first
    then = mine.update(2)
    assert "critic/loss" in then
    assert "consistency/loss" not in then
    assert any(not torch.equal(value, mine.critic.state_dict()[key]) for key, value in critic.items())


def test_the_term_beside_matching_adds_its_gradient(tmp_path):
    """Weights 1 and 3 differ by twice what weight 1 adds."""

    def at(weight):
        term = None if weight is None else {"weight": weight, "objective": {"name": "consistency", **FEW}}
        mine = task(made("sid", tmp_path, method={"consistency": term}))
        mine.update(0)  # the critic alone
        return gradient_of(mine, step=1)

    none, one, three = at(None), at(1.0), at(3.0)
    for key, value in one.items():
        added = value - none[key]
        assert torch.allclose(three[key] - none[key], 3 * added, rtol=1e-3, atol=1e-4 * float(value.abs().max() + 1))
    assert max(float((one[key] - none[key]).abs().max()) for key in one) > 1e-3


def test_there_is_no_critic_and_none_is_kept(tmp_path):
    mine = task(made("consistency", tmp_path))
    assert set(mine.parts) == {"student", "student_ema", "student_optimizer"}
    assert set(mine.denoisers) == {"teacher", "student", "average"}


@pytest.mark.parametrize("name", ["consistency", "scm"])
def test_the_folder_is_sampled_by_stock_diffusers(name, tmp_path):
    from diffusers import ConsistencyModelPipeline

    from diffdistill.sampling.generate import generate

    config = made(name, tmp_path)
    mine = task(config)
    go(mine, config, tmp_path)
    mine.averaged().save_pretrained(tmp_path / "student", role="student", levels=mine.levels)
    model = Denoiser.from_pretrained(tmp_path / "student")
    assert model.levels == pytest.approx(mine.levels)
    assert model.levels[0] == pytest.approx(20.0)
    pipe = ConsistencyModelPipeline.from_pretrained(tmp_path / "student")
    for steps in (1, 2):
        images, _ = next(generate(model, num_images=1, seed=3, class_labels=[1], steps=steps))
        noise = torch.Generator().manual_seed(3 * 2654435761 % 2**32)  # of image 0
        stock = pipe(class_labels=[1], num_inference_steps=steps, generator=noise, output_type="np").images
        assert (255 * torch.from_numpy(stock[0, :, :, 0]) - images[0, 0]).abs().max() <= 0.51


def refused(**more):
    config = Distill(output_dir="o", method={"name": "consistency"}, **more)
    student_task(config, tiny_teacher(), data(), Device("no"))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            {"student": {"sigma_init": 2.5}},
            "starts from noise alone, and at student level 2.5 images of spread 0.5 still show",
        ),
        ({"student": {"sigma_init": 90.0}}, "above the teacher's highest, 80"),
        ({"student": STUDENT, "max_train_steps": 5}, "take 8 stages and there are 5 steps"),
    ],
)
def test_what_cannot_be_is_refused_before_training(more, sentence):
    with pytest.raises(ConfigError, match=sentence):
        refused(**more)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["method.intervals=[0,10]"], "method.intervals"),
        (["method.intervals=[20,10]"], "intervals is 20, 10"),
        (["critic.updates_per_step=3"], "'critic.updates_per_step' is not used"),
        (["level.mean=-1.0"], "'level.mean' is not used"),
        (["student.regression.steps=5"], "'student.regression.steps' is not used"),
        (["student.consistency.steps=5"], "'student.consistency.steps' is not used"),
        (["student.steps=2", "student.training_input=noised_data"], "'student.training_input' is not used"),
        (["method.name=scm"], r"unknown key 'method.intervals' \(only with method.name=consistency\)"),
        (["method.grid=time", "method.std=1.5"], "'method.std' is not used where levels are even"),
        (["method.adversarial.weight=1"], "unknown key 'method.adversarial'"),
    ],
)
def test_settings_that_it_does_not_have_are_refused(words, sentence):
    with pytest.raises((ConfigError, Problems), match=sentence):
        load_config(Distill, "fashion_mnist/consistency", words)


def test_two_starts_are_refused():
    with pytest.raises(ConfigError, match="both say how the run starts"):
        load_config(Distill, "fashion_mnist/quickstart", ["student.consistency.steps=5", "student.sigma_init=20"])


def test_the_run_of_a_consistency_model_is_no_first_stage(tmp_path):
    run("scm", tmp_path / "run", student=STUDENT)
    config = settings("sid", tmp_path, initialize_from=str(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="run of a consistency model, which has no critic; give its student/"):
        task(config)


def test_a_term_beside_the_matching_of_a_run_that_is_all_start_is_no_mistake(tmp_path):
    objective = {"name": "consistency", **FEW}
    student = STUDENT | {"consistency": {"steps": 6, "objective": objective}}
    mine = task(made("sid", tmp_path, student=student, method={"consistency": {"objective": objective}}))
    assert mine.first == mine.config.max_train_steps


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with a run of a step, what it was made of, and how to make it."""
    folder = tmp_path_factory.mktemp("published")
    images = {"images": data().images.permute(0, 2, 3, 1).numpy(), "labels": data().labels.numpy()}
    np.savez(folder / "images.npz", **images)
    for seed, name in enumerate(("teacher", "start")):
        tiny_teacher(seed).save_pretrained(folder / name, role="teacher")
    quick = {"train_batch_size": 2, "max_train_steps": 1, "sample_every": 0, "evaluation__at_end": False}
    where = {"teacher": "teacher", "data__path": "images.npz", "initialize_from": "start", "output_dir": "run"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = api.distill("fashion_mnist/scm", **quick, **where)
    return folder, done.model_folder.name, quick | where


def test_what_is_published_says_what_it_was_trained_by_and_began_as(published):
    folder, model, _ = published
    card = (folder / "run" / model / "README.md").read_text()
    assert "- Training: consistency distillation in continuous time (2410.11081)" in card
    assert "- Started from: `start`" in card


def test_a_run_goes_on_from_what_it_began_with_alone(published, monkeypatch, tmp_path):
    folder, _, words = published
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    tiny_teacher(seed=2).save_pretrained("other", role="teacher")
    shutil.rmtree("start")
    shutil.move("other", "start")
    more = {"max_train_steps": 2, "resume_from_checkpoint": "latest"}
    with pytest.raises(ConfigError, match="the content of initialize_from 'start' is not what"):
        api.distill("fashion_mnist/scm", **words | more)
