"""Brightness and colour: do images differ in them as much as real ones do, and do they have the same mean?

A sampler that starts with noise alone makes images of medium brightness where its model still saw signal at its last
training step, as those of Stable Diffusion's schedule did: the spread of brightness shrinks (2309.15842, 2305.08891).
Features see little of it, so it has figures of its own.
"""

import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import Array, Estimate, as_pair

TINY = 1e-9  # a spread below it is rounding


def mean_colours(images: Tensor) -> Tensor:
    """The mean of each channel of uint8 images `(B, C, H, W)` in [-1, 1], `(B, 3)` float64 on the CPU; gray thrice.

    Sums are of whole numbers, so neither batches nor devices change a bit.

    >>> mean_colours(torch.tensor([[[[0, 255]]], [[[255, 255]]]], dtype=torch.uint8)).tolist()
    [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """
    sums = images.sum((2, 3), dtype=torch.int64).cpu().double()
    means = sums / (images.shape[2] * images.shape[3]) / 127.5 - 1
    return means.expand(-1, 3) if means.shape[1] == 1 else means


def tone(real: Array, fake: Array) -> dict[str, Estimate]:
    """How generated images differ from real ones in brightness and colour.

    real, fake: mean colours `(M, 3)` and `(N, 3)` in [-1, 1], see `mean_colours`. An image's brightness is the mean
    l of the three, its colour what is left, c = (r - l, g - l, b - l). Returned are

        brightness_spread = std(l, fake) / std(l, real),    brightness_shift = mean(l, fake) - mean(l, real),
        colour_spread = sqrt(tr cov(c, fake) / tr cov(c, real)),    colour_shift = |mean(c, fake) - mean(c, real)|:

    spreads as ratios, 1 where they are equal, shifts in units of the data, of black -1 to white 1. Real images that
    are all gray, or all of one colour, leave the colour out. Each carries its standard error over the draw of both
    sets, by the delta method; colour_shift is a length, so it is never below the size of its error or so. DataError
    for fewer than two images on a side, and for real ones that are all equally bright.

    >>> black_and_white, gray = torch.tensor([[-1.0], [1.0]]).expand(2, 3), torch.tensor([[0.0], [1.0]]).expand(2, 3)
    >>> {name: float(figure) for name, figure in tone(black_and_white, gray).items()}
    {'brightness_spread': 0.5, 'brightness_shift': 0.5}
    """
    x, y = as_pair(real, fake)
    light, other = (_Cloud(rgb.mean(1, keepdim=True)) for rgb in (x, y))
    if light.spread <= TINY:
        raise DataError(
            f"the {len(x)} real images are all equally bright, and the spread of brightness is measured against "
            f"theirs: leave brightness out of the metrics"
        )
    up = torch.ones(1, dtype=torch.float64)
    found = {"brightness_spread": other.spread_against(light), "brightness_shift": other.shift_from(light, up)}
    colour, other = (_Cloud(rgb - rgb.mean(1, keepdim=True)) for rgb in (x, y))
    if colour.spread > TINY:
        gap = other.mean - colour.mean
        found["colour_spread"] = other.spread_against(colour)
        found["colour_shift"] = other.shift_from(colour, gap / max(float(gap.norm()), TINY))
    return found


class _Cloud:
    """Points `(N, d)`: their mean `(d,)`, how far they are spread about it, and how well both are known."""

    def __init__(self, points: Tensor):
        self.mean = points.mean(0)
        self.centred = points - self.mean
        self.squares = self.centred.square().sum(1)
        self.variance = float(self.squares.sum()) / (len(points) - 1)
        self.spread = self.variance**0.5

    def spread_against(self, other: "_Cloud") -> Estimate:
        """The ratio of the spreads. Of a spread the relative error is std(|x - m|^2) / (2 variance sqrt(N))."""
        ratio = self.spread / other.spread
        if not self.variance:
            return Estimate(ratio, 0.0)
        parts = [float(one.squares.std()) / one.variance / 2 / len(one.squares) ** 0.5 for one in (self, other)]
        return Estimate(ratio, ratio * sum(part**2 for part in parts) ** 0.5)

    def shift_from(self, other: "_Cloud", along: Tensor) -> Estimate:
        """How much further its mean is than the other's in a direction `(d,)`."""
        error = sum(float((one.centred @ along).var()) / len(one.squares) for one in (self, other)) ** 0.5
        return Estimate(float((self.mean - other.mean) @ along), error)
