"""A batch taken in parts: the noise of the whole, its slices, and the means of the figures of the parts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffdistill.machine import finest

Metrics = dict[str, Tensor | float]
"""Figures of a step by their name in the log; tensors wait for the log before they are read."""


def read(metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The figures as numbers. All those of a device come in one transfer: each would stop it anew.

    >>> read({"loss": torch.tensor(0.5), "rate": 0.25})
    {'loss': 0.5, 'rate': 0.25}
    """
    there = {k: v for k, v in metrics.items() if isinstance(v, Tensor) and v.device.type != "cpu"}
    numbers: list[float] = []
    if there:
        numbers = torch.stack([v.detach().reshape(()).to(finest(v.device)) for v in there.values()]).tolist()
    known = dict(zip(there, numbers, strict=True))
    return {name: known[name] if name in known else float(value) for name, value in metrics.items()}


class StudentNoise(NamedTuple):
    """Where and with what a batch of student images is noised: the law's u and sigma `(B,)`, eps `(B, C, H, W)`."""

    u: Tensor
    sigma: Tensor
    eps: Tensor

    def part(self, rows: slice) -> "StudentNoise":
        return StudentNoise(*(value[rows] for value in self))


class CriticNoise(NamedTuple):
    """The same for the critic, and for the discriminator's real and student images, which share their levels; mix: of
    `adaptive_mix.draw_mix`.
    """

    sigma: Tensor
    eps: Tensor
    seen_sigma: Tensor | None = None
    real_eps: Tensor | None = None
    fake_eps: Tensor | None = None
    mix: Tensor | None = None

    def part(self, rows: slice) -> "CriticNoise":
        return CriticNoise(*(None if value is None else value[rows] for value in self))  # type: ignore[arg-type]


def parts_of(count: int, size: int | None) -> list[slice]:
    """Slices of at most `size` that cover `count`; None: one."""
    return [slice(start, min(start + (size or count), count)) for start in range(0, count, size or count)]


def rows_of(values: Any, rows: slice) -> Any:
    """Those rows of values; None of None."""
    return None if values is None else values[rows]


def blank_like(x: Tensor, count: int) -> Tensor:
    """Of `count` rows like those of x, for what is drawn for a whole batch; it holds nothing."""
    return x if len(x) == count else x.new_empty(count, *x.shape[1:])


def mean_of(metrics: list[Metrics], parts: list[slice]) -> Metrics:
    """Each figure's mean over the images of the parts that have it; the last part may be smaller."""
    if len(metrics) == 1:
        return metrics[0]
    means: Metrics = {}
    for name in dict.fromkeys(name for figures in metrics for name in figures):
        counts = [rows.stop - rows.start for figures, rows in zip(metrics, parts, strict=True) if name in figures]
        values = [torch.as_tensor(figures[name]).float() for figures in metrics if name in figures]
        means[name] = sum(count * value for count, value in zip(counts, values, strict=True)) / sum(counts)
    return means


def joined(parts: list[Tensor | None]) -> Tensor | None:
    """One tensor of what all parts have; None where none has it."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
