"""What the discrete and the continuous form share: noise for a batch, then each image's loss."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from diffdistill.denoiser import Denoiser
from diffdistill.process import EDM, per_sample

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


def spread_of(model: Denoiser) -> float:
    """The scale of the data sigma_d that the preconditioning of an EDM network assumes; 1 for others."""
    return model.process.sigma_data if isinstance(model.process, EDM) else 1.0
