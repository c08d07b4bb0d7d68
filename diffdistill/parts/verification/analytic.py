"""Exact denoisers, and expectations of the production gradients over students x0 = m + s z."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffdistill.process import per_sample


class Mixture:
    """sum_k w_k N(mu_k, scale^2) in each dimension independently, diffused to any level: x_t = x0 + sigma eps.

    Called like a `Denoiser`; with one component it is the exact critic of a Gaussian student.
    """

    def __init__(self, weights: list[float], means: list[float], scale: float):
        self.log_weights = torch.tensor(weights, dtype=torch.float64).log()
        self.means = torch.tensor(means, dtype=torch.float64)
        self.scale = scale

    def _log_joint(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = per_sample(self.scale**2 + sigma**2, x)[..., None]
        squares = (x[..., None] - self.means.to(x)).square() / variance
        return self.log_weights.to(x) - 0.5 * (squares + (2 * math.pi * variance).log()), variance

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p_sigma(x) in nats, (B, C, H, W) -> (B,)."""
        return self._log_joint(x, sigma)[0].logsumexp(-1).flatten(1).sum(1)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        """E[x0 | x_t = x], (B, C, H, W)."""
        log_joint, variance = self._log_joint(x, sigma)
        pull = log_joint.softmax(-1) * (self.means.to(x) - x[..., None]) / variance
        return x + per_sample(sigma**2, x) * pull.sum(-1)


def gaussian(mean: float, scale: float) -> Mixture:
    return Mixture([1.0], [mean], scale)


# Two modes four standard deviations apart, and the same at the scale of images.
TEACHER_1 = Mixture([0.7, 0.3], [-2.0, 2.0], 0.5)
TEACHER_2 = Mixture([0.7, 0.3], [-0.5, 0.5], 0.125)


@dataclass(frozen=True)
class Nodes:
    """Quadrature nodes of (z, eps, level): flat (B,) tensors, in blocks of equal length, one block a level."""

    z: Tensor
    eps: Tensor
    sigma: Tensor
    weight: Tensor
    levels: int = 1

    def level_mean(self, values: Tensor) -> Tensor:
        """Mean of (B,) values over (z, eps) at each node's own level, (B,)."""
        blocks = (self.weight * values).reshape(self.levels, -1).sum(1) / self.weight.reshape(self.levels, -1).sum(1)
        return blocks.repeat_interleave(len(values) // self.levels)


def hermite(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes and weights of N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(nodes), torch.tensor(weights / weights.sum())


def trapezoid(count: int, reach: float = 8.0) -> tuple[Tensor, Tensor]:
    """Equidistant nodes on [-reach, reach] with weights of N(0, 1), for integrands with a scale of their own."""
    nodes = torch.linspace(-reach, reach, count, dtype=torch.float64)
    weights = (-0.5 * nodes.square()).exp()
    return nodes, weights / weights.sum()


def nodes_at(sigma: float | Tensor, z: tuple[Tensor, Tensor], eps: tuple[Tensor, Tensor]) -> Nodes:
    """Product of the rules for z and eps at a level, or at each of (L,) equally likely levels."""
    sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1)
    grid = torch.cartesian_prod(torch.arange(len(sigma)), torch.arange(len(z[0])), torch.arange(len(eps[0])))
    level, i, j = grid.unbind(1)
    return Nodes(z[0][i], eps[0][j], sigma[level], z[1][i] * eps[1][j] / len(sigma), len(sigma))


Gradient = Callable[..., Tensor]


def expected_gradient(
    gradient: Gradient, teacher: Mixture, mean: float, scale: float, nodes: Nodes, **settings: object
) -> tuple[float, float]:
    """(d/dm, d/ds) of the objective with the gradient `gradient(x0, teacher_x0, critic_x0, logit=..., **settings)`.

    The student is x0 = m + s z, so dx0/dm = 1 and dx0/ds = z. Teacher, critic and logit are exact and attached to x0.
    """
    student = gaussian(mean, scale)
    x0 = (mean + scale * nodes.z).reshape(-1, 1, 1, 1).requires_grad_()
    x_t = x0 + per_sample(nodes.sigma * nodes.eps, x0)
    logit = teacher.log_density(x_t, nodes.sigma) - student.log_density(x_t, nodes.sigma)
    g = gradient(x0, teacher(x_t, nodes.sigma), student(x_t, nodes.sigma), logit=logit, **settings).flatten()
    return float((nodes.weight * g).sum()), float((nodes.weight * g * nodes.z).sum())
