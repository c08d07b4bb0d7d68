"""Test E: teacher N(0, 1) and Gaussian student, where every gradient is a fraction, and where SiD is unstable."""

from collections.abc import Iterator

from diffdistill.losses import alpha_bounds, fisher_gradient, score_gap_gradient
from diffdistill.parts.verification.analytic import expected_gradient, gaussian, hermite, nodes_at
from diffdistill.parts.verification.check import Check

TEACHER = gaussian(0.0, 1.0)
# (m, s, sigma): the note's own point, a broad student and a narrow one.
POINTS = ((0.5, 1.2, 0.7), (0.3, 3.0, 0.5), (-0.8, 0.4, 1.1))


def reverse_kl(m: float, s: float, sigma: float) -> tuple[float, float]:
    v_p, v_q = 1 + sigma**2, s**2 + sigma**2
    return m / v_p, s * (1 / v_p - 1 / v_q)


def forward_kl(m: float, s: float, sigma: float) -> tuple[float, float]:
    v_p, v_q = 1 + sigma**2, s**2 + sigma**2
    return m / v_q, s * (1 / v_q - (v_p + m**2) / v_q**2)


def sid(m: float, s: float, sigma: float, alpha: float) -> tuple[float, float]:
    """1/2: (2 m / v_p^2, 2 s (A^2 + 2 A / v_q)), the Fisher divergence; 1: (2 m / (v_p v_q), 4 s A / v_q)."""
    v_p, v_q = 1 + sigma**2, s**2 + sigma**2
    a = 1 / v_p - 1 / v_q
    mean = 2 * m / v_p * ((2 * alpha - 1) / v_q - 2 * (alpha - 1) / v_p)
    return mean, 4 * s * a * (1 / v_q + (1 - alpha) * a)


def score_gap(m: float, s: float, sigma: float, divergence: str) -> tuple[float, float]:
    rule = hermite(96)
    nodes = nodes_at(sigma, rule, rule)
    return expected_gradient(
        score_gap_gradient, TEACHER, m, s, nodes, divergence=divergence, level_weight=1 / sigma**2
    )


def fisher(m: float, s: float, sigma: float, alpha: float) -> tuple[float, float]:
    rule = hermite(24)
    return expected_gradient(
        fisher_gradient, TEACHER, m, s, nodes_at(sigma, rule, rule), alpha=alpha, level_weight=2 / sigma**4
    )


def checks() -> Iterator[Check]:
    for point in POINTS:
        label = "m {:g}, s {:g}, sigma {:g}".format(*point)
        yield Check("E", f"score gap, reverse_kl, {label}", score_gap(*point, "reverse_kl"), reverse_kl(*point))
        yield Check("E", f"score gap, forward_kl, {label}", score_gap(*point, "forward_kl"), forward_kl(*point))
        for alpha in (0.5, 1.0, 1.2):
            got = fisher(*point, alpha)
            yield Check("E", f"Fisher form, alpha = {alpha:g}, {label}", got, sid(*point, alpha), source="7.6")
    yield from stability()


def stability() -> Iterator[Check]:
    """The restoring force on the mean flips at `alpha_bounds`; the printed point beyond it is repelled (1.4)."""
    got = fisher(0.3, 3.0, 0.5, 1.2)
    yield Check("E", "alpha = 1.2 repels a student three times too broad", got, (-0.080951, -0.251325), source="7.6")
    sigma = 0.5
    v_p = 1 + sigma**2
    for alpha in (1.1, 1.2):
        bound = alpha_bounds(alpha)[1]
        signs = tuple(mean_force_sign(alpha, factor * bound * v_p, sigma) for factor in (0.99, 1.01))
        yield Check("E", f"alpha = {alpha:g}: force on the mean flips at v_q = {bound:.3g} v_p", signs, (1.0, -1.0))


def mean_force_sign(alpha: float, v_q: float, sigma: float) -> float:
    return 1.0 if fisher(0.3, (v_q - sigma**2) ** 0.5, sigma, alpha)[0] > 0 else -1.0
