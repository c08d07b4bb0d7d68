"""ISTD: how evenly images change along a path between two noises (2312.04410, section 4.1).

Equal steps on a sphere of noise should be equal steps of the image; where the map from noise to image is not smooth,
some steps change nothing and others everything. ISTD is the standard deviation of the steps' lengths. Blind to what
is shown: a model that shows gray has 0, so read it beside a metric of quality.
"""

import math
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import Estimate

STEPS = 9  # images on a path
PATHS = 64


def slerp(first: Tensor, second: Tensor, steps: int = STEPS) -> Tensor:
    """Noises `(steps, C, H, W)`, even on the great circle from `first` to `second`, `(C, H, W)`, float64.

    sin((1 - t) w) / sin(w) first + sin(t w) / sin(w) second, w the angle between them. The second is scaled to the
    norm of the first, so all have that norm and neighbours have one distance.

    >>> slerp(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 3.0]]]), 3).round(decimals=4).flatten(1).tolist()
    [[1.0, 0.0], [0.7071, 0.7071], [0.0, 1.0]]
    """
    a, b = first.double(), second.double()
    b = b * (a.norm() / b.norm())
    angle = torch.acos(((a * b).sum() / a.square().sum()).clamp(-1, 1))
    t = torch.linspace(0, 1, steps, dtype=torch.float64).reshape(-1, *[1] * a.ndim)
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def step_lengths(images: Tensor) -> Tensor:
    """L2 distances `(S - 1,)` between neighbours of `(S, C, H, W)`, float64.

    >>> step_lengths(torch.tensor([0.0, 1.0, 4.0]).reshape(3, 1, 1, 1)).tolist()
    [1.0, 3.0]
    """
    return images.double().diff(dim=0).flatten(1).norm(dim=1)


def istd(
    draw: Callable[[Tensor, Sequence[int]], Tensor],
    shape: Sequence[int],
    *,
    paths: int = PATHS,
    steps: int = STEPS,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, Estimate]:
    """The interpolation standard deviation of a model, in pixels of [0, 1], and its part of the mean step.

    draw: noise `(B, C, H, W)` float32 and the number of the path of each to images `(B, C', H', W')` in [-1, 1];
    shape: `(C, H, W)` of the noise. With d_j the L2 distance of images j and j + 1 of a path

        istd = mean over paths of std_j(d_j),       istd_relative = mean over paths of std_j(d_j) / mean_j(d_j),

    std with n - 1. The first grows as the root of the number of pixels; the second compares models of any size. A map
    that keeps angles, as a factor times a rotation, has 0. Each with its standard error over paths. DataError for
    fewer than two paths or three images on a path.

    >>> figures = istd(lambda noise, paths: 0.3 * noise, (1, 8, 8), paths=4)
    >>> round(float(figures["istd"]), 6), round(float(figures["mean_step"]), 2)
    (0.0, 0.22)
    """
    if paths < 2 or steps < 3:
        raise DataError(
            f"istd of {paths} paths of {steps} images was asked for: give 2 paths or more, of 3 images or more"
        )
    generator = torch.Generator().manual_seed(seed)
    spread, part, mean = [], [], []
    per_batch = max(1, batch_size // steps)
    for start in range(0, paths, per_batch):
        chosen = range(start, min(start + per_batch, paths))
        ends = [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for _ in chosen]
        noise = torch.cat([slerp(first, second, steps) for first, second in ends]).float()
        images = draw(noise, list(chain.from_iterable([path] * steps for path in chosen))) / 2
        for path in images.cpu().split(steps):
            lengths = step_lengths(path)
            spread.append(float(lengths.std()))
            mean.append(float(lengths.mean()))
            part.append(spread[-1] / mean[-1] if mean[-1] > 0 else math.nan)
    names = {"istd": spread, "istd_relative": part, "mean_step": mean}
    return {name: Estimate.mean_of(torch.tensor(values, dtype=torch.float64)) for name, values in names.items()}
