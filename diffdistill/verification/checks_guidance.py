"""Test F: classifier-free guidance is folded in the right order and scale, and a reward tilts by the right amount."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffdistill.denoiser import Denoiser
from diffdistill.losses import fisher_gradient, score_gap_gradient
from diffdistill.process import EDM
from diffdistill.verification.analytic import Gradient, Mixture, expected_gradient, gaussian, hermite, nodes_at
from diffdistill.verification.check import Check
from diffdistill.verification.oracle import OracleNetwork

CLASS_MEAN, SCALE, GUIDANCE = 0.4, 0.6, 3.0


class GuidedTeacher(Mixture):
    """p(x | c) = N(0.4, tau^2) and p(x) = N(0, tau^2) behind the production `Denoiser.guided`.

    The guided score is that of N(kappa 0.4, tau^2), whose density this object has; its denoiser is the network's.
    """

    def __init__(self) -> None:
        super().__init__([1.0], [GUIDANCE * CLASS_MEAN], SCALE)
        network = OracleNetwork([gaussian(CLASS_MEAN, SCALE), gaussian(0.0, SCALE)], EDM())
        self.denoiser = Denoiser(network, EDM(), null_class=1)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        labels = torch.zeros(len(x), dtype=torch.long)
        return self.denoiser.guided(x, sigma, labels, GUIDANCE).to(x)


def checks() -> Iterator[Check]:
    yield from guidance()
    yield from reward()


def guidance() -> Iterator[Check]:
    teacher, sigma = GuidedTeacher(), 0.7
    rule = hermite(32)
    nodes = nodes_at(sigma, rule, rule)
    optimum = GUIDANCE * CLASS_MEAN
    forms: dict[str, tuple[Gradient, dict[str, Any]]] = {
        "score gap, reverse_kl": (score_gap_gradient, {"level_weight": 1 / sigma**2}),
        "score gap, forward_kl": (score_gap_gradient, {"level_weight": 1 / sigma**2, "divergence": "forward_kl"}),
        "SIM": (fisher_gradient, {"level_weight": 2 / sigma**4, "alpha": 1.0}),
    }
    # The production denoiser computes in float32.
    single = 2e-5
    for name, (gradient, settings) in forms.items():
        got = expected_gradient(gradient, teacher, optimum, SCALE, nodes, **settings)
        yield Check(
            "F", f"guidance 3, {name}: rests at (3 mu_c, tau)", got, (0.0, 0.0), tolerance=single, source="7.7"
        )
        swapped = expected_gradient(gradient, teacher, (1 - GUIDANCE) * CLASS_MEAN, SCALE, nodes, **settings)
        yield Check(
            "F", f"guidance 3, {name}: not at (-2 mu_c, tau)", swapped, (0, 0), tolerance=0.1, relation="differs"
        )
    v_p, v_q = SCALE**2 + sigma**2, 0.9**2 + sigma**2
    expected = (0.2 - optimum) / v_p, 0.9 * (1 / v_p - 1 / v_q)
    got = expected_gradient(score_gap_gradient, teacher, 0.2, 0.9, nodes, level_weight=1 / sigma**2)
    yield Check("F", "guidance 3, reverse_kl, elsewhere", got, expected, tolerance=single)


def reward() -> Iterator[Check]:
    """R = b x with weight a: m* = mu + a b / E[w / v_p] (reverse KL), mu + a b / (2 E[w / v_p^2]) (SIM); s* = tau."""
    mean, scale, pull = 0.1, 0.5, 0.8 * 0.35
    teacher = gaussian(mean, scale)
    sigma = torch.tensor([0.2, 0.5, 1.4], dtype=torch.float64)
    weight = torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
    rule = hermite(24)
    nodes = nodes_at(sigma, rule, rule)
    w = weight.repeat_interleave(len(nodes.z) // 3)
    v_p = scale**2 + sigma**2
    tilted = {
        "reverse_kl": (score_gap_gradient, w / nodes.sigma**2, {}, mean + pull / (weight / v_p).mean()),
        "SIM": (fisher_gradient, 2 * w / nodes.sigma**4, {"alpha": 1.0}, mean + pull / (2 * (weight / v_p**2).mean())),
    }
    for name, (gradient, level_weight, settings, optimum) in tilted.items():

        def total(x0: Tensor, *networks: Tensor, gradient: Gradient = gradient, **keywords: Any) -> Tensor:
            return gradient(x0, *networks, **keywords) - pull

        got = expected_gradient(total, teacher, float(optimum), scale, nodes, level_weight=level_weight, **settings)
        yield Check("F", f"linear reward, {name}: rests at the tilted mean", got, (0.0, 0.0), source="7.7")
