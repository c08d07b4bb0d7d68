"""Kernel Inception Distance: the squared maximum mean discrepancy with a cubic kernel, without bias.

Subsets share images. Where the pairs of two sets are fewer than those of all subsets together, the kernel of a pair is
computed once, and the sums over all subsets are products with the matrix that says who is in which. Of larger sets
each subset is taken by itself, and the products of large subsets are of float32, about a centre.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import Array, Estimate, as_pair
from diffdistill.evaluation.draws import content_keys, highest, lowest, ranked

TILE = 1024  # rows of either side that are taken out at once
STRIPE = 256  # and rows of the kernel matrix: few enough that it stays in the processor's cache
LARGE = 500  # images of a subset in whose mean over pairs what float32 rounds averages out
FEW = 64  # rows that are made float32 at a time, likewise


def polynomial_mmd(x: Tensor, y: Tensor, degree: int = 3) -> float:
    """Unbiased MMD^2 of `(m, d)` and `(n, d)` with `k(x, y) = (x . y / d + 1)^degree` (1801.01401, equation 4)."""
    a, b = (torch.ones(len(rows), 1, dtype=torch.float64) for rows in (x, y))
    xx, yy = _sums(x, x, a, a, degree, within=True), _sums(y, y, b, b, degree, within=True)
    return float(_unbiased(xx, yy, _sums(x, y, a, b, degree, within=False), len(x), len(y)))


def _unbiased(xx: Tensor, yy: Tensor, xy: Tensor, m: int, n: int) -> Tensor:
    """MMD^2 from sums of the kernel: over pairs of one set, each once and none with itself, and over pairs across."""
    return 2 * xx / (m * (m - 1)) + 2 * yy / (n * (n - 1)) - 2 * xy / (m * n)


def _sums(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor, degree: int, *, within: bool) -> Tensor:
    """Sums `(S,)` of the kernel over the pairs of x `(N, d)` and y `(M, d)` that are both in a subset: `in_x (N, S)`
    and `in_y (M, S)` are ones and zeros. within: x is y, and each pair counts once, none with itself.
    """
    total = torch.zeros(in_x.shape[1], dtype=torch.float64)
    for start in range(0, len(x), STRIPE):
        first = start if within else 0
        matrix = (x[start : start + STRIPE] @ y[first:].T).div_(x.shape[1]).add_(1).pow_(degree)
        if within:
            matrix.triu_(1)
        total += (in_x[start : start + STRIPE] * (matrix @ in_y[first:])).sum(0)
    return total


@dataclass(frozen=True)
class Subsets:
    """Features `(N, d)` of float64 or float32, an order that what they are decides, the places of each subset
    `(S, size)`.
    """

    rows: Tensor
    order: Tensor
    places: Tensor

    def members(self) -> Tensor:
        """Which rows, in their order, are in which subset: zeros and ones `(N, S)`."""
        inside = torch.zeros(len(self.rows), len(self.places), dtype=torch.float64)
        inside[self.order.argsort()[self.places.T], torch.arange(len(self.places))] = 1
        return inside


class Centred(NamedTuple):
    """Rows x about a centre c: `x - c` in float32 `(n, d)`, and `x . c - c . c / 2` in float64 `(n,)`.

    x . y is the product of the first plus the second of both, and only what varies about the centre is rounded. Of a
    pair's kernel k that leaves some 1e-8 k, either way; the mean over the million pairs of a subset, 1e-11.
    """

    rows: Tensor
    along: Tensor

    @classmethod
    def of(cls, x: Tensor, places: Tensor, centre: Tensor) -> "Centred":
        """Of the rows of x at these places, taken out a few at a time."""
        rows, along = torch.empty(len(places), x.shape[1]), torch.empty(len(places), dtype=torch.float64)
        for start in range(0, len(places), FEW):
            mine = slice(start, start + FEW)
            part = x[places[mine]].double()
            along[mine] = part @ centre
            rows[mine] = part.sub_(centre)
        return cls(rows, along - centre @ centre / 2)


def _subset_sum(x: Centred, y: Centred, degree: int, *, within: bool) -> Tensor:
    """The sum of the kernel over the pairs of two parts, as `_sums` counts them."""
    total, d = torch.zeros((), dtype=torch.float64), x.rows.shape[1]
    for start in range(0, len(x.rows), STRIPE):
        first, mine = start if within else 0, slice(start, start + STRIPE)
        product = x.rows[mine] @ y.rows[first:].T
        matrix = product.double().add_(x.along[mine, None] + d).add_(y.along[first:]).pow_(degree)
        total += (matrix.triu_(1) if within else matrix).sum()
    return total / d**degree


def _by_subset(a: Subsets, b: Subsets, degree: int, wanted: Sequence[bool]) -> Tensor:
    """Sums `(S, 3)` as of `subset_sums`, each subset by itself: hardly any pair is in two of them."""
    found = torch.zeros(len(a.places), 3, dtype=torch.float64)
    centre = a.rows[a.places[0]].double().mean(0)
    one = torch.ones(a.places.shape[1], 1, dtype=torch.float64)
    rounded = len(one) >= LARGE
    for total, mine, theirs in zip(found, a.places, b.places, strict=True):
        sides = (a.rows, mine), (b.rows, theirs)
        parts = [Centred.of(*side, centre) for side in sides] if rounded else []
        for k, (i, j) in enumerate(((0, 0), (1, 1), (0, 1))):
            if not wanted[k]:
                continue
            if rounded:
                total[k] = _subset_sum(parts[i], parts[j], degree, within=i == j)
            if not (rounded and total[k].isfinite()):  # beyond 1e19, products are more than float32 holds
                x, y = (rows[places].double() for rows, places in (sides[i], sides[j]))
                total[k] = _sums(x, y, one, one, degree, within=i == j)
    return found


def _by_pair(a: Subsets, b: Subsets, degree: int, *, within: bool) -> Tensor:
    """Sums `(S,)` of the kernel over the pairs of each subset of a set and that of another, as `_sums` counts them."""
    in_a, in_b = a.members(), b.members()
    total = torch.zeros(len(a.places), dtype=torch.float64)
    for i in range(0, len(a.rows), TILE):
        x = a.rows[a.order[i : i + TILE]].double()
        for j in range(i if within else 0, len(b.rows), TILE):
            own = within and i == j
            y = x if own else b.rows[b.order[j : j + TILE]].double()
            total += _sums(x, y, in_a[i : i + TILE], in_b[j : j + TILE], degree, within=own)
    return total


def subset_sums(a: Subsets, b: Subsets, degree: int) -> Sequence[Tensor]:
    """Sums `(S,)` of the kernel within each subset of a set, within that of another, and across."""
    sides, most = ((a, a), (b, b), (a, b)), a.places.numel() * a.places.shape[1]
    sparse = [len(x.rows) * len(y.rows) > most for x, y in sides]
    alone = _by_subset(a, b, degree, sparse).unbind(1) if any(sparse) else [torch.empty(0)] * 3
    return [
        own if apart else _by_pair(x, y, degree, within=x is y)
        for own, apart, (x, y) in zip(alone, sparse, sides, strict=True)
    ]


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
    x, y = as_pair(real, fake, minimum=4, small=True)
    if subsets < 2 or subset_size < 2:
        raise DataError(f"{subsets} subsets of {subset_size} images: at least 2 of each are needed")
    smaller = min(len(x), len(y))
    size = min(subset_size, smaller // 2)
    mine, theirs = content_keys(x), content_keys(y)
    words = range(seed * subsets, (seed + 1) * subsets)
    # The lowest ranks of one set and the highest of the other: an image that is in both must not meet itself.
    chosen = torch.stack([lowest(mine, word, size) for word in words])
    others = torch.stack([highest(theirs, word, size) for word in words])
    a, b = Subsets(x, ranked(mine, seed), chosen), Subsets(y, ranked(theirs, seed), others)
    xx, yy, xy = subset_sums(a, b, degree)
    values = _unbiased(xx, yy, xy, size, size)
    part = size / smaller
    return Estimate(float(values.mean()), float(values.std()) * math.sqrt(part / (1 - part) + 1 / subsets))
