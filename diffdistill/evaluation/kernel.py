"""Kernel Inception Distance: the squared maximum mean discrepancy with a cubic kernel, without bias."""

import math

import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import Estimate, as_pair
from diffdistill.evaluation.draws import content_keys, ranked
from diffdistill.evaluation.frechet import Array


def polynomial_mmd(x: Tensor, y: Tensor, degree: int = 3) -> float:
    """Unbiased MMD^2 of `(m, d)` and `(m, d)` with `k(x, y) = (x . y / d + 1)^degree` (1801.01401, equation 4)."""
    m, n, d = len(x), len(y), x.shape[1]
    xx, yy, xy = ((a @ b.T / d + 1) ** degree for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - xx.trace()) / (m * (m - 1)) + (yy.sum() - yy.trace()) / (n * (n - 1))
    return float(within - 2 * xy.mean())


def kernel_distance(
    real: Array, fake: Array, *, subsets: int = 100, subset_size: int = 1000, degree: int = 3, seed: int = 0
) -> Estimate:
    """KID (1801.01401) of features `(N, d)` and `(M, d)`: the mean over random subsets, unbiased, can be negative.

    Subsets have `min(subset_size, N // 2, M // 2)` images. They overlap, so their spread s alone understates the error
    of the mean. They depend on the images and the seed, not on the order of the images; one that is in both sets does
    not meet itself. With f = subset size / min(N, M) the standard error is `s sqrt(f / (1 - f) + 1 / subsets)`: the
    subsampling estimate of the error that the *whole* sets leave, and that of the finite number of subsets.

    >>> import torch
    >>> real, fake = torch.randn(2, 400, 8, generator=torch.Generator().manual_seed(0))
    >>> value, error = kernel_distance(real, fake)
    >>> abs(value) < 3 * error, float(kernel_distance(real, 2 * fake)) > 1
    (True, True)

    Raises:
        DataError: fewer than four images, values that are not finite, different dimensions, or no subsets.
    """
    x, y = as_pair(real, fake, minimum=4)
    if subsets < 2 or subset_size < 2:
        raise DataError(f"{subsets} subsets of {subset_size} images: at least 2 of each are needed")
    smaller = min(len(x), len(y))
    size = min(subset_size, smaller // 2)
    mine, theirs = content_keys(x), content_keys(y)
    values = torch.empty(subsets, dtype=torch.float64)
    for i in range(subsets):
        word = seed * subsets + i
        # The lowest ranks of one set and the highest of the other: an image that is in both must not meet itself.
        chosen, others = ranked(mine, word)[:size], ranked(theirs, word)[-size:]
        values[i] = polynomial_mmd(x[chosen], y[others], degree)
    part = size / smaller
    return Estimate(float(values.mean()), float(values.std()) * math.sqrt(part / (1 - part) + 1 / subsets))
