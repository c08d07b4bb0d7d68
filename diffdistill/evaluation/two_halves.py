"""Two halves: do two models that were trained on disjoint halves of a set say the same of images of neither?

A model that has learned the distribution says of a noised image what any other sample of it would have taught; one
that remembers its own images draws towards those, and two of them disagree (2310.02557: two networks that were trained
on disjoint sets of 100,000 images make nearly the same image of the same noise, of few images different ones). Here it
is asked level by level, where a network denoises, so that it is seen where models remember:

    agreement(sigma) = sum <D_1 - m, D_2 - m> / sqrt(sum |D_1 - m|^2 sum |D_2 - m|^2)

over held-out images x0, D_i = D_i(x0 + sigma eps, sigma), m the mean of the images: what each says beyond the mean
image. 1: both say the same. 0: what they say has nothing in common, as the nearest training images of two models that
remember have not. Beside it stands the cosine of the residuals x_t - D_i, the noise that is taken away: it too is 1
where both agree, but models that remember images of the variance v a pixel have (v + sigma^2) / (2 v + sigma^2), never
less than a half.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import Estimate
from diffdistill.machine import send

LEVELS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
HELD_OUT = 256
SAYS = 0.05  # of the data's own spread about its mean: a model that says less has nothing to agree about
Denoise = Callable[[Tensor, Tensor, slice], Tensor]


@dataclass(frozen=True)
class Agreement:
    """Two models at one level: how alike what they say beyond the mean image is, how alike the noise that they take
    away, and how much each says, 1: as much as the data show.

    >>> from diffdistill.evaluation.arrays import Estimate
    >>> Agreement(0.5, Estimate(0.9), Estimate(0.95), (0.8, 0.7)).says
    (0.8, 0.7)
    """

    sigma: float
    agreement: Estimate
    residuals: Estimate
    says: tuple[float, float]


def cosine_of(products: Tensor) -> Estimate:
    """sum <a, b> / sqrt(sum |a|^2 sum |b|^2) of rows (<a, b>, |a|^2, |b|^2) `(N, 3)`, with its error over rows.

    The error is that of the ratio's linearisation. NaN where one of the two is 0 everywhere.

    >>> cosine_of(torch.tensor([[1.0, 1.0, 4.0], [1.0, 1.0, 4.0]]))
    0.5 ± 0
    """
    both, first, second = products.sum(0)
    scale = (first * second).sqrt()
    if not scale > 0:
        return Estimate(float("nan"))
    cosine = both / scale
    moved = products[:, 0] / scale - cosine / 2 * (products[:, 1] / first + products[:, 2] / second)
    return Estimate(float(cosine), float(moved.std()) * len(products) ** 0.5 if len(products) > 1 else float("nan"))


@torch.no_grad()
def two_halves(
    first: Denoise,
    second: Denoise,
    images: Tensor,
    levels: Sequence[float] = LEVELS,
    *,
    mean: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> list[Agreement]:
    """The agreement of two denoisers on held-out images, level by level.

    first, second: `(x_t, sigma, rows)` to x0 `(B, C, H, W)`, sigma `(B,)`, rows: which of the images these are, for
    their conditions. images: `(N, C, H, W)`, in the networks' units, on their device, of neither half. mean: `(C, H,
    W)`, None: theirs. The same noise for both, of the seed. DataError for fewer than two images.

    >>> def gaussian(variance):  # the exact denoiser of N(0, variance)
    ...     return lambda x, sigma, rows: x * (variance / (variance + sigma**2))[:, None, None, None]
    >>> x0, middle = torch.randn(8, 1, 4, 4), torch.zeros(1, 4, 4)
    >>> found = two_halves(gaussian(1.0), gaussian(0.5), x0, [0.1, 1.0], mean=middle)
    >>> [round(float(one.agreement), 4) for one in found]
    [1.0, 1.0]
    """
    if len(images) < 2:
        raise DataError(f"two halves are compared on {len(images)} images; give two or more, better hundreds")
    middle = images.mean(0) if mean is None else mean
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, min(start + batch_size, len(images)))
        x0 = images[rows]
        # One by one: what `randn` draws of a size that 16 does not divide depends on how many are drawn at once.
        noise = send(torch.stack([torch.randn(x0.shape[1:], generator=generator) for _ in x0]), x0.device)
        found = []
        for level in levels:
            x_t, sigma = x0 + level * noise, x0.new_full((len(x0),), level)
            one, two = (denoise(x_t, sigma, rows) for denoise in (first, second))
            found.append(torch.cat([_products(one - middle, two - middle), _products(x_t - one, x_t - two)], dim=1))
        spread = (x0 - middle).square().flatten(1).sum(1)
        parts.append(torch.cat([torch.stack(found).flatten(2), spread.expand(len(levels), -1)[..., None]], 2).cpu())
    whole = torch.cat(parts, dim=1).double()  # (levels, N, 7); float64 on the CPU alone
    return [_agreement(level, rows) for level, rows in zip(levels, whole, strict=True)]


def _products(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(1), b.flatten(1)
    return torch.stack([(a * b).sum(1), a.square().sum(1), b.square().sum(1)], dim=1)


def _agreement(level: float, rows: Tensor) -> Agreement:
    _, first, second = rows[:, :3].sum(0)
    data = rows[:, 6].sum()
    says = (float((first / data).sqrt()), float((second / data).sqrt()))
    return Agreement(float(level), cosine_of(rows[:, :3]), cosine_of(rows[:, 3:6]), says)


def telling(found: Sequence[Agreement]) -> list[Agreement]:
    """The levels at which both models say something beyond the mean image; at higher ones they have nothing to say.

    >>> from diffdistill.evaluation.arrays import Estimate
    >>> from diffdistill.evaluation.two_halves import Agreement
    >>> heard = Agreement(1.0, Estimate(0.9), Estimate(0.95), (0.8, 0.7))
    >>> silent = Agreement(80.0, Estimate(0.1), Estimate(1.0), (0.001, 0.001))
    >>> telling([heard, silent]) == [heard]
    True
    """
    return [one for one in found if min(one.says) >= SAYS]
