"""Metrics, features, rewards and the measure of exposure bias on the device: the CPU's figures."""

import math
from functools import partial

import torch
from standin import WAITS

from diffdistill.data import load_images
from diffdistill.evaluation import Evaluator
from diffdistill.evaluation.two_halves import two_halves
from diffdistill.rewards import load_reward
from diffdistill.sampling.one_more_step import OneMoreStep, train_one_more_step

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


def test_two_halves_wait_once_a_batch(there):
    def gaussian(variance, x, sigma, rows):
        return x * (variance / (variance + sigma**2))[:, None, None, None] + 0.1

    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for device in (there, "cpu"):
        on_device = images.to(device)
        WAITS.clear()
        found.append(two_halves(partial(gaussian, 1.0), partial(gaussian, 0.3), on_device, batch_size=3))
        assert device == "cpu" or WAITS.count == 2, (WAITS.read, WAITS.sent)
    assert all(math.isclose(one.agreement, two.agreement, rel_tol=1e-5) for one, two in zip(*found, strict=True))


def test_a_learned_start_is_trained_without_waiting(there):
    psi = OneMoreStep((1, 4, 4), classes=2, side=2).to(there)
    batch = torch.ones(3, 1, 4, 4).to(there), torch.tensor([0, 1, 1]).to(there)
    WAITS.clear()
    assert len(train_one_more_step(psi, [batch] * 3, steps=3)) == 3
    assert WAITS.count == 1, (WAITS.read, WAITS.sent)  # for the losses, at the end


def test_a_reward_reads_nothing(there):
    reward, images = load_reward("classifier"), torch.rand(4, 1, 28, 28)
    labels = torch.arange(4)
    theirs = reward(images, labels)
    on_device = reward.to(there), images.to(there), labels.to(there)
    WAITS.clear()
    scores = on_device[0](*on_device[1:])
    assert WAITS.count == 0
    assert torch.allclose(scores.cpu(), theirs, atol=1e-6)
