"""The error of a figure, beside the delta method's."""

import math

import pytest
import torch

from diffdistill.evaluation.frechet import fit
from diffdistill.evaluation.frechet_error import bootstrap_error


def test_the_bootstraps_error_is_the_delta_methods():
    """One feature, Gaussian: the distance is (m - m_r)^2 + (s - s_r)^2, variance (4 dm^2 + 2 ds^2) s^2 / n."""
    n, mean, scale = 3000, 0.7, 1.5
    generator = torch.Generator().manual_seed(2)
    reference = fit(torch.randn(200_000, 1, generator=generator, dtype=torch.float64))
    sample = mean + scale * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    want = math.sqrt((4 * mean**2 + 2 * (scale - 1) ** 2) * scale**2 / n)
    assert bootstrap_error(reference, sample, resamples=400) == pytest.approx(want, rel=0.12)


def test_the_error_is_of_all_images_where_only_a_part_was_resampled():
    """Twice as many images have an error 1 / sqrt(2) as large."""
    generator = torch.Generator().manual_seed(2)
    reference = fit(torch.randn(50_000, 1, generator=generator, dtype=torch.float64))
    sample = 0.7 + 1.5 * torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    few, many = (bootstrap_error(reference, part, resamples=300) for part in (sample[:1000], sample))
    assert few / many == pytest.approx(2, rel=0.15)
