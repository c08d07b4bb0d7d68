"""What the log says of the step: the relative gap, by level, and the part of the pixels out of bounds, by hand."""

from types import SimpleNamespace

import pytest
import torch

from diffdistill.matching.step import LEVEL_BINS, DistributionMatching


def figures(x, teacher_x0, critic_x0, u):
    step = SimpleNamespace(teacher=SimpleNamespace(draws_texts=False), ratio=None)
    found = DistributionMatching._health(step, x, teacher_x0, critic_x0, u, None)
    return {name: float(value) for name, value in found.items()}


def test_the_gap_is_relative_to_the_teachers_own_correction():
    # Four images of one value each: what the student made, what the teacher and the critic make of it.
    x, teacher, critic = torch.tensor([[0.0, 0.5, -0.4, 0.2], [0.4, 0.1, 0.4, 0.6], [0.3, 0.0, 0.6, 0.8]])
    shape = (4, 1, 2, 2)
    x, teacher, critic = (value.reshape(4, 1, 1, 1).expand(shape) for value in (x, teacher, critic))
    by_image = [0.1 / 0.4, 0.1 / 0.4, 0.2 / 0.8, 0.2 / 0.4]
    u = torch.tensor([0.05, 0.15, 0.95, 0.5])  # the first two are of the lowest bin
    found = figures(x, teacher, critic, u)
    assert found["score_gap/relative"] == pytest.approx(sum(by_image) / 4, rel=1e-5)
    assert found["score_gap/level_0"] == pytest.approx(sum(by_image[:2]) / 2, rel=1e-5)
    assert found["score_gap/level_2"] == pytest.approx(by_image[3], rel=1e-5)
    assert found[f"score_gap/level_{LEVEL_BINS - 1}"] == pytest.approx(by_image[2], rel=1e-5)
    assert "score_gap/level_1" not in found
    assert found["x0/std"] == pytest.approx(float(x.std()), rel=1e-6)


def test_pixels_out_of_bounds_are_counted_on_both_sides():
    x = torch.tensor([-1.5, -1.05, 0.0, 1.05, 1.2, 1.3, 0.9, -0.9]).reshape(2, 1, 2, 2)
    found = figures(x, x + 0.1, x, torch.tensor([0.1, 0.9]))
    assert found["x0/saturation"] == pytest.approx(3 / 8)
