"""Signal leak: a start with the brightness and colours of data, for models whose last training step keeps some signal.

A model of Stable Diffusion's schedule has abar_T = 0.00466 at its last step: what it saw there in training was not
noise alone, and it reads the brightness of the image off what was left. Samplers start with noise alone, of mean 0,
and so images come out of medium brightness, the more the fewer the steps and the larger the latents. Here they start
as training did (2309.15842), at the first time step t that the sampler visits:

    x_t = sqrt(abar_t) leak + sqrt(1 - abar_t) eps,        leak drawn from a law that is fitted to data.

The law: the lowest frequencies of all channels together are normal with their full covariance, the rest is normal a
pixel. Departure: the rest has no part in the lowest frequencies, so that their law is the data's exactly. Written from
the paper; nothing here is of its code.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffdistill.errors import DataError


def spread_kept(spread: float, alpha_bar: float) -> float:
    """The part of a coefficient's standard deviation that a sampler without the leak keeps, exactly, for Gaussians:

        1 / sqrt(1 - abar + abar s^2),        s = `spread` in the data, the probability flow begun with N(0, 1).

    s of the mean of an image of n x n is n times its standard deviation. With the leak it is 1.

    >>> [round(spread_kept(s, 0.00466), 3) for s in (8.0, 16.0, 32.0, 64.0)]  # Stable Diffusion's schedule
    [0.879, 0.676, 0.416, 0.223]
    """
    return 1 / math.sqrt(1 - alpha_bar + alpha_bar * spread**2)


def leaked(noise: Tensor, leak: Tensor, alpha_bar: float) -> Tensor:
    """sqrt(abar) leak + sqrt(1 - abar) noise, `(B, C, H, W)`: what a sampler starts with at a time step of that abar.

    In the package's coordinates, x / sqrt(abar), that is leak + sigma noise.

    >>> leaked(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0), 0.36).item()
    2.0
    """
    return math.sqrt(alpha_bar) * leak + math.sqrt(1 - alpha_bar) * noise


def cosines(size: int) -> Tensor:
    """The orthonormal DCT-II of a line, `(size, size)` float64, a frequency a row.

    >>> cosines(2).round(decimals=4).tolist()
    [[0.7071, 0.7071], [0.7071, -0.7071]]
    """
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)[None, :]
    rows = (math.pi * k * (2 * n + 1) / (2 * size)).cos() * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def lowest_waves(height: int, width: int, count: int) -> Tensor:
    """The `count` waves of the lowest radius sqrt(i^2 + j^2), orthonormal, `(count, height, width)` float64.

    >>> round(lowest_waves(8, 8, 1)[0, 0, 0].item(), 6)  # the first is constant
    0.125
    """
    return _waves(height, width, count).clone()


@lru_cache(8)
def _waves(height: int, width: int, count: int) -> Tensor:
    places = sorted(((i, j) for i in range(height) for j in range(width)), key=lambda p: (p[0] ** 2 + p[1] ** 2, p))
    down, across = cosines(height), cosines(width)
    return torch.stack([down[i][:, None] * across[j][None, :] for i, j in places[:count]])


@dataclass(frozen=True)
class SignalLeak:
    """The law of a leak. mean `(n C,)`, root `(n C, n C)` of the covariance: of the n lowest coefficients of all
    channels; rest_mean, rest_std `(C, H, W)`: of what is left, a pixel.

    >>> images = torch.linspace(-1, 1, 64).reshape(64, 1, 1, 1).expand(64, 3, 8, 8)  # they differ in brightness alone
    >>> from diffdistill.sampling.signal_leak import fit_leak
    >>> leak = fit_leak(images)
    >>> drawn = leak.draw(1000, torch.Generator().manual_seed(0))
    >>> drawn.shape, abs(drawn.mean((1, 2, 3)).std() / images.mean((1, 2, 3)).std() - 1) < 0.05
    (torch.Size([1000, 3, 8, 8]), tensor(True))
    """

    mean: Tensor
    root: Tensor
    rest_mean: Tensor
    rest_std: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what it is the law of."""
        channels, height, width = self.rest_mean.shape
        return channels, height, width

    @property
    def spread(self) -> float:
        """s of `spread_kept`: the standard deviation of the constant wave in the channels' direction of the largest.

        >>> from diffdistill.sampling.signal_leak import fit_leak
        >>> bright_or_dark = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
        >>> round(fit_leak(bright_or_dark).spread / 8, 4)  # 8x8, and the standard deviation of -1 and 1
        1.4142
        """
        constant = self.root[:: len(self.mean) // self.shape[0]]
        return math.sqrt(float(torch.linalg.eigvalsh(constant @ constant.T)[-1].clamp_min(0)))

    def of_images(self, seeds: Sequence[int]) -> Tensor:
        """The leak of each image, drawn from a generator of its own: `(B, C, H, W)` float32, on the CPU."""
        return torch.cat([self.draw(1, torch.Generator().manual_seed(seed)) for seed in seeds])

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`(count, C, H, W)` float32, on the CPU."""
        channels, height, width = self.rest_mean.shape
        waves = lowest_waves(height, width, len(self.mean) // channels)
        z = torch.randn(count, len(self.mean), generator=generator, dtype=torch.float64)
        low = (self.mean + z @ self.root.T).reshape(count, channels, -1)
        rest = torch.randn(count, *self.rest_mean.shape, generator=generator, dtype=torch.float64) * self.rest_std
        rest = rest - synthesis(analysis(rest, waves), waves)
        return (synthesis(low, waves) + rest + self.rest_mean).float()


def analysis(images: Tensor, waves: Tensor) -> Tensor:
    """Coefficients `(B, C, n)` of images `(B, C, H, W)`, float64; waves: orthonormal, `(n, H, W)`, float64.

    >>> mean = torch.full((1, 2, 2), 0.5, dtype=torch.float64)  # the lowest wave of 2x2
    >>> analysis(torch.ones(1, 1, 2, 2), mean)
    tensor([[[2.]]], dtype=torch.float64)
    """
    return torch.einsum("bchw,nhw->bcn", images.double(), waves)


def synthesis(coefficients: Tensor, waves: Tensor) -> Tensor:
    """Images `(B, C, H, W)` of coefficients `(B, C, n)`.

    >>> mean = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    >>> synthesis(torch.full((1, 1, 1), 2.0, dtype=torch.float64), mean).mean()
    tensor(1., dtype=torch.float64)
    """
    return torch.einsum("bcn,nhw->bchw", coefficients, waves)


def fit_leak(images: Tensor, lowest: int = 3) -> SignalLeak:
    """The law of the leak of these images, or latents in the network's units.

    images: `(B, C, H, W)`; lowest: how many frequencies have a covariance, by radius (3 in the paper: the mean, and
    the slopes across and down). DataError for fewer than two images.

    >>> fit_leak(torch.randn(10, 4, 8, 8)).root.shape
    torch.Size([12, 12])
    """
    fit = LeakFit(lowest)
    fit.add(images)
    return fit.law()


class LeakFit:
    """The same in parts, so that memory does not grow with the number of images: `add` them, then ask for `law`.

    >>> fit = LeakFit()
    >>> for part in torch.randn(10, 4, 8, 8).split(3):
    ...     fit.add(part)
    >>> fit.count, fit.law().shape
    (10, (4, 8, 8))
    """

    def __init__(self, lowest: int = 3):
        self.lowest, self.count = lowest, 0
        self._low: list[Tensor] = []
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)  # of the rest, a pixel: see Chan et al. 1979

    def add(self, images: Tensor) -> None:
        """Images `(B, C, H, W)` on any device, of one shape in all parts."""
        images = images.cpu().double()  # float64 on the CPU alone: some accelerators have none
        waves = lowest_waves(images.shape[2], images.shape[3], self.lowest)
        low = analysis(images, waves)
        rest = images - synthesis(low, waves)
        gap, count = rest.mean(0) - self._mean, len(rest)
        self._squares = self._squares + (rest - rest.mean(0)).square().sum(0)
        self._squares = self._squares + gap.square() * (self.count * count / (self.count + count))
        self._mean = self._mean + gap * (count / (self.count + count))
        self._low.append(low.flatten(1))
        self.count += count

    def law(self) -> SignalLeak:
        """The law of all; DataError for fewer than two images."""
        if self.count < 2:
            raise DataError(
                f"a signal leak was to be fitted to {self.count} images; give two or more, better thousands"
            )
        low = torch.cat(self._low)
        centred = low - low.mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / (self.count - 1))
        root = vectors * values.clamp_min(0).sqrt()  # also of fewer images than coefficients
        return SignalLeak(low.mean(0), root, self._mean, (self._squares / (self.count - 1)).sqrt())
