"""Adafactor as an option of every optimiser: its update, its small state, its resume."""

import pytest
import torch
from pydantic import ValidationError
from runs import run, without
from torch import nn

from diffdistill.optimizers import Optimizer
from diffdistill.training.optim.updater import Updater

ADAFACTOR = {"name": "adafactor", "learning_rate": 1e-2}


def test_a_gradient_of_rank_one_moves_each_weight_by_the_rate_times_the_tensors_root_mean_square():
    """The second moment's rows and columns then give it exactly, so the first update is the gradient's sign."""
    weight = nn.Parameter(torch.randn(6, 5))
    before = weight.detach().clone()
    updater = Updater("student", [weight], Optimizer(**ADAFACTOR, max_grad_norm=None), 10)
    sign = torch.where(torch.rand(6, 5) < 0.5, -1.0, 1.0)
    weight.grad = sign * torch.outer(torch.rand(6) + 0.5, torch.rand(5) + 0.5)
    updater.step(0)
    expected = before - 1e-2 * before.square().mean().sqrt() * sign
    assert torch.allclose(weight.detach(), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 50), (60, 10, 5), (60, 2, 5, 5)])
def test_its_state_is_a_row_and_a_column_of_each_matrix_and_a_kernel_is_a_matrix(shape):
    start, gradients = torch.randn(60, 50), torch.randn(3, 60, 50)
    weights = [nn.Parameter(start.clone()), nn.Parameter(start.view(shape).clone())]
    memory = weights[1].data_ptr()
    for weight in weights:
        updater = Updater("student", [weight], Optimizer(**ADAFACTOR), 10)
        for step, gradient in enumerate(gradients):
            weight.grad = gradient.view(weight.shape).clone()
            updater.step(step)
        assert sum(value.numel() for value in updater.optimizer.state[weight].values()) == 60 + 50 + 1
    assert (weights[1].shape, weights[1].data_ptr()) == (shape, memory)
    assert torch.equal(weights[0].flatten(), weights[1].flatten())


@pytest.mark.parametrize("kind", ["train", "dmd2"])
def test_a_run_with_it_resumes_bit_equal(tmp_path, kind):
    settings = {"optimizer": ADAFACTOR} if kind == "train" else {"student": {"optimizer": ADAFACTOR}}
    whole = run(kind, tmp_path / "whole", **settings)
    run(kind, tmp_path / "parts", checkpoint_every=1, **settings)
    without(tmp_path / "parts", 3)
    resumed = run(kind, tmp_path / "parts", checkpoint_every=1, resume_from_checkpoint="latest", **settings)
    assert any("row_var" in name for name in whole)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_first_moment_is_refused():
    with pytest.raises(ValidationError, match=r"adafactor keeps no first moment; set betas to \[0.0, 0.999\]"):
        Optimizer(name="adafactor", betas=(0.9, 0.999))
