"""Where a method comes to rest: zeros of its expected gradient over (m, s), by Newton's method with bounded steps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffdistill.matching.ratio import RatioTracker
from diffdistill.parts.verification.analytic import (
    Gradient,
    Mixture,
    Nodes,
    expected_gradient,
    hermite,
    nodes_at,
    trapezoid,
)
from diffdistill.process import Level, LevelLaw, per_sample


def resting_point(
    expected: Callable[[float, float], tuple[float, float]], start: tuple[float, float]
) -> tuple[float, float]:
    """The stable zero (m, s) that descent from `start` leads to. NaN if there is none within 60 steps."""
    point, h = torch.tensor(start, dtype=torch.float64), 1e-5
    for _ in range(60):
        m, s = point.tolist()
        here = torch.tensor(expected(m, s), dtype=torch.float64)
        columns = [torch.tensor(expected(*moved), dtype=torch.float64) - here for moved in ((m + h, s), (m, s + h))]
        jacobian = torch.stack(columns, 1) / h
        # Where the field does not contract Newton would climb to a saddle: descend instead.
        contracts = float(torch.linalg.eigvals(jacobian).real.min()) > 0
        step = -torch.linalg.solve(jacobian, here) if contracts else -here
        longest = 0.2 * s
        step = step * min(1.0, longest / max(float(step.norm()), 1e-300))
        point = point + step
        if float(step.norm()) < 1e-8:
            return point[0].item(), point[1].item()
    return float("nan"), float("nan")


@dataclass(frozen=True)
class Recipe:
    """A method with its level law. per_level: DMD's expected normaliser, else weight 1; clip: bounds of the ratio."""

    gradient: Gradient
    law: Level
    per_level: bool = True
    clip: tuple[float, float] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def nodes(self, levels: int = 32, z: int = 96, eps: int = 16) -> Nodes:
        u = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
        return nodes_at(LevelLaw(self.law).sigma(u).double(), trapezoid(z, reach=6.0), hermite(eps))

    def expected(self, teacher: Mixture, nodes: Nodes) -> Callable[[float, float], tuple[float, float]]:
        """(m, s) -> expected gradient with exact teacher, critic and ratio."""
        tracker = None if self.clip is None else RatioTracker(clip=self.clip, max_logit=1e3).double()

        def gradient(x0: Tensor, *networks: Tensor, logit: Tensor, **settings: Any) -> Tensor:
            if tracker is not None:
                logit = tracker(logit, torch.zeros_like(logit))
            return self.gradient(x0, *networks, logit=logit, **settings)

        def at(mean: float, scale: float) -> tuple[float, float]:
            settings = dict(self.settings)
            if self.per_level:
                settings["level_weight"] = 1 / mean_distance(teacher, mean, scale, nodes)
            return expected_gradient(gradient, teacher, mean, scale, nodes, **settings)

        return at


def mean_distance(teacher: Mixture, mean: float, scale: float, nodes: Nodes) -> Tensor:
    """E|x0 - D_T(x_t)| at each node's level: what DMD's normaliser tends to for many dimensions."""
    x0 = (mean + scale * nodes.z).reshape(-1, 1, 1, 1)
    x_t = x0 + per_sample(nodes.sigma * nodes.eps, x0)
    return nodes.level_mean((x0 - teacher(x_t, nodes.sigma)).abs().flatten())
