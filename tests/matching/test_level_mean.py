"""The running mean by level: a level that is rarely drawn remembers what it saw."""

import pytest
import torch

from diffdistill.matching.level_mean import LevelMean


def test_a_bin_without_samples_forgets_nothing():
    mean = LevelMean(bins=2, decay=0.9, prior_count=1e-6)
    low, high = torch.full((8,), 0.25), torch.full((8,), 0.75)
    mean.update(torch.full((8,), 1.0), high)
    for _ in range(200):
        mean.update(torch.full((8,), 5.0), low)
    mean.update(torch.full((8,), 3.0), high)
    # The first eight values count 0.9, the last eight 1, whatever happened in the other bin.
    assert mean(torch.tensor([0.75])).item() == pytest.approx((0.9 * 1 + 1 * 3) / 1.9, rel=1e-4)
    assert mean(torch.tensor([0.25])).item() == pytest.approx(5, rel=1e-4)
