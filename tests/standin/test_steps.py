"""One update of every method, optimiser and phase: the CPU's numbers, and no wait of the host."""

import math

import pytest
import torch
from standin import WAITS, in_use
from standin_runs import near, numbers, on, updated

from diffdistill import machine
from diffdistill.methods import METHODS
from diffdistill.rewards import CallableReward
from diffdistill.rewards.term import RewardTerm

ONE = {"critic": {"updates_per_step": 1}}
CASES = {
    **dict.fromkeys(METHODS.names(), ONE),
    "consistency": ONE | {"options": {"intervals": (2, 4)}},
    "diff_instruct_pp": ONE | {"options": {"guidance_scale": 2.0}},
    "diff_instruct_star": ONE | {"options": {"guidance_scale": 2.0}},
    "sid": ONE | {"micro_batch_size": 3},
    "diff_instruct, smooth": ONE | {"steps": 3, "options": {"smoothness": {"every": 1}}, "student": {"steps": 1}},
    "dmd2, between images": ONE | {"options": {"adversarial": {"mix": 1.0, "taps": ("conv_in",)}}},
    "train": {},
    "train, heavy tails": {"noise": {"law": "student_t", "dimension": 3.0}},
    "train, consistency": {"objective": {"name": "consistency", "intervals": (2, 4)}},
}


def agree(device, kind, folder, steps=1, **more):
    """The task on the device, after steps that computed what the CPU does; the last waited for nothing."""
    task, cpu = on(device, kind, folder, **more), on("cpu", kind, folder, **more)
    updated(task, steps)
    assert (dict(WAITS.read), dict(WAITS.sent)) == ({}, {})
    updated(cpu, steps)
    assert near(numbers(task), numbers(cpu))
    return task


@pytest.mark.parametrize("kind", CASES)
def test_a_step_is_the_cpus_and_waits_for_nothing(kind, there, tmp_path):
    agree(there, kind.partition(",")[0], tmp_path, **CASES[kind])


def test_a_step_under_autocast_waits_for_nothing(there, tmp_path, monkeypatch):
    """With CUDA's lists of what is cast: a group norm gives float32 there, and on the CPU what it was given."""
    monkeypatch.setattr("standin_runs.PRECISION", "bf16")
    seen = set()
    task = on(there, "dmd2", tmp_path, **ONE)
    for name, layer in task.student.network.named_modules():
        if name in ("mid_block.resnets.0.conv1", "mid_block.resnets.0.norm1"):
            layer.register_forward_hook(lambda layer, _, out: seen.add((type(layer).__name__, out.dtype)))
    metrics = updated(task)
    assert seen == {("Conv2d", torch.bfloat16), ("GroupNorm", torch.float32)}
    assert (dict(WAITS.read), dict(WAITS.sent)) == ({}, {})
    assert all(math.isfinite(float(value)) for name, value in metrics.items() if "level_" not in name)


def test_a_start_by_regression_with_muon(there, tmp_path):
    regression = {"steps": 3, "pairs": 8, "solver_steps": 2, "muon": {}}
    agree(there, "diff_instruct", tmp_path, steps=2, student={"steps": 2, "regression": regression})


def test_a_reward_that_reads_the_names_of_classes(there, tmp_path):
    def score(images, prompts):
        return images.flatten(1).mean(1) * torch.tensor([float(len(p)) for p in prompts]).to(images.device)

    task = on(there, "diff_instruct_pp", tmp_path, options={"guidance_scale": 2.0}, **ONE)
    task.reward = RewardTerm(CallableReward(score, needs_prompt=True), 1.0, class_prompts=("a", "bb", "ccc"))
    asked = []
    task.method.reward = task.reward
    score_of = task.reward.gradient
    task.reward.gradient = lambda x, prompts: (asked.append(prompts), score_of(x, prompts))[1]
    updated(task)
    assert not WAITS.read
    assert {type(text) for texts in asked for text in texts} == {str}


def test_adafactor_is_torchs_own_and_asks_for_two_numbers_a_weight(there, tmp_path):
    task = on(there, "train", tmp_path, optimizer={"name": "adafactor"})
    updated(task)
    assert WAITS.read.total() <= 2 * len(list(task.model.parameters()))


def test_without_float64(monkeypatch, tmp_path):
    """As on Apple's GPUs."""
    monkeypatch.setattr(machine, "WITHOUT_FLOAT64", {"standin"})
    with in_use(float64=False) as device:
        for kind, more in (("train", CASES["train, heavy tails"]), ("uni_instruct", ONE)):
            updated(on(device, kind, tmp_path, **more), 1)
