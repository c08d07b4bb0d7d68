"""RAFT: the best of K and a choice of K by softmax, against order statistics and limits."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from diffdistill.alignment.raft import best_of, chosen, kl_of_best, softmax_choice

COUNT = 40000
# Means of the best of K, KL, and means of what softmax of x / 2 keeps, of N(0, 1).
BEST = {2: (0.5642, 0.193), 4: (1.0294, 0.636), 8: (1.4236, 1.204), 16: (1.7660, 1.835), 32: (2.0697, 2.497)}
SOFT = {2: 0.229, 4: 0.351, 16: 0.460, 64: 0.488}


def samples(candidates, seed=0):
    return torch.randn(COUNT, candidates, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("candidates", "mean", "kl"), [(k, *both) for k, both in BEST.items()])
def test_the_best_of_k_is_the_largest_order_statistic(candidates, mean, kl):
    exact = quad(lambda x: x * candidates * norm.pdf(x) * norm.cdf(x) ** (candidates - 1), -8, 8)[0]
    assert exact == pytest.approx(mean, abs=5.1e-5)
    x = samples(candidates)
    kept = x.gather(1, best_of(x)[:, None])
    assert kept.mean().item() == pytest.approx(exact, abs=0.015)
    assert kl_of_best(candidates) == pytest.approx(kl, abs=5.1e-4)

    def information(x):  # of the largest's density over the model's
        ratio = candidates * norm.cdf(x) ** (candidates - 1)
        return norm.pdf(x) * ratio * math.log(ratio) if ratio > 0 else 0.0

    assert quad(information, -12, 12)[0] == pytest.approx(kl_of_best(candidates), abs=1e-6)


@pytest.mark.parametrize(("candidates", "mean"), SOFT.items())
def test_choices_by_softmax_have_their_means_and_come_to_the_tilted_law(candidates, mean):
    x = samples(candidates, seed=candidates)
    u = (torch.randperm(COUNT, generator=torch.Generator().manual_seed(1)) + 0.5) / COUNT
    kept = x.gather(1, softmax_choice(x, u, scale=0.5)[:, None])
    assert kept.mean().item() == pytest.approx(mean, abs=0.015)
    if candidates == 64:  # N(1/2, 1), which keeps its variance
        assert kept.var().item() == pytest.approx(1, abs=0.03)
        assert samples(64).amax(1).var() < 0.3  # as the best of K does not


def test_a_row_chooses_by_its_probabilities_alone():
    scores = torch.tensor([[1.0, 3.0, 2.0]]).expand(10000, 3)
    u = (torch.arange(10000) + 0.5) / 10000
    counts = torch.bincount(softmax_choice(scores, u, scale=2.0), minlength=3) / 10000
    torch.testing.assert_close(counts, (2 * scores[0]).softmax(0), atol=2e-4, rtol=0)
    assert torch.equal(softmax_choice(scores + 1e4, u, 2.0), softmax_choice(scores, u, 2.0))
    assert softmax_choice(torch.tensor([[0.0, 0.0]]), torch.tensor([1.0])).item() <= 1  # never past the last
    ties = torch.tensor([[2.0, 2.0, 1.0]])
    assert best_of(ties).item() == chosen(ties, "best", torch.tensor([0.99])).item() == 0
    assert chosen(ties, "softmax", torch.tensor([0.99])).item() == 2


def test_the_largest_scale_keeps_the_best():
    scores = torch.tensor([[1e3, 2e3, 3e3], [2.0, 1.0, 2.0]])
    assert softmax_choice(scores, torch.tensor([0.5, 0.9]), 1e307).tolist() == [2, 2]
