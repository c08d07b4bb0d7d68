"""Gaussians fitted to features, in float64 and one streaming pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import Array, as_features

BLOCK = 256  # rows that are multiplied at a time: a product of fewer is bound by memory
STRIPE = 256  # rows of the scatter matrix that are written at a time, from the diagonal on


@dataclass(frozen=True)
class Factor:
    """A factor `A` of a covariance; log |det A| where it is square and regular; what was clipped to have it."""

    matrix: Tensor
    log_det: float | None = None
    clipped: float = 0.0


@dataclass(frozen=True)
class Gaussian:
    """Mean `(d,)` and covariance `(d, d)` of `n` images, float64; `rows`: the centred features where n <= d."""

    mean: Tensor
    covariance: Tensor
    n: int | None = None
    rows: Tensor | None = None

    def factor(self, order: Tensor) -> "Factor":
        """`A (k, len(order))` with `A^T A = S[order][:, order]`."""
        if self.rows is not None:
            return Factor(self.rows[:, order] / (len(self.rows) - 1) ** 0.5)
        covariance = self.covariance[order][:, order]
        lower, failed = torch.linalg.cholesky_ex(covariance)
        if not failed:
            return Factor(lower.T, log_det=float(lower.diagonal().log().sum()))
        values, vectors = torch.linalg.eigh(covariance)
        return Factor(values.clamp(min=0).sqrt()[:, None] * vectors.T, clipped=float(-values.clamp(max=0).sum()))

    def problems(self) -> list[str]:
        """What a reader of the number must know, a sentence each."""
        texts = []
        if self.n is not None and self.n <= len(self.mean):
            texts.append(f"{self.n} images for {len(self.mean)} features: the distance is mostly small-sample bias")
        if not self.covariance.any():
            texts.append("all features are constant: the images are all alike, or the extractor is blind to them")
        return texts


class Moments:
    """Streaming mean and covariance of features: float64, memory independent of the number of images.

    Rows wait until there is a block of them, so neither the batches nor their sizes change a bit. Blocks are merged by
    the pairwise update of Chan, Golub and LeVeque (1979), which does not cancel, in place, on and above the diagonal
    alone: the centred rows, and one more for the gap of the means, are multiplied into the one matrix that is kept.
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.dim = dim
        self._merged = _Scatter(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))
        self._waiting = torch.empty(BLOCK, dim, dtype=torch.float64)
        self._rows: list[Tensor] = []  # kept only while there are at most `dim` of them

    def update(self, features: Array) -> "Moments":
        """Add features `(N, d)`; DataError if they are not finite or of another dimension."""
        x = as_features(features, minimum=0)
        if x.shape[1] != self.dim:
            raise DataError(f"got {x.shape[1]} features, the statistics have {self.dim}: use one extractor")
        if self.n + len(x) <= self.dim:
            self._rows.append(x.clone())
        else:
            self._rows = []
        while len(x):
            filled = self.n - self._merged.n
            part, x = x[: BLOCK - filled], x[BLOCK - filled :]
            self._waiting[filled : filled + len(part)] = part
            self.n += len(part)
            if filled + len(part) == BLOCK:
                self._merged.add(self._waiting)
        return self

    def gaussian(self) -> Gaussian:
        """The fit, with the unbiased covariance; DataError for fewer than two images."""
        if self.n < 2:
            raise DataError(f"{self.n} images: a covariance needs at least 2")
        whole = self._merged.copy()
        whole.add(self._waiting[: self.n - whole.n])
        rows = torch.cat(self._rows) if self._rows else None
        if rows is not None:
            rows = rows - rows.mean(0)
        return Gaussian(whole.mean, whole.covariance(), self.n, rows)


@dataclass
class _Scatter:
    """The mean `(d,)` of n rows and, on and above the diagonal, the sum `(d, d)` of their centred outer products."""

    n: int
    mean: Tensor
    upper: Tensor

    def copy(self) -> "_Scatter":
        return _Scatter(self.n, self.mean, self.upper.clone())

    def add(self, x: Tensor) -> None:
        """Merge rows `(N, d)` into it."""
        if not len(x):
            return
        n, mean = len(x), x.mean(0)
        total, gap = self.n + n, mean - self.mean
        rows = torch.cat([x - mean, gap[None] * (self.n * n / total) ** 0.5])
        for i in range(0, len(mean), STRIPE):
            self.upper[i : i + STRIPE, i:].addmm_(rows[:, i : i + STRIPE].T, rows[:, i:])
        self.mean = self.mean + gap * (n / total)
        self.n = total

    def covariance(self) -> Tensor:
        """Unbiased and symmetric, made in place: of no use afterwards."""
        for i in range(0, len(self.mean), STRIPE):
            own = self.upper[i : i + STRIPE, i : i + STRIPE]
            own.copy_(own.triu() + own.triu(1).T)
            self.upper[i + STRIPE :, i : i + STRIPE] = self.upper[i : i + STRIPE, i + STRIPE :].T
        return self.upper.div_(self.n - 1)
