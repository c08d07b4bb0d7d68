"""A batch taken in parts: the noise of the whole, its slices, and the means of what the parts found."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

Metrics = dict[str, Tensor | float]


class StudentNoise(NamedTuple):
    """Where and with what a batch of student images is noised: the law's u and sigma `(B,)`, eps `(B, C, H, W)`."""

    u: Tensor
    sigma: Tensor
    eps: Tensor

    def part(self, rows: slice) -> "StudentNoise":
        return StudentNoise(*(value[rows] for value in self))


class CriticNoise(NamedTuple):
    """The same for the critic, and for the discriminator's real and student images, which share their levels."""

    sigma: Tensor
    eps: Tensor
    seen_sigma: Tensor | None = None
    real_eps: Tensor | None = None
    fake_eps: Tensor | None = None

    def part(self, rows: slice) -> "CriticNoise":
        return CriticNoise(*(None if value is None else value[rows] for value in self))  # type: ignore[arg-type]


def parts_of(count: int, size: int | None) -> list[slice]:
    """Slices of at most `size` that cover `count`; None: one."""
    return [slice(start, min(start + (size or count), count)) for start in range(0, count, size or count)]


def some(values: Any, rows: slice) -> Any:
    """Those rows of what may be None."""
    return None if values is None else values[rows]


def mean_of(seen: list[Metrics], parts: list[slice]) -> Metrics:
    """Each figure's mean over the images of the parts that have it; the last part may be smaller."""
    if len(seen) == 1:
        return seen[0]
    means: Metrics = {}
    for name in dict.fromkeys(name for found in seen for name in found):
        has = [(found[name], rows.stop - rows.start) for found, rows in zip(seen, parts, strict=True) if name in found]
        means[name] = sum(count * torch.as_tensor(value).float() for value, count in has) / sum(n for _, n in has)
    return means


def joined(parts: list[Tensor | None]) -> Tensor | None:
    """One tensor of what all parts have, or none has."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None
