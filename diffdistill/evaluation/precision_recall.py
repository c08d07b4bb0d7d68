"""Precision, recall, density and coverage of features, from k-nearest-neighbour balls."""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import Array, as_pair

BLOCK = 2**23  # entries of a distance matrix held at once: 64 MB


def squared_distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Chunks of rows `(n, M)` of the squared Euclidean distances from the rows of `x` to those of `y`, float64."""
    # Distances do not change under a shift; a common origin near the data keeps the difference of squares exact.
    origin = y.mean(0)
    x, y = x - origin, y - origin
    y_squared = y.square().sum(1)
    for rows in x.split(max(1, BLOCK // len(y))):
        yield (rows.square().sum(1, keepdim=True) + y_squared - 2 * rows @ y.T).clamp(min=0)


def radii(x: Tensor, k: int) -> Tensor:
    """Squared distance `(N,)` from each row to its k-th nearest neighbour, itself not counted."""
    return torch.cat([part.kthvalue(k + 1, dim=1).values for part in squared_distances(x, x)])


def prdc(real: Array, fake: Array, k: int = 5) -> dict[str, float]:
    """Four answers to "are the images good" and "are they all there", from features `(N, d)` and `(M, d)`.

    With B(x) the ball around x that reaches its k-th nearest neighbour of the same set:
    precision: share of fake images in some ball of a real one; recall: the other way round (1904.06991).
    density:   mean over fake images of (number of real balls around it) / k, which outliers inflate less (2002.09797);
    coverage:  share of real images whose ball holds a fake one (2002.09797).

    Precision, recall and coverage depend on N and M: compare at equal numbers only.

    Of two clusters of real images the fakes cover one: all of them are good, half of the real images are there.

    >>> import torch
    >>> noise = torch.randn(3, 100, 2, generator=torch.Generator().manual_seed(0))
    >>> far = torch.tensor([50.0, 0.0])
    >>> figures = prdc(torch.cat([noise[0], noise[1] + far]), noise[2])
    >>> figures["precision"] > 0.9, figures["coverage"] < 0.52
    (True, True)

    Raises:
        DataError: fewer than k + 1 images, values that are not finite, or different dimensions.
    """
    if k < 1:
        raise DataError(f"k is {k}: the number of neighbours must be at least 1")
    x, y = as_pair(real, fake, minimum=k + 1)
    real_radii, fake_radii = radii(x, k), radii(y, k)
    covered = torch.zeros(len(x), dtype=torch.bool)
    recalled = torch.zeros(len(x), dtype=torch.bool)
    precise = balls = 0
    start = 0
    for part in squared_distances(y, x):
        own_radii = fake_radii[start : start + len(part)]
        start += len(part)
        inside = part < real_radii
        precise += int(inside.any(1).sum())
        balls += int(inside.sum())
        covered |= inside.any(0)
        recalled |= (part < own_radii[:, None]).any(0)
    return {
        "precision": precise / len(y),
        "recall": float(recalled.double().mean()),
        "density": balls / (k * len(y)),
        "coverage": float(covered.double().mean()),
    }
