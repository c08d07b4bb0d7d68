"""The weights that depend on the level or on the sample."""

import math

import torch

from diffdistill.losses import edm_weight
from diffdistill.matching.level_mean import LevelNormaliser
from diffdistill.matching.level_weights import dmd_weight, pseudo_huber_weight


def test_edm_weight():
    torch.testing.assert_close(edm_weight(torch.tensor([2.0, 0.5])), torch.tensor([4.25, 8.0]))


def test_dmds_normaliser_is_one_over_the_mean_distance():
    x0, teacher = torch.randn(2, 6, 3, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    x0.requires_grad_()
    weight = dmd_weight(x0, teacher)
    assert weight.shape == (6, 1, 1, 1)
    assert not weight.requires_grad
    torch.testing.assert_close(weight.flatten(), 1 / (x0 - teacher).abs().mean((1, 2, 3)))
    torch.testing.assert_close(dmd_weight(x0, x0).flatten(), torch.full((6,), 1e5))


def test_pseudo_huber_norm_is_over_the_whole_sample():
    x = torch.zeros(2, 3, 4, 4)
    gap = torch.ones_like(x)
    torch.testing.assert_close(pseudo_huber_weight(x, x, x + gap, c=1.0).flatten(), torch.full((2,), 1 / 7.0))
    torch.testing.assert_close(pseudo_huber_weight(x, x, x).flatten(), torch.full((2,), 100 / 48**0.5))


def test_level_normaliser_learns_the_expected_distance_of_each_level():
    torch.manual_seed(0)
    normaliser = LevelNormaliser(bins=4, decay=0.9)
    for _ in range(200):
        u = torch.rand(64)
        x0 = torch.zeros(64, 1, 4, 4)
        teacher = torch.randn_like(x0) * (1 + (4 * u).floor()).reshape(-1, 1, 1, 1)
        normaliser(x0, teacher, u)
    normaliser.eval()
    u = torch.tensor([0.1, 0.3, 0.6, 0.9])
    weight = normaliser(torch.zeros(4, 1, 4, 4), torch.zeros(4, 1, 4, 4), u)
    expected = 1 / (math.sqrt(2 / math.pi) * torch.tensor([1.0, 2, 3, 4]))
    torch.testing.assert_close(weight.flatten(), expected, rtol=0.03, atol=0)
