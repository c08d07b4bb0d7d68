"""What the discrete and the continuous form share: noise for a batch, then each image's loss."""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.process import EDM, per_sample

LEAST = 0.01  # of a law's mass; what lies beyond the levels is never drawn, or is moved to their ends

Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`(x_t, sigma, cond) -> x0` of the teacher, guided or not: dx/dsigma = (x - x0) / sigma (2206.00364, eq. 3)."""


class Noise(NamedTuple):
    """Of each image of a batch: the law's u in [0, 1], the upper and the lower level `(B,)`, and eps `(B, C, H, W)`.

    The continuous form has one level, twice.
    """

    u: Tensor
    high: Tensor
    low: Tensor
    eps: Tensor

    def part(self, rows: slice) -> "Noise":
        return Noise(*(value[rows] for value in self))


class Objective(Protocol):
    """What a step of consistency training minimises: the mean of weights times losses."""

    def draw(self, blank: Tensor, step: int) -> Noise:
        """The randomness of a whole batch like `blank` `(B, C, H, W)` at a step; parts of it may then be taken."""

    def losses(self, model: Denoiser, x0: Tensor, cond: Tensor | None, noise: Noise, step: int) -> Tensor:
        """Each image's loss `(B,)`, with a graph to the model's weights."""

    def weights(self, noise: Noise) -> Tensor:
        """Of the losses, `(B,)`; by earlier steps, so that a batch may be taken in parts."""

    def count(self, losses: Tensor, noise: Noise) -> None:
        """Take note of the losses of a step's images, those of this process."""

    def modules(self) -> dict[str, nn.Module]:
        """What belongs in a checkpoint."""


def noised(x0: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    """x_t = x0 + sigma eps."""
    return x0 + per_sample(sigma, x0) * eps


def check_levels(mean: float, std: float, low: float, high: float) -> None:
    """ConfigError where the lognormal law of levels has next to nothing of its mass on [low, high].

    >>> check_levels(50.0, 2.0, 0.002, 80.0)
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: the law of levels, mean 50 and std 2 of ln sigma, has 0.0 % of its mass ...
    """
    bottom, top = math.log(low) if low else -math.inf, math.log(high)
    mass = 0.5 * (math.erf((top - mean) / (math.sqrt(2) * std)) - math.erf((bottom - mean) / (math.sqrt(2) * std)))
    if mass < LEAST:
        raise ConfigError(
            f"the law of levels, mean {mean:g} and std {std:g} of ln sigma, has {100 * mass:.1f} % of its mass "
            f"where the network has levels, {low:g} to {high:g}; give a mean between {bottom:.1f} and {top:.1f}, or a "
            f"wider law"
        )


def spread_of(model: Denoiser) -> float:
    """The scale of the data sigma_d that the preconditioning of an EDM network assumes; 1 for others."""
    return model.process.sigma_data if isinstance(model.process, EDM) else 1.0
