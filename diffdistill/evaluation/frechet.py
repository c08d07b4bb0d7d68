"""The Fréchet distance of two Gaussians fitted to features, in float64 and one streaming pass.

    FD = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

(Dowson and Landau 1982; FID: 1706.08500.) For any factors S = A^T A the last trace is the nuclear norm of A1 A2^T, the
sum of its singular values. So no matrix square root is taken. A factor is Cholesky's where the covariance is positive
definite, an eigendecomposition with negatives clipped where rounding made it indefinite, and the centred features
themselves where there are no more images than features, which is exact and needs no covariance at all.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import as_features

Array = Tensor | np.ndarray
TOLERANCE = 1e-10  # relative error of the distance that a faster way may add


@dataclass(frozen=True)
class Gaussian:
    """Mean `(d,)` and covariance `(d, d)` of `n` images, float64; `rows`: the centred features where n <= d."""

    mean: Tensor
    covariance: Tensor
    n: int | None = None
    rows: Tensor | None = None

    def factor(self) -> tuple[Tensor, float]:
        """`A` with `A^T A = S`, and the sum of the eigenvalues that were clipped because they were negative."""
        if self.rows is not None:
            return self.rows / (len(self.rows) - 1) ** 0.5, 0.0
        lower, failed = torch.linalg.cholesky_ex(self.covariance)
        if not failed:
            return lower.T, 0.0
        values, vectors = torch.linalg.eigh(self.covariance)
        return values.clamp(min=0).sqrt()[:, None] * vectors.T, float(-values.clamp(max=0).sum())

    def problems(self) -> list[str]:
        """What a reader of the number must know, a sentence each."""
        found = []
        if self.n is not None and self.n <= len(self.mean):
            found.append(f"{self.n} images for {len(self.mean)} features: the distance is mostly small-sample bias")
        if not self.covariance.any():
            found.append("all features are constant: the images are all alike, or the extractor is blind to them")
        return found


class Moments:
    """Streaming mean and covariance of features: float64, memory independent of the number of images.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979), which does not cancel.
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)
        self._rows: list[Tensor] = []  # kept only while there are at most `dim` of them

    def update(self, features: Array) -> "Moments":
        """Add features `(N, d)`; DataError if they are not finite or of another dimension."""
        x = as_features(features, minimum=0)
        if x.shape[1] != len(self.mean):
            raise DataError(f"got {x.shape[1]} features, the statistics have {len(self.mean)}: use one extractor")
        if len(x):
            mean = x.mean(0)
            self._merge(len(x), mean, (x - mean).T @ (x - mean))
            self._rows = [*self._rows, x.clone()] if self.n <= len(self.mean) else []
        return self

    def _merge(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        total, gap = self.n + n, mean - self.mean
        self.scatter += scatter + torch.outer(gap, gap) * (self.n * n / total)
        self.mean = self.mean + gap * (n / total)
        self.n = total

    def gaussian(self) -> Gaussian:
        """The fit, with the unbiased covariance; DataError for fewer than two images."""
        if self.n < 2:
            raise DataError(f"{self.n} images: a covariance needs at least 2")
        rows = torch.cat(self._rows) if self._rows else None
        if rows is not None:
            rows = rows - rows.mean(0)
        return Gaussian(self.mean, self.scatter / (self.n - 1), self.n, rows)


@dataclass(frozen=True)
class FrechetTerms:
    """The distance and how it came about; `clipped` is the share of the traces lost to negative eigenvalues."""

    value: float
    mean_term: float
    clipped: float


def nuclear_norm(product: Tensor, tolerance: float) -> float:
    """Sum of the singular values of `(k, m)`, to an absolute error of `tolerance`.

    The eigenvalues l of P P^T are the squares, at a seventh of the cost of the singular values, but each carries an
    error of about eps * max l, which its root magnifies to eps * max l / (2 sqrt l). Where those add up to more than
    the tolerance (features that hardly vary in some direction), the singular values themselves are computed.
    """
    values = torch.linalg.eigvalsh(product @ product.T)
    roots = values.clamp(min=0).sqrt()
    if float((torch.finfo(values.dtype).eps * values[-1] / (2 * roots)).sum()) <= tolerance:
        return float(roots.sum())
    return float(torch.linalg.svdvals(product).sum())


def frechet_terms(a: Gaussian, b: Gaussian) -> FrechetTerms:
    """Fréchet distance of two Gaussians of the same dimension, with its terms."""
    if len(a.mean) != len(b.mean):
        raise DataError(f"statistics of {len(a.mean)} and {len(b.mean)} features: use one extractor for both")
    (factor_a, lost_a), (factor_b, lost_b) = a.factor(), b.factor()
    mean_term = float((a.mean - b.mean).square().sum())
    trace = float(a.covariance.trace() + b.covariance.trace())
    # By Cauchy and Schwarz the distance is at least this: a tolerance for the nuclear norm before it is known.
    least = mean_term + float(a.covariance.trace().sqrt() - b.covariance.trace().sqrt()) ** 2
    overlap = nuclear_norm(factor_a @ factor_b.T, TOLERANCE * max(least, 1e-6 * trace))
    # Rounding can leave a distance of equal sets a hair below zero.
    value = max(mean_term + trace - 2 * overlap, 0.0)
    return FrechetTerms(value, mean_term, (lost_a + lost_b) / trace if trace > 0 else 0.0)


def fit(features: Array) -> Gaussian:
    """The Gaussian of features `(N, d)`, N >= 2."""
    x = as_features(features)
    return Moments(x.shape[1]).update(x).gaussian()


def frechet_distance(real: Array, fake: Array) -> float:
    """Fréchet distance of two sets of features `(N, d)` and `(M, d)`; symmetric.

    With features of the 2015 Inception network this is FID. Warns where N <= d, or all features are constant.

    Raises:
        DataError: fewer than two images, values that are not finite, or different dimensions.
    """
    a, b = fit(real), fit(fake)
    for problem in dict.fromkeys(a.problems() + b.problems()):
        warnings.warn(problem, stacklevel=2)
    return frechet_terms(a, b).value


def frechet_from_stats(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    """Fréchet distance from means `(d,)` and covariances `(d, d)`, as other tools store them."""
    return frechet_terms(as_gaussian(mu1, sigma1), as_gaussian(mu2, sigma2)).value


def as_gaussian(mu: Array, sigma: Array, n: int | None = None) -> Gaussian:
    """Checked statistics: float64, finite, of fitting shapes, symmetric."""
    mean, cov = (torch.as_tensor(x).detach().to("cpu", torch.float64) for x in (mu, sigma))
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise DataError(
            f"mean and covariance have shapes {tuple(mean.shape)} and {tuple(cov.shape)}, not (d,) and (d, d)"
        )
    if not (mean.isfinite().all() and cov.isfinite().all()):
        raise DataError("the statistics hold NaN or infinite values: compute them again")
    if not torch.allclose(cov, cov.T, rtol=1e-4, atol=1e-6 * float(cov.abs().max())) or (cov.diagonal() < 0).any():
        raise DataError("the covariance is not symmetric with a non-negative diagonal: this is no statistics file")
    return Gaussian(mean, (cov + cov.T) / 2, n)
