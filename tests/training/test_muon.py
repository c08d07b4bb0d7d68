"""Muon: orthogonal updates, which weights get them, and that the regression uses and resumes it."""

import pytest
import torch
from runs import settings, task
from tiny import tiny_teacher
from torch import nn

from diffdistill.training.optim.muon import Muon, orthogonal, split_weights

MUON = {"steps": 4, "pairs": 8, "solver_steps": 2, "muon": {}}


@pytest.mark.parametrize("shape", [(5, 5), (4, 30), (30, 4)])
def test_an_update_has_the_singular_vectors_of_the_gradient_and_values_near_one(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    rotated = u.T @ orthogonal(gradient) @ vh.T
    assert s.max() / s.min() > 1.5  # nothing to do otherwise
    assert torch.allclose(rotated, torch.diag(rotated.diagonal()), atol=1e-9)
    assert rotated.diagonal().min() > 0.65
    assert rotated.diagonal().max() < 1.25
    assert torch.allclose(orthogonal(1e3 * gradient), orthogonal(gradient), atol=1e-6)


def test_the_average_is_nesterovs_and_a_kernel_is_a_matrix():
    kernel = nn.Parameter(torch.zeros(8, 2, 3, 1))
    optimizer = Muon([kernel], lr=0.5, momentum=0.9)
    first, second = torch.randn(8, 2, 3, 1), torch.randn(8, 2, 3, 1)
    average = torch.zeros_like(kernel)
    expected = torch.zeros(8, 6)
    for gradient in (first, second):
        kernel.grad = gradient.clone()
        optimizer.step()
        average = 0.9 * average + 0.1 * gradient
        expected -= 0.5 * (8 / 6) ** 0.5 * orthogonal((0.1 * gradient + 0.9 * average).flatten(1))
    assert torch.allclose(kernel.detach().flatten(1), expected, atol=1e-5)


def test_norms_biases_embeddings_and_the_images_own_layers_are_left_to_adamw():
    network = tiny_teacher().network
    weights, rest = split_weights(network)
    names = {id(p): name for name, p in network.named_parameters()}
    inner, others = ({names[id(p)] for p in part} for part in (weights, rest))
    assert "mid_block.resnets.0.conv1.weight" in inner
    assert {"conv_in.weight", "conv_out.weight", "class_embedding.weight", "conv_norm_out.weight"} <= others
    assert inner | others == set(names.values())
    assert not inner & others
    assert all(name.endswith("weight") and "embed" not in name for name in inner)


def test_both_optimisers_of_the_regression_are_checkpointed(tmp_path):
    config = settings("dmd2", tmp_path, max_train_steps=5, student={"regression": MUON})
    made = task(config)
    before = {name: value.clone() for name, value in made.student.state_dict().items()}
    metrics = made.update(0)
    assert {"regression/learning_rate", "regression_muon/learning_rate"} <= metrics.keys()
    assert {"regression_optimizer", "regression_muon_optimizer"} <= made.parts.keys()
    after = made.student.state_dict()
    for name in ("network.mid_block.resnets.0.conv1.weight", "network.conv_in.weight"):
        assert not torch.equal(before[name], after[name])
