"""The standard error of a Fréchet distance over the draw of the images that are measured.

By the delta method: as a function of their mean m and covariance S, the distance to a reference N(m_r, S_r) has the
derivatives 2 (m - m_r) and I - T, with the symmetric T that carries N(0, S) to N(0, S_r), T S T = S_r. An image x then
moves the distance by

    f(x) / n,   f(x) = 2 (m - m_r) . (x - m) + (x - m)^T (I - T) (x - m),

up to a constant, and the standard error is the standard deviation of f over the root of n. No law of the features is
assumed. (Rippl, Munk and Sturm 2016, Limit laws of the empirical Wasserstein distance, J. Multivariate Anal. 151;
1507.04090.) With S_r = A^T A and the eigendecomposition A S A^T = V D V^T,  T = A^T V D^(-1/2) V^T A.
"""

import torch
from torch import Tensor

from diffdistill.evaluation.draws import content_keys, ranked
from diffdistill.evaluation.frechet import fit, frechet_terms, varying
from diffdistill.evaluation.moments import Gaussian

LEAST = 4096  # images that are looked at where there are more: these know a standard deviation to 2 %
WORK = 2**34  # multiplications; of few features more images are looked at
BLOCK = 512  # rows at a time
HASHED = 256  # features that decide which images are looked at


def delta_error(reference: Gaussian, fitted: Gaussian, features: Tensor, *, seed: int = 0) -> float:
    """Standard error of the Fréchet distance from `reference` to `fitted`, over the draw of the latter's images.

    features: `(M, d)` of them, all or a random part. Their order decides nothing.
    """
    rows = some_rows(features, seed)
    mean, covariance = fitted.mean, fitted.covariance
    gap = mean - reference.mean
    order = varying(reference, fitted)
    roots = transport_roots(reference, covariance, order)
    moved = []
    for part in rows.split(BLOCK):
        x = features[part].double() - mean
        moved.append(2 * x @ gap + x.square().sum(1) - (x[:, order] @ roots).square().sum(1))
    count = len(features) if fitted.n is None else fitted.n
    return float(torch.cat(moved).std()) / count**0.5


def transport_roots(reference: Gaussian, covariance: Tensor, order: Tensor) -> Tensor:
    """`R` with `R R^T = T[order][:, order]`, the map that carries `covariance` to that of the reference."""
    factor = reference.factor(order).matrix
    values, vectors = torch.linalg.eigh(factor @ covariance[order][:, order] @ factor.T)
    # What rounding has made of a zero says nothing; a true value as small would add as little as leaving it out does.
    known = values > values[-1:].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return factor.T @ (vectors[:, known] * values[known] ** -0.25)


def some_rows(features: Tensor, seed: int) -> Tensor:
    """Which rows are looked at: all, or as many as time allows, chosen by what they are and not by their places."""
    n, d = features.shape
    most = max(LEAST, WORK // d**2)
    if n <= most:
        return torch.arange(n)
    return ranked(content_keys(features[:, :: max(1, d // HASHED)]), seed)[:most]


def bootstrap_error(reference: Gaussian, features: Tensor, *, resamples: int = 50, seed: int = 0) -> float:
    """The same from the spread of bootstrap resamples of `features` `(N, d)`, each of which is fitted anew: a check.

    The *spread* of the resampled distances is used, not their quantiles: a resample repeats images, which adds the
    small-sample bias about once more to every resampled distance, and hardly any spread. Where bias is most of the
    distance (few images, or a generator as good as the reference) the error comes out up to twice too large.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(features)
    values = [
        frechet_terms(reference, fit(features[torch.randint(n, (n,), generator=generator)])).value
        for _ in range(resamples)
    ]
    return float(torch.tensor(values, dtype=torch.float64).std())
