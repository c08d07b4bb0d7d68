"""The Fréchet distance of two Gaussians fitted to features, in float64 and one streaming pass.

    FD = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

(Dowson and Landau 1982; FID: 1706.08500.) For any factors S = A^T A the last trace is the nuclear norm of A1 A2^T, the
sum of its singular values. So no matrix square root is taken. A factor is Cholesky's where the covariance is positive
definite, an eigendecomposition with negatives clipped where it is not, and the centred features themselves where there
are no more images than features, which is exact and needs no covariance at all.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import Array, as_features, as_pair
from diffdistill.evaluation.moments import Gaussian, Moments


@dataclass(frozen=True)
class FrechetTerms:
    """The distance and how it came about; `clipped` is the share of the traces lost to negative eigenvalues."""

    value: float
    mean_term: float
    clipped: float


def nuclear_norm(product: Tensor, log_det: float | None) -> float:
    """Sum of the singular values of `(k, m)`; `log_det` is the sum of their logarithms where it is known.

    The eigenvalues of P P^T are their squares, at a seventh of the cost, but know small ones to eps of the largest
    only. They are taken where their product is right to 1e-5: then the wrong ones are below 1e-5 of the largest, and
    the sum is right to 1e-10 of it. In practice it is to 1e-13, because `overlap` sorts the features.
    """
    if log_det is not None:
        values = torch.linalg.eigvalsh(product @ product.T)
        if (values > 0).all() and abs(float(values.log().sum()) / 2 - log_det) < 1e-5:
            return float(values.sqrt().sum())
    return float(torch.linalg.svdvals(product).sum())


def varying(a: Gaussian, b: Gaussian) -> Tensor:
    """The features that vary in both sets, by falling variance, so that Cholesky's factors are graded and small
    eigenvalues keep their digits. One that is constant in a set adds nothing, and would make the covariance singular.
    """
    variances = torch.stack([a.covariance.diagonal(), b.covariance.diagonal()])
    order = variances.sum(0).argsort(descending=True)
    return order[(variances[:, order] > 0).all(0)]


def overlap(a: Gaussian, b: Gaussian) -> tuple[float, float]:
    """`tr (S1 S2)^(1/2)`, and the sum of the eigenvalues that were clipped because they were negative."""
    order = varying(a, b)
    one, other = a.factor(order), b.factor(order)
    known = one.log_det is not None and other.log_det is not None
    log_det = one.log_det + other.log_det if known else None  # type: ignore[operator]
    return nuclear_norm(one.matrix @ other.matrix.T, log_det), one.clipped + other.clipped


def frechet_terms(a: Gaussian, b: Gaussian) -> FrechetTerms:
    """Fréchet distance of two Gaussians of the same dimension, with its terms."""
    if len(a.mean) != len(b.mean):
        raise DataError(f"statistics of {len(a.mean)} and {len(b.mean)} features: use one extractor for both")
    mean_term = float((a.mean - b.mean).square().sum())
    trace = float(a.covariance.trace() + b.covariance.trace())
    shared, clipped = overlap(a, b)
    # Rounding can leave a distance of equal sets a hair below zero.
    value = max(mean_term + trace - 2 * shared, 0.0)
    return FrechetTerms(value, mean_term, clipped / trace if trace > 0 else 0.0)


def fit(features: Array) -> Gaussian:
    """The Gaussian of features `(N, d)`, N >= 2."""
    x = as_features(features)
    return Moments(x.shape[1]).update(x).gaussian()


def frechet_distance(real: Array, fake: Array) -> float:
    """Fréchet distance of two sets of features `(N, d)` and `(M, d)`; symmetric.

    With features of the 2015 Inception network this is FID. Warns where N <= d, or all features are constant.

    Two sets that differ by a shift of 2 in one of three features are 4 apart, the squared shift:

    >>> import torch
    >>> real = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    >>> round(frechet_distance(real, real + torch.tensor([2.0, 0.0, 0.0])), 5)
    4.0

    Raises:
        DataError: fewer than two images, values that are not finite, or different dimensions.
    """
    a, b = fit(real), fit(fake)
    for problem in dict.fromkeys(a.problems() + b.problems()):
        warnings.warn(problem, stacklevel=2)
    return frechet_terms(a, b).value


def frechet_from_stats(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    """Fréchet distance from means `(d,)` and covariances `(d, d)`, as other tools store them; in float64.

    >>> import torch
    >>> mean, covariance = torch.zeros(2), torch.eye(2)
    >>> round(frechet_from_stats(mean, covariance, mean + 3, covariance), 6)  # 3^2 + 3^2
    18.0
    >>> round(frechet_from_stats(mean, covariance, mean, 4 * covariance), 6)  # (2 - 1)^2 + (2 - 1)^2, of deviations
    2.0

    Raises:
        DataError: shapes that do not fit, values that are not finite, or a covariance that is none.
    """
    return frechet_terms(as_gaussian(mu1, sigma1), as_gaussian(mu2, sigma2)).value


def per_class_frechet(
    real: Array,
    real_labels: Tensor,
    fake: Array,
    fake_labels: Tensor,
    names: Mapping[int, str] | None = None,
) -> dict[int, dict[str, float]]:
    """`{class: {"value": FD, "n": fake images, "n_reference": real images}}` of features with labels `(N,)`, `(M,)`.

    names: what messages call a class. A class has few images, so its distance has more bias than the whole set's:
    compare equal numbers only.

    Raises:
        DataError: labels that do not fit the features, or a class with fewer than two images on either side.
    """
    x, y = as_pair(real, fake)
    for features, labels in ((x, real_labels), (y, fake_labels)):
        if labels.shape != (len(features),):
            raise DataError(
                f"{len(features)} images have labels of shape {tuple(labels.shape)}: one label an image is needed"
            )
    result = {}
    for label in fake_labels.unique().tolist():
        a, b = x[real_labels == label], y[fake_labels == label]
        if min(len(a), len(b)) < 2:
            raise DataError(
                f"class {(names or {}).get(label, label)} has {len(a)} real and {len(b)} generated images: at least 2 "
                f"of each are needed"
            )
        result[label] = {"value": frechet_terms(fit(a), fit(b)).value, "n": len(b), "n_reference": len(a)}
    return result


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
