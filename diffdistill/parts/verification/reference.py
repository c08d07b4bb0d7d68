"""What the production losses are compared with: the objectives themselves on a fine grid, differentiated by autograd.

Nothing here knows h, denoisers or score projection: a divergence is its f, and the student's parameters are leaves.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from diffdistill.parts.verification.analytic import Mixture

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
