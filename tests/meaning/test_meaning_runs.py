"""The real `DistillTask` where everything is Gaussian: the student's divergence from the teacher has a closed form and
must fall, by much more than it would where a sign is wrong.
"""

import warnings

import pytest
import torch
from by_hand import process_named
from torch import nn
from worlds import GaussianNetwork, gaussian_data, gaussian_kl, small_network

from diffdistill.config.schema import Distill
from diffdistill.denoiser import Denoiser
from diffdistill.training.device import Device
from diffdistill.training.randomness import seed_step
from diffdistill.training.tasks.distill import DistillTask

CPU = Device("no")
MEAN, SCALE, OFFSETS, GUIDANCE = 0.2, 0.35, (0.15, -0.15, 0.0), 2.0
TARGETS = [MEAN + GUIDANCE * offset for offset in OFFSETS[:2]]  # the means of the guided teacher's classes
UPDATES = 40
METHODS = {
    "diff_instruct": {},
    "dmd2": {},
    "f_distill": {"divergence": "jensen_shannon"},
    "sid": {"alpha": 1.0},
    "sim": {},
    "uni_instruct": {"divergence": "forward_kl"},
    "diff_instruct_pp": {"guidance_scale": GUIDANCE},
    "diff_instruct_star": {"guidance_scale": GUIDANCE},
}
EYES = {"weight": 0.02, "optimizer": {"learning_rate": 0.01}}


def task_of(method, steps=1, classes=False, kind="edm", data=None, seed=0, **more):
    """Rates for two numbers to be learned in some dozens of updates."""
    teacher = GaussianNetwork(MEAN, SCALE, kind, num_class_embeds=3 if classes else None)
    if classes:
        teacher.class_embedding.weight.data[:, 0] = torch.tensor(OFFSETS)
    optimizer = {"learning_rate": 0.05, "betas": (0.0, 0.99), "schedule": "linear"}
    settings = {
        "output_dir": "none", "seed": seed, "max_train_steps": UPDATES, "train_batch_size": 32, "method": method,
        "student": {"steps": steps, "optimizer": optimizer},
        "critic": {"updates_per_step": 4, "optimizer": optimizer},
    }  # fmt: skip
    config = Distill.model_validate({"teacher": "gaussian", **settings, **more})
    denoiser = Denoiser(teacher, process_named(kind), null_class=2 if classes else None).eval()
    data = data or gaussian_data(TARGETS if classes else (MEAN,), SCALE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rewarded method without a reward
        return DistillTask(config, denoiser, data, CPU)


def train(task, updates=UPDATES):
    for step in range(updates):
        seed_step(task.config.seed, step)
        task.update(step)
    return task


def moments(task, model=None):
    """Mean and scale of the pixels that the student makes, one list an input level, one entry a class."""
    model, found = model or task.student, []
    generator = torch.Generator().manual_seed(11)
    classes = [None] if task.student.num_classes is None else list(range(task.student.num_classes))
    for label in classes:
        x = model.process.start_scale(task.levels[0]) * torch.randn(256, 1, 8, 8, generator=generator)
        rows = []
        for k, level in enumerate(task.levels):
            cond = None if label is None else torch.full((256,), label)
            with torch.no_grad():
                x0 = model(x, torch.full((256,), level), cond)
            rows.append((x0.mean().item(), x0.std().item()))
            if k + 1 < len(task.levels):
                x = x0.clamp(-1, 1) + task.levels[k + 1] * torch.randn(256, 1, 8, 8, generator=generator)
        found.append(rows)
    return found


def divergence(task, model=None, scale=SCALE):
    """KL(student || guided teacher), nats a pixel, mean over classes and input levels."""
    targets = TARGETS if task.student.num_classes else [MEAN]
    kls = [
        gaussian_kl(mean, spread, target, scale)
        for rows, target in zip(moments(task, model), targets, strict=True)
        for mean, spread in rows
    ]
    return sum(kls) / len(kls)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_brings_the_student_to_the_teacher(name, adversarial, steps):
    needs = name in ("f_distill", "uni_instruct")
    eyes = EYES if adversarial else EYES | {"weight": 0.0} if needs else None
    settings = METHODS[name]
    task = task_of({"name": name, "adversarial": eyes, **settings}, steps, classes="guidance_scale" in settings)
    before = divergence(task)
    train(task)
    after, kept = divergence(task), divergence(task, task.averaged())
    # The least that one network can do at four levels at once is a twelfth of the start.
    assert after < (0.1 if steps == 1 else 0.25) * before
    assert kept < (0.1 if steps == 1 else 0.25) * before


@pytest.mark.parametrize(("name", "features"), [("dmd2", "teacher"), ("sid", "critic")])
def test_the_adversarial_term_draws_the_student_from_the_teacher_to_the_data(name, features):
    """Data of another mean than the teacher's: the student ends between them, and at the teacher without the term."""

    def ends(weight):
        eyes = {"weight": weight, "features": features, "critic_weight": 1.0, "optimizer": {"learning_rate": 0.03}}
        task = task_of({"name": name, "adversarial": eyes, "level_weight": "none"}, data=gaussian_data((-0.3,), SCALE))
        return moments(train(task))[0][0][0]

    alone, drawn = ends(0.0), ends(0.3)
    assert alone == pytest.approx(MEAN, abs=0.06)
    assert -0.5 < drawn < MEAN - 0.1


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_networks_with_training_steps_are_brought_to_the_teacher_too(kind):
    task = task_of({"name": "sid", "alpha": 0.5}, kind=kind)
    before = divergence(task)
    assert divergence(train(task)) < 0.1 * before


IN_PARTS = {
    **{name: {"name": name, **METHODS[name]} for name in METHODS},
    "dmd2, dmd_level": {"name": "dmd2", "level_weight": "dmd_level"},
    "dmd2, critic's features": {"name": "dmd2", "adversarial": {"features": "critic", "r1": 0.5}},
    "sid, dmd_level": {"name": "sid", "level_weight": "dmd_level"},
    "uni_instruct, at once": {"name": "uni_instruct", "critic_warmup": 0.0, "fisher_warmup": 0.0},
}


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_run_in_parts_is_the_run_whole(name):
    """Three updates of two steps, a batch of five in parts of two, two and one: weights, averages, counts."""

    def weights(size):
        optimizer = {"learning_rate": 1e-3, "betas": (0.0, 0.99)}
        settings = {
            "output_dir": "none", "teacher": "small", "max_train_steps": 3, "train_batch_size": 5,
            "method": IN_PARTS[name], "student": {"steps": 2, "optimizer": optimizer},
            "critic": {"updates_per_step": 4, "optimizer": optimizer}, "micro_batch_size": size,
        }  # fmt: skip
        teacher = Denoiser(small_network(4), process_named("edm"), null_class=3).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            task = DistillTask(Distill.model_validate(settings), teacher, gaussian_data((0.1, 0.0, -0.2), 0.3), CPU)
        train(task, 3)
        found = {f"{k}.{n}": v for k, p in task.parts.items() if isinstance(p, nn.Module) for n, v in state(p).items()}
        return found

    whole, parts = (weights(size) for size in (None, 2))
    moved = small_network(4).state_dict()["conv_in.weight"]
    assert not torch.equal(whole["student.network.conv_in.weight"], moved)
    assert whole.keys() == parts.keys()
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-5, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}
