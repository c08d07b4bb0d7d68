"""Test A: the score-gap gradient, and the adversarial loss of the same divergence, are gradients of D_f."""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffdistill.divergences import get_divergence
from diffdistill.losses import score_gap_gradient
from diffdistill.matching.ratio import RatioTracker
from diffdistill.parts.verification.analytic import (
    TEACHER_1,
    TEACHER_2,
    Mixture,
    expected_gradient,
    gaussian,
    hermite,
    nodes_at,
    trapezoid,
)
from diffdistill.parts.verification.check import Check
from diffdistill.parts.verification.reference import F, Grid, alpha_f

# distillation note, 7.2: teacher 1, m = 0.5, s = 1.2, sigma = 0.7. Its JS is the halved one, ours has f = 2 JS.
PRINTED = {
    "reverse_kl": (0.1624833171178, -0.7599695332135),
    "softened_reverse_kl": (0.0244792791342, -0.4145829859614),
    "jensen_shannon": (2 * 0.0690020189918, 2 * -0.1726932736261),
    "squared_hellinger": (0.1667524842646, -0.4088380248112),
    "jeffreys": (0.8360584466518, -2.0034928492764),
    "forward_kl": (0.6735751295340, -1.2435233160628),
    "pearson": (7.1683605737897, -12.178714160310),
}
POINT = (TEACHER_1, 0.5, 1.2, 0.7)
# Points of our own; Neyman is finite only for v_q < 2 v_p and Pearson for v_p < 2 v_q.
OTHER_POINTS = ((TEACHER_1, -1.1, 0.8, 1.3), (TEACHER_2, 0.1, 0.2, 0.25))


def adversarial_gradient(
    x0: Tensor, teacher_x0: Tensor, critic_x0: Tensor, *, logit: Tensor, divergence: str, level_weight: float = 1.0
) -> Tensor:
    """Gradient of the generator's adversarial loss at x0; of the networks it uses the logit alone."""
    return level_weight * torch.autograd.grad(get_divergence(divergence).adversarial(logit).sum(), x0)[0]


def score_gap(teacher: Mixture, mean: float, scale: float, sigma: float, divergence: str) -> tuple[float, float]:
    rule = hermite(128)
    nodes = nodes_at(sigma, rule, rule)
    return expected_gradient(
        score_gap_gradient, teacher, mean, scale, nodes, divergence=divergence, level_weight=1 / sigma**2
    )


def reference(teacher: Mixture, mean: float, scale: float, sigma: float, divergence: str) -> tuple[float, float]:
    f = F[divergence] if divergence in F else alpha_f(float(divergence.removeprefix("alpha:")))
    # As wide as no density underflows in a ratio, as fine as the narrowest component needs.
    grid = Grid(teacher, mean, scale, sigma, reach=10 * (1 + max(scale, sigma)) * (1 if teacher is TEACHER_1 else 0.4))
    return grid.divergence(f)[:2]


def checks() -> Iterator[Check]:
    for name, printed in PRINTED.items():
        yield Check("A", f"score gap, {name}", score_gap(*POINT, name), printed, source="7.2")
    for name in (*F, "alpha:0.3", "alpha:-0.7", "alpha:1.6"):
        for label, point in zip("PQ", OTHER_POINTS, strict=True):
            yield Check("A", f"score gap, {name}, point {label}", score_gap(*point, name), reference(*point, name))
    rule = hermite(128)
    for name, printed in PRINTED.items():
        teacher, mean, scale, sigma = POINT
        got = expected_gradient(
            adversarial_gradient, teacher, mean, scale, nodes_at(sigma, rule, rule), divergence=name
        )
        yield Check("A", f"adversarial loss on exact logits, {name}", got, printed, source="1.2")
    yield from nothing_to_learn()
    yield from calibration()


def nothing_to_learn() -> Iterator[Check]:
    """A student that is the teacher gets no gradient, whatever the divergence."""
    rule = hermite(16)
    nodes = nodes_at(0.6, rule, rule)
    got = [
        abs(component)
        for name in F
        for component in expected_gradient(score_gap_gradient, gaussian(0.3, 0.8), 0.3, 0.8, nodes, divergence=name)
    ]
    yield Check(
        "A", "student = teacher, largest of all divergences", (max(got),), (0.0,), tolerance=1e-12, source="7.8"
    )


def calibration() -> Iterator[Check]:
    """A discriminator that is off by a factor, another one at each level, is mended by self-normalisation (1.3)."""
    teacher, mean, scale, _ = POINT
    student = gaussian(mean, scale)
    rule = trapezoid(96)
    sigma = torch.tensor([0.3, 0.7, 1.5], dtype=torch.float64)
    nodes = nodes_at(sigma, rule, rule)
    u = torch.arange(3).repeat_interleave(len(nodes.z) // 3) / 3 + 0.01
    x_t = (mean + scale * nodes.z + nodes.sigma * nodes.eps).reshape(-1, 1, 1, 1)
    exact = teacher.log_density(x_t, nodes.sigma) - student.log_density(x_t, nodes.sigma)
    tracker = RatioTracker(bins=3, decay=0.0, clip=(1e-30, 1e30), max_logit=60.0)
    # Each node is drawn in proportion to its weight, as samples of the student are.
    drawn = torch.multinomial(nodes.weight, 400_000, replacement=True, generator=torch.Generator().manual_seed(0))
    wrong = exact + torch.tensor([1.5, -0.7, 0.4], dtype=torch.float64).repeat_interleave(len(nodes.z) // 3)
    tracker.update(wrong[drawn], u[drawn])
    error = tracker(wrong[drawn], u[drawn]) - exact[drawn]
    got = tuple(error[u[drawn] == value].mean().item() for value in u.unique())
    yield Check(
        "A", "calibrated logit - exact logit, three levels", got, (0.0, 0.0, 0.0), tolerance=0.02, source="1.3"
    )
