"""Metrics, features, rewards and the measure of exposure bias on the device: the CPU's figures."""

import math

import torch
from standin import WAITS

from diffdistill.data import load_images
from diffdistill.evaluation import Evaluator
from diffdistill.rewards import load_reward

METRICS = ("fid", "kid", "prdc", "is", "per_class_fid", "neighbours")


def figures(device):
    real = load_images("builtin:fashion_mnist", split="test", limit=120)
    evaluator = Evaluator(real, None, METRICS, device=device, resamples=0)
    found = evaluator(real.images.flip(-1), labels=real.labels)["metrics"]
    return {name: entry["value"] for name, entry in found.items() if isinstance(entry.get("value"), float)}


def test_figures_are_the_cpus(there):
    mine, cpu = figures(there), figures("cpu")
    assert mine.keys() == cpu.keys()
    assert all(math.isclose(mine[name], cpu[name], rel_tol=1e-6) for name in mine), (mine, cpu)


def test_a_reward_reads_nothing(there):
    reward, images = load_reward("classifier"), torch.rand(4, 1, 28, 28)
    labels = torch.arange(4)
    theirs = reward(images, labels)
    on_device = reward.to(there), images.to(there), labels.to(there)
    WAITS.clear()
    scores = on_device[0](*on_device[1:])
    assert WAITS.count == 0
    assert torch.allclose(scores.cpu(), theirs, atol=1e-6)
