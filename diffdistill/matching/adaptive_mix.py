"""AdaptiveMix (2303.01559): a discriminator whose features of what lies between two images lie between theirs.

For the heads' maps f, a real image a and a student's b at one level, and lambda ~ Beta(1, 1), which is uniform,

    minimise -cos(f(m), sg[lambda f(a) + (1 - lambda) f(b) + n]),        n ~ N(0, (0.05 rms)^2),

m between a and b. What is hard to tell apart then keeps features near to both, and the verdict changes slowly from one
to the other. Departures: the noise of m is made as strong as its level says (a mean of two noises is weaker); n is in
units of the target's rms, for a cosine knows no scale; a real image is mixed with the student's of its own condition.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from diffdistill.process import per_sample

SPREAD = 0.05  # of n


def between(real: Tensor, fake: Tensor, sigma: Tensor, eps: tuple[Tensor, Tensor], share: Tensor) -> Tensor:
    """m `(B, C, H, W)` at the level sigma `(B,)`: share real + (1 - share) fake, with noise of variance sigma^2.

    share: lambda `(B,)`; at 1 it is the real image as it was noised by the first of eps, at 0 the student's.

    >>> ones, half = torch.ones(1, 1, 1, 1), torch.tensor([0.5])
    >>> between(ones, 3 * ones, torch.tensor([2.0]), (ones, -ones), half).item()  # the noises cancel
    2.0
    """
    part = per_sample(share, real)
    noise = (part * eps[0] + (1 - part) * eps[1]) / (part.square() + (1 - part).square()).sqrt()
    return part * real + (1 - part) * fake + per_sample(sigma, real) * noise


def mixing_loss(mixed: Tensor, real: Tensor, fake: Tensor, share: Tensor, noise: Tensor) -> Tensor:
    """-cos of f(m) and what lies between f(a) and f(b), `(B,)`, in [-1, 1]; -1 where f is linear and n is 0.

    mixed, real, fake: maps `(B, c, h, w)`, the last two constants here; noise: standard normal, of their shape.

    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> mixing_loss((a + b) / 2, a, b, torch.tensor([0.5]), torch.zeros(1, 2)).round(decimals=4)
    tensor([-1.])
    """
    part = per_sample(share, real)
    target = (part * real + (1 - part) * fake).detach().flatten(1)
    target = target + SPREAD * target.square().mean(1, keepdim=True).sqrt() * noise.flatten(1)
    return -cosine_similarity(mixed.flatten(1), target, dim=1)


def draw_mix(count: int, size: int, device: torch.device) -> Tensor:
    """lambda and n of a whole batch, `(count, 1 + size)`: what `parted` takes apart."""
    return torch.cat([torch.rand(count, 1, device=device), torch.randn(count, size, device=device)], dim=1)


def parted(mix: Tensor, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """lambda `(B,)`, and n for each of the heads' maps."""
    noise = mix[:, 1:].split([one[0].numel() for one in maps], dim=1)
    return mix[:, 0], [n.view_as(one) for n, one in zip(noise, maps, strict=True)]
