"""Inception Score: confident classes for each image, all classes over the set."""

import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import Array, Estimate, as_features


def _score(p: Tensor) -> Tensor:
    return (torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()).exp()


def inception_score(probabilities: Array, splits: int = 10) -> Estimate:
    """`exp(E KL(p(y|x) || p(y)))` of class probabilities `(N, K)` (1606.03498, section 4), between 1 and K.

    The mean over `splits` equal parts in the given order (the last rows left out where N is no multiple), and its
    standard error. Images must not be sorted by class. Figures compare only for one classifier, N and `splits`.

    Images that are surely of one class each, all of K classes equally often, score K:

    >>> import torch
    >>> round(float(inception_score(torch.eye(4).repeat(25, 1), splits=5)), 4)
    4.0

    Raises:
        DataError: rows that are no probabilities, or fewer images than splits.
    """
    p = as_features(probabilities, "probabilities", 1)
    if (p < 0).any() or (p.sum(1) - 1).abs().max() > 1e-4:
        raise DataError("each row of class probabilities must be non-negative and sum to 1")
    if not 1 <= splits <= len(p):
        raise DataError(f"{len(p)} images cannot be cut into {splits} splits: use fewer splits or more images")
    size = len(p) // splits
    scores = torch.stack([_score(part) for part in p[: size * splits].split(size)])
    error = float(scores.std()) / splits**0.5 if splits > 1 else float("nan")
    return Estimate(float(scores.mean()), error)
