"""Test D: over all levels the Fisher form adds up to the divergence itself (de Bruijn's identity).

    D_f(p_0 || q_0) - D_f(p_S || q_S) = integral_0^S sigma E_q[ h(r) ||grad log q - grad log p||^2 ] dsigma

so the same holds for the gradients: training with weight sigma at every level descends the clean samples' divergence.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from diffdistill.divergences import get_divergence
from diffdistill.losses import fisher_gradient
from diffdistill.parts.verification.analytic import (
    TEACHER_1,
    F,
    Grid,
    Nodes,
    expected_gradient,
    hermite,
    nodes_at,
    trapezoid,
)
from diffdistill.parts.verification.check import Check
from diffdistill.process import per_sample

MEAN, SCALE, TOP = 0.5, 1.2, 3.0
# distillation note, 7.5; its JS is the halved one.
PRINTED = {
    "reverse_kl": 2.488435666490,
    "forward_kl": 1.512830039955,
    "jensen_shannon": 2 * 0.309468381886,
    "squared_hellinger": 0.741103834663,
}


def levels(count: int = 40) -> tuple[Nodes, Tensor]:
    """Nodes at Gauss-Legendre levels of [0, TOP], and the measure sigma dsigma of each node's level."""
    points, weights = (torch.tensor(values) for values in np.polynomial.legendre.leggauss(count))
    sigma = 0.5 * TOP * (points + 1)
    # Between the modes the teacher's score changes within 0.1; the integral over z leaves a smooth function of eps.
    nodes = nodes_at(sigma, trapezoid(321), hermite(20))
    # `nodes_at` gives every level the weight 1 / count.
    measure = count * 0.5 * TOP * weights * sigma
    return nodes, measure.repeat_interleave(len(nodes.z) // count)


def checks() -> Iterator[Check]:
    nodes, measure = levels()
    for name, printed in PRINTED.items():
        value = integrated_value(name, nodes, measure)
        yield Check("D", f"levels add up to D_f, {name}", (value,), (printed,), source="7.5")
        got = expected_gradient(
            fisher_gradient, TEACHER_1, MEAN, SCALE, nodes, divergence=name, level_weight=2 * measure / nodes.sigma**4
        )
        clean, noised = (Grid(TEACHER_1, MEAN, SCALE, sigma, reach=20.0).divergence(F[name]) for sigma in (0.0, TOP))
        expected = tuple(a - b for a, b in zip(clean[:2], noised[:2], strict=True))
        yield Check("D", f"Uni-Instruct over all levels is grad D_f, {name}", got, expected)


def integrated_value(name: str, nodes: Nodes, measure: Tensor) -> float:
    """The right side of the identity, with the production h on the denoisers' gap."""
    total = torch.zeros(())

    def record(x0: Tensor, teacher_x0: Tensor, critic_x0: Tensor, *, logit: Tensor) -> Tensor:
        nonlocal total
        gap = (critic_x0 - teacher_x0).detach() / per_sample(nodes.sigma**2, x0)
        energy = get_divergence(name).weight(logit.detach()) * gap.square().flatten(1).sum(1)
        total = (nodes.weight * measure * energy).sum()
        return torch.zeros_like(x0)

    expected_gradient(record, TEACHER_1, MEAN, SCALE, nodes)
    return float(total)
