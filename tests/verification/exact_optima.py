"""Test C: what each method converges to: forward KL to the mean and variance, reverse KL to a mode."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffdistill.losses import fisher_gradient, score_gap_gradient
from diffdistill.matching.ratio import RatioTracker
from diffdistill.parts.verification.analytic import (
    TEACHER_1,
    TEACHER_2,
    Gradient,
    Mixture,
    Nodes,
    expected_gradient,
    hermite,
    nodes_at,
    trapezoid,
)
from diffdistill.parts.verification.check import Check
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
    return level_mean(nodes, (x0 - teacher(x_t, nodes.sigma)).abs().flatten())


def level_mean(nodes: Nodes, values: Tensor) -> Tensor:
    """Mean of (B,) values over (z, eps) at each node's own level, (B,); the nodes of a level lie side by side."""
    levels = len(nodes.sigma.unique_consecutive())
    blocks = (nodes.weight * values).reshape(levels, -1).sum(1) / nodes.weight.reshape(levels, -1).sum(1)
    return blocks.repeat_interleave(len(values) // levels)


# Teacher 1 at one level: divergence, sigma, start, printed optimum (distillation note, 7.4, C2).
ONE_LEVEL = (
    ("reverse_kl", 0.5, (-1.8, 0.6), (-1.98823, 0.52407)),
    ("reverse_kl", 0.5, (1.8, 0.6), (1.96206, 0.56878)),
    ("reverse_kl", 1.0, (-0.5, 1.5), (-0.76351, 1.71545)),
    ("reverse_kl", 2.0, (-0.5, 1.5), (-0.78174, 1.84073)),
    ("softened_reverse_kl", 0.5, (-1.8, 0.6), (-1.99281, 0.51380)),
    ("softened_reverse_kl", 1.0, (-0.9, 1.6), (-0.91567, 1.57142)),
    ("softened_reverse_kl", 1.0, (-1.45, 1.15), (-1.44756, 1.18177)),
    ("jensen_shannon", 0.5, (-1.9, 0.6), (-1.98039, 0.54178)),
    ("jensen_shannon", 0.5, (-0.8, 1.8), (-0.82020, 1.85646)),
    ("jensen_shannon", 1.0, (-0.7, 1.7), (-0.79117, 1.85514)),
    ("squared_hellinger", 0.5, (-0.8, 1.8), (-0.79627, 1.81580)),
    ("squared_hellinger", 0.5, (-1.9, 0.6), (-1.93758, 0.64308)),
    ("squared_hellinger", 2.0, (-0.7, 1.7), (-0.79050, 1.87285)),
    ("jeffreys", 0.5, (-0.7, 1.6), (-0.74234, 1.69205)),
    ("jeffreys", 1.0, (-0.7, 1.6), (-0.75023, 1.78465)),
)

KARRAS_DMD = Level(law="karras", u_min=0.02, u_max=0.98)
KARRAS_SID = Level(law="karras", u_max=0.8)


def _score_gap(divergence: str, clip: tuple[float, float] | None = None) -> Recipe:
    return Recipe(score_gap_gradient, KARRAS_DMD, clip=clip, settings={"divergence": divergence})


def _fisher(**settings: object) -> Recipe:
    return Recipe(fisher_gradient, KARRAS_SID, settings=settings)


# Teacher 2, whole methods with their own laws: recipe and printed (m, s) (7.4, C3).
METHODS: dict[str, tuple[Recipe, tuple[float, float]]] = {
    "diff_instruct": (Recipe(score_gap_gradient, Level(law="lognormal"), per_level=False), (-0.1955, 0.4350)),
    "f_distill, softened_reverse_kl": (_score_gap("softened_reverse_kl"), (-0.2037, 0.3951)),
    "dmd2 without discriminator": (_score_gap("reverse_kl"), (-0.1990, 0.4177)),
    "f_distill, jeffreys": (_score_gap("jeffreys"), (-0.1978, 0.4380)),
    "f_distill, squared_hellinger": (_score_gap("squared_hellinger"), (-0.1996, 0.4633)),
    "f_distill, jensen_shannon": (_score_gap("jensen_shannon"), (-0.1999, 0.4682)),
    "f_distill, forward_kl": (_score_gap("forward_kl"), (-0.2, 0.475)),
    "f_distill, forward_kl, r in [0.1, 20]": (_score_gap("forward_kl", (0.1, 20)), (-0.1993, 0.4670)),
    "f_distill, forward_kl, r in [0.5, 2]": (_score_gap("forward_kl", (0.5, 2)), (-0.1966, 0.4422)),
    "f_distill, jensen_shannon, r in [0.1, 20]": (_score_gap("jensen_shannon", (0.1, 20)), (-0.1990, 0.4557)),
    "sid, alpha = 0.5": (_fisher(alpha=0.5), (-0.1978, 0.4270)),
    "sid, alpha = 1": (_fisher(alpha=1.0), (-0.1971, 0.4570)),
    "sid, alpha = 1.2": (_fisher(alpha=1.2), (-0.1990, 0.4810)),
    "uni_instruct, jensen_shannon": (_fisher(divergence="jensen_shannon"), (-0.1998, 0.4688)),
    "uni_instruct, forward_kl": (_fisher(divergence="forward_kl"), (-0.2, 0.475)),
    "uni_instruct, forward_kl, ratio detached": (_fisher(divergence="forward_kl", detach_ratio=True), (-0.2, 0.4211)),
}
STARTS = ((-0.5, 0.125), (0.5, 0.125), (-0.2, 0.475), (-0.3, 0.3), (0.2, 0.3), (0.0, 0.2))


def checks() -> Iterator[Check]:
    yield from one_level()
    yield from moments()
    yield from methods()


def one_level() -> Iterator[Check]:
    for divergence, sigma, start, printed in ONE_LEVEL:
        nodes = nodes_at(sigma, trapezoid(160), hermite(24))

        def expected(m: float, s: float) -> tuple[float, float]:
            return expected_gradient(score_gap_gradient, TEACHER_1, m, s, nodes, divergence=divergence)  # noqa: B023

        got = resting_point(expected, start)
        yield Check("C", f"optimum at sigma = {sigma:g}, {divergence}", got, printed, tolerance=2e-5, source="7.4, C2")


def moments() -> Iterator[Check]:
    """The forward KL's optimum has the teacher's mean and variance at every level: (-0.8, 1.9)."""
    for sigma in (0.3, 1.0):
        nodes = nodes_at(sigma, trapezoid(240), hermite(24))
        for name, gradient in (("score gap", score_gap_gradient), ("Uni-Instruct", fisher_gradient)):

            def expected(m: float, s: float) -> tuple[float, float]:
                return expected_gradient(gradient, TEACHER_1, m, s, nodes, divergence="forward_kl")  # noqa: B023

            got = resting_point(expected, (-0.6, 1.7))
            yield Check("C", f"{name}, forward_kl, sigma = {sigma:g}: moments match", got, (-0.8, 1.9))


def methods() -> Iterator[Check]:
    scales = {}
    for name, (recipe, printed) in METHODS.items():
        got = resting_point(recipe.expected(TEACHER_2, recipe.nodes()), (-0.2, 0.45))
        scales[name] = got[1]
        yield Check("C", f"converged (m, s): {name}", got, printed, tolerance=0.006, source="7.4, C3")
    order = (
        "f_distill, softened_reverse_kl", "dmd2 without discriminator", "sid, alpha = 0.5", "sid, alpha = 1",
        "f_distill, jensen_shannon", "f_distill, forward_kl",
    )  # fmt: skip
    yield Check(
        "C", "scales: srKL < DMD < SiD 0.5 < SiD 1 < JS < fKL", tuple(scales[name] for name in order),
        tolerance=0.002, relation="increasing", source="7.4, C3",
    )  # fmt: skip


def thorough() -> Iterator[Check]:
    """Every start leads to the same resting point."""
    for name, (recipe, _) in METHODS.items():
        expected = recipe.expected(TEACHER_2, recipe.nodes())
        ends = [resting_point(expected, start) for start in STARTS]
        spread = tuple(max(values) - min(values) for values in zip(*ends, strict=True))
        yield Check("C", f"six starts, one end: {name}", spread, (0.0, 0.0), tolerance=1e-5, source="7.4, C3")
