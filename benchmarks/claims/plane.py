"""A world in the plane for tests of mode coverage: modes of which some are rare and far, with an exact denoiser.

Points of the plane are images `(B, 2, 1, 1)`, so that teacher, critic and student are `Denoiser`s and the step is the
package's own. Eight directions; the weights fall geometrically from the most frequent mode to the rarest, 100:1. The
four frequent modes lie at distance NEAR of the middle, the four rare ones, between them, at FAR.
"""

import math
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from diffdistill.denoiser import Condition, Denoiser
from diffdistill.process import EDM, per_sample

MODES, NEAR, FAR, SCALE, IMBALANCE = 8, 2.0, 3.0, 0.15, 100.0
ORDER = (0, 5, 2, 7, 1, 6, 3, 4)  # rank of the weight of each mode, around the ring
PROCESS = EDM(sigma_data=1.5, time_scale=1.0, sigma_min=0.05, sigma_max=10.0)
INPUTS = "inputs"  # the layer that the discriminator reads: the scaled point and its level
ON_MODE = 4 * SCALE  # further from every centre, a sample belongs to no mode


def ring_weights() -> Tensor:
    """Share of each mode, around the ring, `(MODES,)`, float64."""
    share = IMBALANCE ** (-torch.tensor(ORDER, dtype=torch.float64) / (MODES - 1))
    return share / share.sum()


def ring_centres() -> Tensor:
    angle = torch.arange(MODES) * (2 * math.pi / MODES)
    radius = torch.where(torch.tensor(ORDER) < MODES // 2, NEAR, FAR)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


class Inputs(nn.Module):
    """Scaled points `(B, 2, 1, 1)` and times `(B,)` -> `(B, 3, 1, 1)`."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.cat([x, 2 * time.reshape(-1, 1, 1, 1)], 1)


class Plane(nn.Module):
    """What `Denoiser` asks of a network of points: its configuration and its `inputs`."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=2, sample_size=1)
        self.inputs = Inputs()


class MixtureNetwork(Plane):
    """The parameters of the mixture; `MixtureTeacher` asks its `inputs` only for the discriminator's sake."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(ring_centres(), requires_grad=False)
        self.log_weights = nn.Parameter(ring_weights().log().float(), requires_grad=False)


class MixtureTeacher(Denoiser):
    """E[x0 | x_t] of the mixture sum_k w_k N(c_k, SCALE^2 I), in closed form at every level."""

    def __init__(self) -> None:
        super().__init__(MixtureNetwork(), PROCESS)

    def log_joint(self, x_t: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k N(x_t; c_k, v I) `(B, MODES)` and v = SCALE^2 + sigma^2 `(B, 1)`."""
        variance = (SCALE**2 + sigma**2)[:, None]
        squares = (x_t.flatten(1)[:, None] - self.network.centres).square().sum(-1)
        return self.network.log_weights - 0.5 * squares / variance - (2 * math.pi * variance).log(), variance

    def log_density(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self.log_joint(x_t, sigma)[0].logsumexp(-1)

    def forward(self, x_t: Tensor, sigma: Tensor, cond: Condition = None) -> Tensor:
        self.network.inputs(*self.process.to_network(x_t, sigma))
        log_joint, variance = self.log_joint(x_t, sigma)
        pull = (log_joint.softmax(-1) @ self.network.centres - x_t.flatten(1)) / variance
        return x_t + per_sample(sigma**2, x_t) * pull.reshape(x_t.shape)

    def sample(self, count: int) -> Tensor:
        """Points of the mixture, `(count, 2, 1, 1)`."""
        mode = torch.multinomial(self.network.log_weights.exp(), count, replacement=True)
        return (self.network.centres[mode] + SCALE * torch.randn(count, 2)).reshape(-1, 2, 1, 1)


class Perceptrons(nn.Module):
    """`count` perceptrons of their own weights at once: `(count, B, inputs)` -> `(count, B, outputs)`."""

    def __init__(self, count: int, sizes: Sequence[int]):
        super().__init__()
        bounds = [fan_in**-0.5 for fan_in in sizes[:-1]]
        shapes = list(zip(bounds, sizes, sizes[1:], strict=False))
        self.weights = nn.ParameterList(b * (2 * torch.rand(count, fan_in, out) - 1) for b, fan_in, out in shapes)
        self.biases = nn.ParameterList(b * (2 * torch.rand(count, 1, out) - 1) for b, _, out in shapes)

    def forward(self, x: Tensor) -> Tensor:
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x if k == 0 else silu(x), weight)
        return x


class PointNetworks(Plane):
    """`count` small networks in one, each for its share of the batch: critics and students."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.count, self.layers = count, Perceptrons(count, (3, width, width, width, 2))

    def forward(self, x: Tensor, time: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (self.layers(self.inputs(x, time).reshape(self.count, -1, 3)).reshape(x.shape),)


def point_denoisers(count: int, width: int) -> Denoiser:
    """EDM's preconditioning around `PointNetworks`; row k of the batch belongs to network k // (B / count)."""
    return Denoiser(PointNetworks(count, width), PROCESS)


class PointHeads(nn.Module):
    """`count` discriminators' heads: features of `inputs` `(B, 3, 1, 1)` -> logits `(B,)`."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.count, self.layers = count, Perceptrons(count, (3, width, width, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features.reshape(self.count, -1, 3)).flatten()


def modes_of(points: Tensor) -> Tensor:
    """Part of `points` `(N, 2)` within four scales of each centre, `(MODES,)`, float64."""
    distance, nearest = torch.cdist(points, ring_centres()).min(1)
    return torch.bincount(nearest[distance < ON_MODE], minlength=MODES).double() / len(points)


def measures(points: Tensor) -> dict[str, Any]:
    """Of samples `(N, 2)`: modes found, mass of each, total variation of the masses, part off all modes, KL both ways.

    A mode is found if it has a quarter of its mass. The parts off all modes count as one more cell, whose true mass is
    nearly 0, in the total variation. `rare_mass`: mass of the four rarest modes over what it should be.
    """
    mass, want = modes_of(points), ring_weights()
    off = 1 - float(mass.sum())
    rare = torch.tensor(ORDER) >= MODES // 2
    forward, reverse = divergences(points)
    return {
        "found": int((mass >= want / 4).sum()),
        "total_variation": 0.5 * (float((mass - want).abs().sum()) + off),
        "rare_mass": float(mass[rare].sum() / want[rare].sum()),
        "off": off,
        "forward_kl": forward,
        "reverse_kl": reverse,
        "mass": [round(value, 5) for value in mass.tolist()],
    }


BLUR, CELL, HALF = SCALE, 0.05, 5.0  # points beyond the square [-HALF, HALF]^2 are moved to its border


def divergences(points: Tensor) -> tuple[float, float]:
    """KL(teacher || student) and KL(student || teacher) in nats, both blurred by BLUR, on a grid of cells."""
    cells = round(2 * HALF / CELL)
    index = ((points.double() + HALF) / CELL).long().clamp(0, cells - 1)
    counts = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2).double().reshape(cells, cells)
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) * CELL - HALF
    kernel = (-0.5 * ((centres[:, None] - centres) / BLUR).square()).exp()
    kernel = kernel / kernel.sum(0)
    student = kernel @ (counts / len(points)) @ kernel.T
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2, 1, 1)
    teacher = MixtureTeacher().double()
    log_p = teacher.log_density(grid, torch.full((len(grid),), BLUR, dtype=torch.float64)).reshape(cells, cells)
    log_p = log_p - log_p.logsumexp((0, 1))
    log_q = student.clamp_min(1e-300).log()
    return float((log_p.exp() * (log_p - log_q)).sum()), float((student * (log_q - log_p)).sum())


class Adam:
    """Adam without first moment for parameters `(runs, ...)`, each run at its own rate."""

    def __init__(self, parameters: Iterable[nn.Parameter], rates: Sequence[float], decay: float = 0.999):
        self.parameters, self.decay, self.count = list(parameters), decay, 0
        self.rates = torch.tensor(rates)[:, None, None]
        self.squares = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        self.count += 1
        for parameter, square in zip(self.parameters, self.squares, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            square.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
            mean_square = square / (1 - self.decay**self.count)
            parameter.sub_(scale * self.rates * gradient / (mean_square.sqrt() + 1e-8))
            parameter.grad = None
