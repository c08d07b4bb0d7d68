"""Problems that are solved exactly: a mixture as teacher, students x0 = m + s z, expectations by quadrature.

What the production gradients are compared with is here too: the objectives themselves on a fine grid, differentiated
by autograd. That part uses no h, no denoiser and no score projection: a divergence is its f, and the student's
parameters are leaves.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

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
    return Nodes(z[0][i], eps[0][j], sigma[level], z[1][i] * eps[1][j] / len(sigma))


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


# ---- the objectives themselves


LOG_2 = math.log(2)

# f as a function of log r, r = p / q.
F: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda log_r: -log_r,
    "softened_reverse_kl": lambda log_r: (log_r.exp() + 1) * (softplus(-log_r) - LOG_2),
    "jensen_shannon": lambda log_r: log_r.exp() * log_r - (log_r.exp() + 1) * (softplus(log_r) - LOG_2),
    "squared_hellinger": lambda log_r: (1 - (0.5 * log_r).exp()).square(),
    "jeffreys": lambda log_r: (log_r.exp() - 1) * log_r,
    "forward_kl": lambda log_r: log_r.exp() * log_r,
    "pearson": lambda log_r: (log_r.exp() - 1).square(),
    "neyman": lambda log_r: log_r.exp() - 2 + (-log_r).exp(),
}


def alpha_f(a: float) -> Callable[[Tensor], Tensor]:
    return lambda log_r: ((a * log_r).exp() - a * log_r.exp() - (1 - a)) / (a * (a - 1))


class Grid:
    """Densities of teacher and student at one level on equidistant points; the student's (m, s) are leaves."""

    def __init__(
        self, teacher: Mixture, mean: float, scale: float, sigma: float, reach: float = 30.0, count: int = 24001
    ):
        x = torch.linspace(-reach, reach, count, dtype=torch.float64).reshape(-1, 1, 1, 1)
        level = torch.full((count,), sigma, dtype=torch.float64)
        self.step = 2 * reach / (count - 1)
        self.m = torch.tensor(mean, dtype=torch.float64, requires_grad=True)
        self.s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        variance = self.s**2 + sigma**2
        flat = x.flatten()
        self.log_q = -0.5 * ((flat - self.m) ** 2 / variance + (2 * math.pi * variance).log())
        self.log_p = teacher.log_density(x, level)
        variances = teacher.scale**2 + sigma**2
        joint = teacher.log_weights - (flat[:, None] - teacher.means) ** 2 / (2 * variances)
        score_p = (joint.softmax(-1) * (teacher.means - flat[:, None])).sum(-1) / variances
        self.gap = -(flat - self.m) / variance - score_p

    def integral(self, density: Tensor, values: Tensor) -> Tensor:
        return (density * values).sum() * self.step

    def gradient(self, value: Tensor) -> tuple[float, float, float]:
        """(d/dm, d/ds, value)."""
        dm, ds = torch.autograd.grad(value, (self.m, self.s))
        return float(dm), float(ds), float(value.detach())

    def divergence(self, f: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
        """(d/dm, d/ds, value) of D_f(p || q) = integral q f(p / q)."""
        return self.gradient(self.integral(self.log_q.exp(), f(self.log_p - self.log_q)))

    def weighted_fisher(self, f: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
        """(d/dm, d/ds, value) of E_q[ h(r) (grad log q - grad log p)^2 ], h = r^2 f''(r) by two derivatives of f."""
        log_r = self.log_p - self.log_q
        first = torch.autograd.grad(f(log_r).sum(), log_r, create_graph=True)[0]
        # d/dl (r f') = r f' + r^2 f''; a constant first derivative (reverse KL) has no graph left.
        second = torch.autograd.grad(first.sum(), log_r, create_graph=True)[0] if first.requires_grad else 0 * first
        return self.gradient(self.integral(self.log_q.exp(), (second - first) * self.gap.square()))

    def frozen(self, distance: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
        """(d/dm, d/ds, value) of E_pi[ d(gap) ] at pi = q held constant: what SIM descends."""
        return self.gradient(self.integral(self.log_q.exp().detach(), distance(self.gap)))
