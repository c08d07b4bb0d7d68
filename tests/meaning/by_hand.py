"""What the production step is compared with: denoisers, levels and draws written out anew from the papers.

Networks are called directly, with scalings of this file; random numbers are drawn by seed in the order that the step
documents (levels, then noise).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffdistill.process import EDM, VP, Flow, Process

BETAS = np.linspace(1e-4, 2e-2, 1000)
LOG_SIGMAS = 0.5 * np.log(1 / np.cumprod(1 - BETAS) - 1)


def process_named(kind: str, sigma_data: float = 0.5) -> Process:
    """edm, epsilon, v_prediction, sample (DDPM's linear betas) or flow."""
    if kind == "edm":
        return EDM(sigma_data=sigma_data)
    if kind == "flow":
        return Flow()
    return VP(torch.tensor(np.cumprod(1 - BETAS)), kind)


@dataclass
class Answer:
    """What a network said: its own output, and the x0 that it means."""

    output: Tensor
    x0: Tensor
    taps: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Net:
    """A bare network with the formulas of its process."""

    network: torch.nn.Module
    kind: str = "edm"
    sigma_data: float = 0.5

    def __call__(self, x_t: Tensor, sigma: Tensor, labels: Tensor | None = None, taps: tuple[str, ...] = ()) -> Answer:
        found: dict[str, Tensor] = {}
        hooks = [
            self.network.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, name=name: found.__setitem__(name, out[0] if isinstance(out, tuple) else out)
            )
            for name in taps
        ]
        extra = {} if labels is None else {"class_labels": labels}
        s = sigma.reshape(-1, 1, 1, 1)
        out = self.network(*self.inputs(x_t, s), **extra, return_dict=False)[0]
        for hook in hooks:
            hook.remove()
        return Answer(out, self.x0(out, x_t, s), found)

    def inputs(self, x_t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        flat = s.flatten()
        if self.kind == "edm":
            return x_t / (s**2 + self.sigma_data**2) ** 0.5, 250 * flat.log()
        if self.kind == "flow":
            return x_t / (1 + s), 1000 * flat / (1 + flat)
        time = np.interp(flat.double().log().numpy(), LOG_SIGMAS, np.arange(1000))
        return x_t / (1 + s**2) ** 0.5, torch.tensor(time, dtype=torch.float32)

    def x0(self, out: Tensor, x_t: Tensor, s: Tensor) -> Tensor:
        d, alpha = self.sigma_data, (1 + s**2) ** -0.5
        return {
            "edm": lambda: (d**2 * x_t + s * d * (s**2 + d**2) ** 0.5 * out) / (s**2 + d**2),
            "epsilon": lambda: x_t - s * out,
            "v_prediction": lambda: alpha**2 * x_t - alpha * s * out,
            "sample": lambda: out,
            "flow": lambda: (x_t - s * out) / (1 + s),
        }[self.kind]()

    def target(self, x0: Tensor, eps: Tensor, s: Tensor) -> Tensor:
        """The output that a perfect network of this kind has at x0 + s eps."""
        d, alpha = self.sigma_data, (1 + s**2) ** -0.5
        return {
            "edm": lambda: (s * x0 - d**2 * eps) / (d * (s**2 + d**2) ** 0.5),
            "epsilon": lambda: eps,
            "v_prediction": lambda: alpha * eps - alpha * s * x0,
            "sample": lambda: x0,
            "flow": lambda: eps - x0,
        }[self.kind]()


@dataclass(frozen=True)
class Karras:
    """sigma^(1/7) linear in u, from its value at the lowest to that at four fifths of the way to the highest."""

    low: float
    high: float
    part: float = 0.8

    def sigma(self, u: Tensor) -> Tensor:
        a, b = self.low ** (1 / 7), self.high ** (1 / 7)
        return ((a + self.part * u.double() * (b - a)) ** 7).float()

    def slope(self, u: Tensor) -> Tensor:
        a, b = self.low ** (1 / 7), self.high ** (1 / 7)
        return 7 * (a + self.part * u.double() * (b - a)) ** 6 * self.part * (b - a)


def lognormal(u: Tensor) -> Tensor:
    return (-1.2 + 1.2 * torch.special.ndtri(u.double())).exp().float()


def stratified(count: int) -> Tensor:
    """u, one in each of `count` equal cells, in random order: what a step draws first."""
    return (torch.randperm(count) + torch.rand(count)) / count


# f of D_f(p || q) = E_q[f(p / q)]; every weight is made of these by differentiation.
F: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda r: -r.log(),
    "forward_kl": lambda r: r * r.log(),
    "jensen_shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "softened_reverse_kl": lambda r: (r + 1) * (0.5 + 0.5 / r).log(),
    "squared_hellinger": lambda r: (1 - r.sqrt()) ** 2,
    "jeffreys": lambda r: (r - 1) * r.log(),
    "pearson": lambda r: (r - 1) ** 2,
    "neyman": lambda r: (1 - r) ** 2 / r,
}


def h_of(divergence: str, r: Tensor) -> tuple[Tensor, Tensor]:
    """h = r^2 f''(r) and r h'(r), with their graphs to what r was made of; float64."""

    def slope(value: Tensor) -> Tensor:
        return torch.autograd.grad(value.sum(), r, create_graph=True)[0]

    h = r**2 * slope(slope(F[divergence](r)) + 0 * r)
    return h, r * slope(h + 0 * r)
