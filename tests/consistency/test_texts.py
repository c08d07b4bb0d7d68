"""Consistency distillation of text-to-image pipelines, whole or by adapters, guidance folded in."""

import pytest
import torch

pytest.importorskip("transformers")

from runs import go
from text_drawing import ours, stock
from text_world import MAKERS, settings, task, world

from diffdistill.errors import ConfigError

FEW = {"grid": "time", "intervals": (2, 4)}
LORA = {"student": {"steps": 2, "lora": {"rank": 2}, "optimizer": {"learning_rate": 0.02}, "ema_decay": 0.0}}
WHOLE = {"student": {"steps": 2, "optimizer": {"learning_rate": 0.001}, "ema_decay": 0.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return world(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("method", "more"), [("consistency", LORA), ("scm", WHOLE)], ids=["lora", "whole"])
def test_a_student_learns_alone_and_draws_the_same_in_stock_diffusers(folder, tmp_path, kind, method, more):
    options = FEW if method == "consistency" else {}
    made = task(settings(folder, kind, method, images=True, options=options, max_train_steps=2, **more))
    teacher = {name: value.clone() for name, value in made.teacher.network.state_dict().items()}
    for step in range(2):
        torch.manual_seed(step)
        assert torch.isfinite(made.update(step)["consistency/loss"])
    now = made.teacher.network.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in teacher.items())
    average = made.averaged()
    average.save_pretrained(tmp_path / "student", role="student", levels=made.levels)
    latents, seed = ours(average, "a red thing")
    before, _ = ours(made.teacher.with_network(made.teacher.network, average.metadata), "a red thing")
    assert (latents - before).abs().max() > 1e-3 * latents.abs().max()
    theirs = stock(tmp_path / "student", "a red thing", seed)
    torch.testing.assert_close(latents, theirs, rtol=1e-4, atol=1e-4 * float(latents.abs().max()))


def test_guidance_is_folded_into_the_student(folder):
    """The target is a step of the guided teacher: another guidance is another gradient."""

    def gradient(scale):
        options = {"guidance_scale": scale, **FEW}
        made = task(settings(folder, method="consistency", images=True, options=options, **LORA))
        found = []
        made.phase.updaters[0].optimizer.step = lambda: found.extend(p.grad.clone() for p in made.student.parameters())
        torch.manual_seed(0)
        made.update(0)
        return found

    plain, guided = gradient(1.0), gradient(7.0)
    assert any((a - b).abs().max() > 1e-3 * a.abs().max() for a, b in zip(plain, guided, strict=True))


def test_prompts_alone_are_refused(folder):
    data = {"prompts": str(folder / "prompts.txt"), "image_size": 16}
    with pytest.raises(ConfigError, match=r"a consistency loss noises images, and data\.prompts .* prompts alone"):
        task(settings(folder, method="consistency", images=True, options=FEW, data=data))


@pytest.mark.parametrize(("kind", "time"), [("sd", 399), ("sd3", 500)])
def test_a_first_time_at_which_images_show_is_refused(folder, kind, time):
    with pytest.raises(ConfigError, match=r"starts from noise alone.*leave student\.timesteps and student.shift out"):
        task(settings(folder, kind, "scm", images=True, student={"timesteps": (time,), "lora": {"rank": 2}}))


def test_a_start_and_a_term_are_taken_by_matching(folder, tmp_path):
    start = {"steps": 1, "objective": {"name": "consistency", "grid": "time", "intervals": (4, 4)}}
    student = {"steps": 1, "lora": {"rank": 2}, "consistency": start}
    options = {"consistency": {"weight": 0.1, "objective": {"name": "scm"}}, "adversarial": None}
    more = {"output_dir": str(tmp_path), "critic": {"lora": {"rank": 2}}}
    made = task(settings(folder, images=True, options=options, student=student, **more))
    go(made, made.config, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert ["consistency/loss" in line for line in lines[:3]] == [True, False, True]
