"""Test F: guidance is folded in the right order and scale, inside or outside the gap; rewards tilt as they should.

The guided denoiser, the guidance term and the reward term are the production ones.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffdistill.denoiser import Denoiser
from diffdistill.losses import fisher_gradient, guidance_gradient, score_gap_gradient
from diffdistill.parts.verification.analytic import Gradient, Mixture, expected_gradient, gaussian, hermite, nodes_at
from diffdistill.parts.verification.check import Check
from diffdistill.parts.verification.step import OracleNetwork
from diffdistill.process import EDM
from diffdistill.rewards import CallableReward
from diffdistill.rewards.term import RewardTerm

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
    yield from guidance_outside()
    yield from linear_reward()
    yield from quadratic_reward()


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


def guidance_outside() -> Iterator[Check]:
    """The linear term pulls by (k - 1) w sigma^2 mu_c / v_p, v_p = tau^2 + sigma^2, against the unguided teacher.

    Reverse KL (w = 1 / sigma^2) then rests where guidance inside does, k mu_c; SIM (w = 2 / sigma^4) at
    mu_c (1 + (k - 1) v_p / sigma^2).
    """
    sigma, plain, null = 0.7, gaussian(CLASS_MEAN, SCALE), gaussian(0.0, SCALE)
    rule = hermite(32)
    nodes = nodes_at(sigma, rule, rule)
    forms: dict[str, tuple[Gradient, float, dict[str, Any], float]] = {
        "reverse_kl": (score_gap_gradient, 1 / sigma**2, {}, GUIDANCE),
        "SIM": (fisher_gradient, 2 / sigma**4, {"alpha": 1.0}, 1 + (GUIDANCE - 1) * (SCALE**2 / sigma**2 + 1)),
    }
    for name, (gradient, weight, settings, factor) in forms.items():

        def total(
            x0: Tensor, teacher_x0: Tensor, critic_x0: Tensor, *, gradient: Gradient = gradient, **keywords: Any
        ) -> Tensor:
            x_t = x0.detach().flatten() + nodes.sigma * nodes.eps
            null_x0 = null(x_t.reshape(x0.shape), nodes.sigma)
            matching = gradient(x0, teacher_x0, critic_x0, **keywords)
            level_weight = keywords["level_weight"]
            return matching + guidance_gradient(x0, teacher_x0, null_x0, GUIDANCE, level_weight=level_weight)

        got = expected_gradient(total, plain, factor * CLASS_MEAN, SCALE, nodes, level_weight=weight, **settings)
        yield Check("F", f"guidance 3 outside, {name}: rests at ({factor:.3g} mu_c, tau)", got, (0.0, 0.0))


def rewarded(gradient: Gradient, term: RewardTerm) -> Gradient:
    """The gradient of a method with a reward."""

    def total(x0: Tensor, *networks: Tensor, **keywords: Any) -> Tensor:
        matching = gradient(x0, *networks, **keywords)
        return matching + term.gradient(x0)[0]

    return total


def linear_reward() -> Iterator[Check]:
    """R = b x with weight a: m* = mu + a b / E[w / v_p] (reverse KL), mu + a b / (2 E[w / v_p^2]) (SIM); s* = tau."""
    mean, scale, a, b = 0.1, 0.5, 0.8, 0.35
    term = RewardTerm(CallableReward(lambda images, _: b * (2 * images - 1).flatten(1).sum(1)), a, batch_size=10_000)
    teacher = gaussian(mean, scale)
    sigma = torch.tensor([0.2, 0.5, 1.4], dtype=torch.float64)
    weight = torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
    rule = hermite(24)
    nodes = nodes_at(sigma, rule, rule)
    w = weight.repeat_interleave(len(nodes.z) // 3)
    v_p = scale**2 + sigma**2
    tilted = {
        "reverse_kl": (score_gap_gradient, w / nodes.sigma**2, {}, mean + a * b / (weight / v_p).mean()),
        "SIM": (
            fisher_gradient,
            2 * w / nodes.sigma**4,
            {"alpha": 1.0},
            mean + a * b / (2 * (weight / v_p**2).mean()),
        ),
    }
    for name, (gradient, level_weight, settings, optimum) in tilted.items():
        total = rewarded(gradient, term)
        got = expected_gradient(total, teacher, float(optimum), scale, nodes, level_weight=level_weight, **settings)
        yield Check("F", f"linear reward, {name}: rests at the tilted mean", got, (0.0, 0.0), source="7.7")


def quadratic_reward() -> Iterator[Check]:
    """R = -(x - t)^2 / 2 with weight a, reverse KL at one level: the tilt p exp(a R), whose scale changes, too.

    m* = (mu / v_p + a t) / (1 / v_p + a), s*^2 + sigma^2 = 1 / (1 / v_p + a); as sigma -> 0 the tilted Gaussian.
    """
    mean, scale, sigma, a, target = 0.1, 0.1, 0.05, 40.0, -0.1  # narrow: where pixels are clamped R is another
    term = RewardTerm(CallableReward(lambda images, _: -0.5 * (2 * images - 1 - target).square().flatten(1).sum(1)), a)
    rule = hermite(24)
    v_p = scale**2 + sigma**2
    precision = 1 / v_p + a
    optimum, spread = (mean / v_p + a * target) / precision, (1 / precision - sigma**2) ** 0.5
    got = expected_gradient(
        rewarded(score_gap_gradient, term), gaussian(mean, scale), optimum, spread, nodes_at(sigma, rule, rule),
        level_weight=1 / sigma**2,
    )  # fmt: skip
    yield Check("F", "quadratic reward, reverse_kl: rests at the tilt", got, (0.0, 0.0), source="7.7")
