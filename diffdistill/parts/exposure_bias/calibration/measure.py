"""Exposure bias: how far the states a sampler visits are from those the network was trained on, with its sign.

A training state is x = alpha x0 + s eps, so around alpha m, with m the mean image of the data, its pixels have the
mean square `ref = alpha^2 V + s^2`, V the pixel variance of the data. Of the states that a sampler visits, the same
number `hat` is measured, and

    r = ln(hat / ref)          > 0: the states are too noisy, < 0: too tame
    delta = d (sqrt(hat) - sqrt(ref))^2     the measure of 2308.15321, section 3, which has no sign

Epsilon Scaling moves exactly this number. The ratio of noise norms along the two kinds of state, which the paper
motivates its schedule with, does not tell the sign: it is below 1 for an exact denoiser whose best b is above 1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffdistill import processes
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import DataError
from diffdistill.parts.exposure_bias.time_shift import level_statistic
from diffdistill.sampling.scheduled import Observe

BANDS = 4  # octaves of spatial frequency; the last is the finest
CHUNK, CHUNK_VALUES = 1000, 1 << 24  # images looked at together, and values of them: 128 MB

SampleBatch = Callable[[Sequence[int], Observe], Tensor]
"""`(indices, observe) -> x0 (B, C, H, W)`: samples these images and shows `observe` every state."""


@dataclass(frozen=True)
class Moments:
    """What the measure needs of real images in [-1, 1].

    mean: `(C, H, W)` float64; variance: of a pixel around it, averaged over pixels; bands: the same by octave of
    spatial frequency `(BANDS,)`; statistics: Time-Shift's, of clean images, by name.
    """

    mean: Tensor
    variance: float
    bands: Tensor
    statistics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, data: ImageSet) -> "Moments":
        """Moments of all images of a set; DataError if they are all the same."""
        count = len(data)
        mean = torch.stack([part.sum(0) for part in _parts(data)]).sum(0) / count
        variance = sum(float((part - mean).square().mean((1, 2, 3)).sum()) for part in _parts(data)) / count
        if variance < 1e-12:
            raise DataError(f"all images of {data.name} are the same; calibration needs a set that varies")
        bands = torch.stack([band_power(part - mean).sum(0) for part in _parts(data)]).sum(0) / count
        statistics = {
            name: sum(level_statistic(part, name) * len(part) for part in _parts(data)) / count
            for name in ("corrected", "haar")
        }
        return cls(mean, variance, bands, statistics)


def _parts(data: ImageSet) -> Iterator[Tensor]:
    """The images in [-1, 1], float64, so many at a time: eight times the bytes of all would not always fit."""
    rows = max(1, min(CHUNK, CHUNK_VALUES // math.prod(data.images.shape[1:])))
    return (part.double() / 127.5 - 1 for part in data.images.split(rows))


def band_power(x: Tensor) -> Tensor:
    """Mean power of `x` `(B, C, H, W)` in each octave of spatial frequency, `(B, BANDS)`; white noise: 1 in all.

    Octaves end at 1/16, 1/8, 1/4 of the sampling frequency and at the corner of the spectrum.
    """
    power = torch.fft.fft2(x, norm="ortho").abs().square().mean(1)
    vertical, horizontal = (torch.fft.fftfreq(size, device=x.device) for size in x.shape[-2:])
    radius = (vertical[:, None] ** 2 + horizontal**2).sqrt()
    edges = [0.0, *(0.5**k for k in range(BANDS, 1, -1)), 1.0]
    inside = [(low <= radius) & (radius < high) for low, high in pairwise(edges)]
    return torch.stack([power[:, mask].mean(1) if mask.any() else power.mean((1, 2)) for mask in inside], dim=1)


@dataclass(frozen=True)
class Exposure:
    """The measure along one run of a sampler: S states, the last of them the images; n images.

    levels: s / alpha of each state (mean over images), falling to 0; energy, reference: `(S, n)`, `hat` and `ref` of
    each image; bands: r of each octave `(S, BANDS)`; dimension: numbers an image; images: uint8 `(n, C, H, W)`.
    """

    levels: tuple[float, ...]
    energy: Tensor
    reference: Tensor
    bands: Tensor
    dimension: int
    images: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """r of each state, `(S,)`."""
        return (self.energy.mean(1) / self.reference.mean(1)).log()

    @property
    def standard_error(self) -> Tensor:
        """Of r, `(S,)`: the delta method over independent images, which is what a bootstrap of a mean tends to."""
        return self.energy.std(1) / self.energy.mean(1) / math.sqrt(self.energy.shape[1])

    @property
    def final(self) -> float:
        """r of the finished images: the logarithm of their variance over that of the data."""
        return float(self.log_ratio[-1])

    def report(self) -> dict[str, Any]:
        """JSON-able, one row a state."""
        hat, ref = self.energy.mean(1), self.reference.mean(1)
        delta = self.dimension * (hat.sqrt() - ref.sqrt()).square()
        return {
            "levels": [round(level, 6) for level in self.levels],
            "log_ratio": _rounded(self.log_ratio),
            "standard_error": _rounded(self.standard_error),
            "delta": _rounded(delta),
            "bands": [_rounded(row) for row in self.bands],
        }


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 6) for value in values]


class _Watch:
    """Collects what `Exposure` is made of, of one batch: a row a state, `(B, 3 + 2 BANDS)`, float64."""

    def __init__(self, moments: Moments):
        self.moments = moments
        self.rows: dict[int, Tensor] = {}

    def __call__(self, index: int, x: Tensor, alpha: Tensor, s: Tensor) -> None:
        x, alpha, s = x.cpu().double(), alpha.cpu().double(), s.cpu().double()
        centred = x - alpha * self.moments.mean
        energy = centred.square().mean((1, 2, 3))
        signal, noise = alpha.flatten().expand(len(x)) ** 2, s.flatten().expand(len(x)) ** 2
        reference = signal * self.moments.variance + noise
        band_reference = signal[:, None] * self.moments.bands + noise[:, None]
        level = (noise / signal).sqrt()
        row = (energy[:, None], reference[:, None], level[:, None], band_power(centred), band_reference)
        self.rows[index] = torch.cat(row, dim=1)

    def states(self) -> Tensor:
        """`(B, S, 3 + 2 BANDS)`."""
        return torch.stack([self.rows[index] for index in sorted(self.rows)], dim=1)


def measure_exposure_bias(
    sample: SampleBatch, reference: Moments, *, num_images: int, batch_size: int = 64
) -> Exposure:
    """Run a sampler for the images 0 to num_images - 1 and measure every state it visits; see `Exposure`.

    Several processes sample the batches in turn, and all know the whole, to the last digit of one.
    """
    from diffdistill.data.pixels import to_uint8

    def look(indices: range) -> dict[str, Tensor]:
        watch = _Watch(reference)
        images = to_uint8(sample(indices, watch)).cpu()
        return {"images": images, "states": watch.states()}

    batches = [range(start, min(start + batch_size, num_images)) for start in range(0, num_images, batch_size)]
    found = list(processes.in_turn(look, batches))
    states = torch.cat([part["states"] for part in found])
    energy, expected, levels = (states[:, :, column].T.contiguous() for column in range(3))
    bands, band_reference = (part.transpose(0, 1).contiguous() for part in states[:, :, 3:].split(BANDS, dim=2))
    return Exposure(
        tuple(float(level.mean()) for level in levels),
        energy,
        expected,
        (bands.mean(1) / band_reference.mean(1)).log(),
        reference.mean.numel(),
        torch.cat([part["images"] for part in found]),
    )


def check_fit(model: Denoiser, data: ImageSet) -> None:
    """DataError for images of another shape than the model's."""
    if tuple(data.images.shape[1:]) != model.picture_shape:
        ours, theirs = ("x".join(map(str, shape)) for shape in (model.picture_shape, data.images.shape[1:]))
        raise DataError(
            f"the model makes images of {ours} (C x H x W) and {data.name} has {theirs}; give fitting data"
        )
