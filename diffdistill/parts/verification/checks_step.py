"""Test G: `DistributionMatching`, the step that training runs, row by row of the method table.

With the settings that each method has by default, on exact networks, its gradient is that of the method's objective.
For pixels N(mu, tau^2) and N(m, s^2), v_p = tau^2 + sigma^2, v_q = s^2 + sigma^2, A = 1 / v_p - 1 / v_q:

    K = d KL / d(m, s) = ((m - mu) / v_p, s A),        score gap D_F - D_T: sigma^2 K,
    Fisher form: sigma^4 / 2 * (2 (m - mu) / v_p ((2 a - 1) / v_q - 2 (a - 1) / v_p), 4 s A (1 / v_q + (1 - a) A)).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffdistill.matching.micro_batches import CriticNoise
from diffdistill.methods.base import Method, Ratio
from diffdistill.methods.diff_instruct import DiffInstruct
from diffdistill.methods.diff_instruct_pp import DiffInstructPP
from diffdistill.methods.diff_instruct_star import DiffInstructStar
from diffdistill.methods.dmd2 import DMD2
from diffdistill.methods.f_distill import FDistill
from diffdistill.methods.sid import SiD
from diffdistill.methods.sim import SIM
from diffdistill.methods.uni_instruct import UniInstruct
from diffdistill.parts.verification.analytic import TEACHER_1, F, Grid, Nodes, gaussian, hermite, nodes_at, trapezoid
from diffdistill.parts.verification.check import Check
from diffdistill.parts.verification.checks_losses import PRINTED_D_F, PRINTED_UNI
from diffdistill.parts.verification.step import (
    EYES,
    GivenLevels,
    Pixels,
    Step,
    at_nodes,
    normal_nodes,
    processes,
    say_the_feature,
)
from diffdistill.process import EDM, Level, LevelLaw
from diffdistill.rewards import CallableReward
from diffdistill.rewards.term import RewardTerm

MU, TAU = 0.1, 0.5
PIXELS = Pixels(mean=0.25, scale=0.3)
NULL_MU, GUIDANCE, REWARD = -0.1, 3.0, 0.4
WIDE = Ratio(clip=(1e-9, 1e9))
# The step computes in float32; the gradients below are between 1e-2 and 1.
SINGLE = 2e-5

# One of each kind of what a batch has together: nothing, the mean of h, distances, heads and two teachers.
IN_PARTS = ("dmd2", "f_distill", "sid, dmd_level", "uni_instruct", "diff_instruct_star, outside")

Pair = Tensor  # (levels, 2): d/dm and d/ds at each level


def rows() -> dict[str, Method]:
    """Every method with its default settings; heads read the layer that holds the log ratio."""
    return {
        "diff_instruct": DiffInstruct(name="diff_instruct"),
        "dmd2": DMD2(name="dmd2", adversarial=EYES),
        "dmd2, adversarial weight 0.1": DMD2(name="dmd2", adversarial=EYES.model_copy(update={"weight": 0.1})),
        "f_distill": FDistill(name="f_distill", adversarial=EYES),
        "f_distill, forward_kl": FDistill(name="f_distill", divergence="forward_kl", adversarial=EYES),
        "sid": SiD(name="sid"),
        "sid, alpha = 0.5": SiD(name="sid", alpha=0.5),
        "sid, alpha = 1.2": SiD(name="sid", alpha=1.2),
        "sid, dmd_level": SiD(name="sid", level_weight="dmd_level"),
        "sida": SiD(name="sid", adversarial=EYES.model_copy(update={"weight": 0.1})),
        "sim": SIM(name="sim"),
        "uni_instruct": UniInstruct(name="uni_instruct", adversarial=EYES),
        "uni_instruct, jensen_shannon": UniInstruct(
            name="uni_instruct", divergence="jensen_shannon", adversarial=EYES
        ),
        "diff_instruct_pp": DiffInstructPP(name="diff_instruct_pp", guidance_scale=GUIDANCE),
        "diff_instruct_pp, outside": DiffInstructPP(
            name="diff_instruct_pp", guidance_scale=GUIDANCE, guidance="outside"
        ),
        "diff_instruct_star": DiffInstructStar(name="diff_instruct_star", guidance_scale=GUIDANCE),
        "diff_instruct_star, outside": DiffInstructStar(
            name="diff_instruct_star", guidance_scale=GUIDANCE, guidance="outside"
        ),
    }


def checks() -> Iterator[Check]:
    yield from method_rows()
    yield from divergences()
    yield from expansion()
    yield from critic()
    yield from discriminator()


def method_rows() -> Iterator[Check]:
    for name, settings in rows().items():
        step = step_of(settings)
        got = PIXELS.expected(step)
        yield Check("G", f"step: {name}", got, closed_form(settings), tolerance=SINGLE)
        if name in IN_PARTS:
            in_parts = PIXELS.expected(step, part_size=4)
            yield Check("G", f"step: {name}, in parts", in_parts, got, tolerance=1e-6)


def step_of(settings: Method) -> Step:
    """With guidance a reward too: the mean of the pixels, which pulls at each by half its weight."""
    guided = settings.guidance_scale != 1
    teacher = [gaussian(MU, TAU), gaussian(NULL_MU, TAU)] if guided else [gaussian(MU, TAU)]
    reward = RewardTerm(CallableReward(lambda images, _: images.flatten(1).mean(1)), REWARD) if guided else None
    return Step(settings, teacher, gaussian(PIXELS.mean, PIXELS.scale), PIXELS.law(), reward=reward)


# ---- what each row descends, at each level


def closed_form(settings: Method) -> tuple[float, float]:
    """(d/dm, d/ds) of the row's objective, the mean over levels."""
    sigma = PIXELS.law().draw(PIXELS.levels)[1].double()
    outside = getattr(settings, "guidance", "inside") == "outside"
    guided_mu = MU if outside else NULL_MU + settings.guidance_scale * (MU - NULL_MU)
    target = MU if settings.guidance_scale == 1 else guided_mu
    kl = kl_slope(sigma, target)
    matching = LOSSES[settings.name](settings, sigma, kl, target)
    if settings.adversarial is not None:
        # softplus(-l) with l = -KL a pixel: its slope is sigmoid(KL).
        matching = matching + settings.adversarial.weight * torch.sigmoid(kl_value(sigma))[:, None] * kl_slope(sigma)
    if outside:
        pull = (settings.guidance_scale - 1) * sigma**2 * (NULL_MU - MU) / (TAU**2 + sigma**2)
        matching = matching + torch.stack([pull, torch.zeros_like(pull)], 1)
    if settings.guidance_scale != 1:
        matching = matching - torch.tensor([0.5 * REWARD, 0.0], dtype=torch.float64)
    dm, ds = matching.mean(0).tolist()
    return dm, ds


def kl_value(sigma: Tensor) -> Tensor:
    v_p, v_q = TAU**2 + sigma**2, PIXELS.scale**2 + sigma**2
    return 0.5 * ((v_p / v_q).log() + (v_q + (PIXELS.mean - MU) ** 2) / v_p - 1)


def kl_slope(sigma: Tensor, mu: float = MU) -> Pair:
    v_p, v_q = TAU**2 + sigma**2, PIXELS.scale**2 + sigma**2
    return torch.stack([(PIXELS.mean - mu) / v_p, PIXELS.scale * (1 / v_p - 1 / v_q)], 1)


def fisher_slope(sigma: Tensor, alpha: float, mu: float = MU) -> Pair:
    """Of the Fisher form's loss in units of x0."""
    v_p, v_q = TAU**2 + sigma**2, PIXELS.scale**2 + sigma**2
    a = 1 / v_p - 1 / v_q
    mean = 2 * (PIXELS.mean - mu) / v_p * ((2 * alpha - 1) / v_q - 2 * (alpha - 1) / v_p)
    return (sigma**4 / 2)[:, None] * torch.stack([mean, 4 * PIXELS.scale * a * (1 / v_q + (1 - alpha) * a)], 1)


def distance(sigma: Tensor) -> Tensor:
    """E|x0 - D_T| over the pixels' nodes."""
    s = sigma.reshape(-1, 1, 1, 1)
    x_t = PIXELS.x0 + s * PIXELS.eps
    wiener = (TAU**2 * x_t + s**2 * MU) / (TAU**2 + s**2)
    return (PIXELS.x0 - wiener).abs().flatten(1).mean(1)


def weight(settings: Method, sigma: Tensor) -> Tensor:
    """w (levels, 1): 1, DMD's, or DMD's by level, whose bins begin with a thousandth of a sample of distance 1."""
    if settings.level_weight == "none":
        return torch.ones_like(sigma)[:, None]
    d = distance(sigma)
    if settings.level_weight == "dmd_level":
        d = (d + 0.99e-3) / (1 + 0.99e-3)
    return (1 / d)[:, None]


def h_of(divergence: str, log_r: Tensor) -> tuple[Tensor, Tensor]:
    """h = r^2 f'' and r h', by derivatives of f with respect to log r: h = d^2 f / dl^2 - df / dl."""
    logit = log_r.detach().requires_grad_()

    def slope(value: Tensor) -> Tensor:
        return torch.autograd.grad((value + 0 * logit).sum(), logit, create_graph=True)[0]

    first = slope(F[divergence](logit))
    h = slope(first) - first
    return h.detach(), slope(h).detach()


def score_gap(settings: Method, sigma: Tensor, kl: Pair, mu: float) -> Pair:
    return weight(settings, sigma) * (sigma**2)[:, None] * kl


def f_distill(settings: Any, sigma: Tensor, kl: Pair, mu: float) -> Pair:
    h, _ = h_of(settings.divergence, -kl_value(sigma))
    return (h / h.mean())[:, None] * score_gap(settings, sigma, kl, mu)


def sid(settings: Any, sigma: Tensor, kl: Pair, mu: float) -> Pair:
    return weight(settings, sigma) * fisher_slope(sigma, settings.alpha, mu)


def sim(settings: Method, sigma: Tensor, kl: Pair, mu: float) -> Pair:
    """sqrt(N E y^2 + c^2), its slope with the sampling law held constant; c^2 = 1e-4 N."""
    v_p, v_q = TAU**2 + sigma**2, PIXELS.scale**2 + sigma**2
    count = PIXELS.side**2
    mean_square = sigma**4 * (((PIXELS.mean - mu) / v_p) ** 2 + v_q * (1 / v_p - 1 / v_q) ** 2)
    return fisher_slope(sigma, 1.0, mu) / (count * (mean_square + 1e-4)).sqrt()[:, None]


def uni_instruct(settings: Any, sigma: Tensor, kl: Pair, mu: float) -> Pair:
    """h SIM + (h - r h') times half the difference of Fisher and SIM, which is linear in alpha. The ratio's own
    dependence on the pixel is a part in their number of E[(D_T - D_F) (D_F - x0)] = 0, and of h - r h'.
    """
    h, slope = h_of(settings.divergence, -kl_value(sigma))
    full, frozen = fisher_slope(sigma, 0.5, mu), fisher_slope(sigma, 1.0, mu)
    # d/dl of (h - r h') times l's own slope, -K: the ratio is the image's, its logit the mean over pixels.
    v_p, v_q = TAU**2 + sigma**2, PIXELS.scale**2 + sigma**2
    mean_square = sigma**4 * (((PIXELS.mean - mu) / v_p) ** 2 + v_q * (1 / v_p - 1 / v_q) ** 2)
    curvature = second_slope(settings.divergence, -kl_value(sigma))
    by_ratio = -0.5 * ((slope - curvature) * mean_square)[:, None] * kl
    total = h[:, None] * frozen + (h - slope)[:, None] * (full - frozen) + by_ratio
    return weight(settings, sigma) * total / h.mean()


def second_slope(divergence: str, log_r: Tensor) -> Tensor:
    """d(r h') / d log r."""
    step = 1e-4
    return (h_of(divergence, log_r + step)[1] - h_of(divergence, log_r - step)[1]) / (2 * step)


LOSSES: dict[str, Any] = {
    "diff_instruct": score_gap,
    "diff_instruct_pp": score_gap,
    "diff_instruct_star": sim,
    "dmd2": score_gap,
    "f_distill": f_distill,
    "sid": sid,
    "sim": sim,
    "uni_instruct": uni_instruct,
}


# ---- a ratio for each image


MEAN, SCALE, SIGMA = 0.5, 1.2, 0.7


def mean_weight(divergence: str, nodes: Nodes) -> float:
    """The mean of h over the batch, each node once, by which the step divides; it clamps logits to +-10."""
    x_t = (MEAN + SCALE * nodes.z + nodes.sigma * nodes.eps).reshape(-1, 1, 1, 1)
    log_r = TEACHER_1.log_density(x_t, nodes.sigma) - gaussian(MEAN, SCALE).log_density(x_t, nodes.sigma)
    return float(h_of(divergence, log_r.clamp(-10, 10))[0].mean())


def divergences() -> Iterator[Check]:
    """f-distill is the gradient of D_f at a level, Uni-Instruct of the weighted Fisher divergence, up to mean h."""
    rule = hermite(96)
    nodes = nodes_at(SIGMA, rule, rule)
    level = Level(law="uniform", sigma_min=SIGMA, sigma_max=SIGMA)
    law = GivenLevels(level, u=torch.full_like(nodes.z, 0.5))
    common: dict[str, Any] = {
        "level_weight": "none", "adversarial": EYES.model_copy(update={"weight": 0.0}), "ratio": WIDE,
    }  # fmt: skip
    for divergence, printed in PRINTED_D_F.items():
        mean_h = mean_weight(divergence, nodes)
        for settings, factor, expected in (
            (FDistill(name="f_distill", divergence=divergence, **common), SIGMA**-2, printed),
            (
                UniInstruct(name="uni_instruct", divergence=divergence, **common),
                2 * SIGMA**-4,
                PRINTED_UNI[divergence][0],
            ),
        ):
            step = Step(settings, [TEACHER_1], gaussian(MEAN, SCALE), law)
            got = tuple(factor * mean_h * value for value in at_nodes(step, MEAN, SCALE, nodes))
            scale = max(1.0, *map(abs, expected))
            yield Check("G", f"step: {settings.name}, {divergence}", got, expected, 1e-4 * scale, source="7.2 and 7.3")


def expansion(count: int = 24) -> Iterator[Check]:
    """Levels weighted by d(sigma) / sigma^3 add up to half of D_f, lowest level less highest, whatever their law."""
    points = torch.tensor(gauss_legendre(count)[0])
    measure = torch.tensor(gauss_legendre(count)[1])
    low, high = 0.3, 2.5
    laws: tuple[Literal["uniform", "loguniform", "karras"], ...] = ("uniform", "loguniform", "karras")
    for name in laws:
        level = Level(name, sigma_min=low, sigma_max=high)
        sigma = LevelLaw(level).sigma(points).double()
        nodes = nodes_at(sigma, trapezoid(161), hermite(16))
        law = GivenLevels(level, u=points.repeat_interleave(len(nodes.z) // count))
        weights = count * measure.repeat_interleave(len(nodes.z) // count) * nodes.weight
        for divergence in ("reverse_kl", "jensen_shannon"):
            settings = UniInstruct(
                name="uni_instruct", divergence=divergence, level_weight="expansion", ratio=WIDE,
                adversarial=EYES.model_copy(update={"weight": 0.0}),
            )  # fmt: skip
            mean_h = mean_weight(divergence, nodes)
            step = Step(settings, [TEACHER_1], gaussian(MEAN, SCALE), law)
            got = tuple(2 * mean_h * v for v in at_nodes(step, MEAN, SCALE, replace(nodes, weight=weights)))
            ends = (Grid(TEACHER_1, MEAN, SCALE, sigma, reach=20.0) for sigma in (low, high))
            first, last = (grid.divergence(F[divergence]) for grid in ends)
            expected = (first[0] - last[0], first[1] - last[1])
            yield Check("G", f"step: uni_instruct, expansion, {name}, {divergence}", got, expected, tolerance=1e-4)


def gauss_legendre(count: int) -> tuple[Any, Any]:
    """Nodes and weights on [0, 1]."""
    import numpy as np

    points, weights = np.polynomial.legendre.leggauss(count)
    return (points + 1) / 2, weights / 2


# ---- critic and discriminator


def critic() -> Iterator[Check]:
    """The squared error of the network's own output, and its least value at the posterior mean."""
    native = {
        "EDM": lambda s: (s**2 + 0.25) / (0.25 * s**2),
        "EDM, sigma_data 0.25": lambda s: (s**2 + 0.0625) / (0.0625 * s**2),
        "flow": lambda s: (1 + 1 / s) ** 2,
        "VP, epsilon": lambda s: s**-2,
        "VP, v_prediction": lambda s: 1 + s**-2,
        "VP, sample": lambda s: torch.ones_like(s),
    }
    m, s = PIXELS.mean, PIXELS.scale
    level = Level(law="loguniform", sigma_min=0.1, sigma_max=5.0)
    law = GivenLevels(level, u=PIXELS.law().u)
    sigma = law.draw(PIXELS.levels)[1].double()
    for name, process in (processes() | {"EDM, sigma_data 0.25": EDM(0.25)}).items():

        def loss(mean: float, scale: float, process: Any = process) -> float:
            step = Step(DiffInstruct(name="diff_instruct"), [gaussian(MU, TAU)], gaussian(mean, scale), law, process)
            noise = CriticNoise(sigma.float(), PIXELS.eps.float())
            return float(step.method(PIXELS.x0.shape[1:]).critic_loss(PIXELS.x0.float(), None, None, noise)[0])

        other, spread = 0.4, 0.45
        keep = spread**2 / (spread**2 + sigma**2)  # D = keep x_t + (1 - keep) mean
        error = (1 - keep) ** 2 * ((m - other) ** 2 + s**2) + keep**2 * sigma**2
        expected = float((native[name](sigma) * error).mean())
        yield Check(
            "G", f"critic's loss, {name}", (loss(other, spread),), (expected,), tolerance=2e-4 * max(1.0, expected)
        )
        least = loss(m, s)
        beside = min(loss(m + 0.05, s), loss(m - 0.05, s), loss(m, s * 1.1), loss(m, s / 1.1))
        yield Check(
            "G", f"critic's loss, {name}: least at E[x0 | x_t]", (least, beside), tolerance=1e-4, relation="increasing"
        )


def discriminator() -> Iterator[Check]:
    """The logistic loss rests where the head says log p_real / p_student, and nowhere near its negative."""
    count = 128
    z, eps = (v.flatten() for v in torch.meshgrid(normal_nodes(count), normal_nodes(count), indexing="ij"))
    real, fake = ((m + s * z).reshape(-1, 1, 1, 1).float() for m, s in ((MU, TAU), (PIXELS.mean, PIXELS.scale)))
    sigma, noise = torch.full_like(real.flatten(), 0.4), eps.reshape(-1, 1, 1, 1).float()
    law = GivenLevels(Level(), u=torch.full((len(z),), 0.5))
    step = Step(DMD2(name="dmd2", adversarial=EYES), [gaussian(MU, TAU)], gaussian(PIXELS.mean, PIXELS.scale), law)
    slopes = []
    for slope in (1.0, -1.0):
        method = step.method((1, 1, 1))
        assert method.adversarial is not None
        say_the_feature(method, slope)
        method.critic_loss(fake, None, real, CriticNoise(sigma, noise, sigma, noise, noise))[0].backward()
        weight = next(method.adversarial.discriminator.parameters())
        assert weight.grad is not None
        slopes.append(float(weight.grad.sum()))
    right, wrong = slopes
    what = "discriminator: slope of its loss at"
    yield Check("G", f"{what} log p_real / p_student", (right,), (0.0,), tolerance=2e-3)
    yield Check("G", f"{what} its negative", (wrong,), (0.0,), tolerance=0.1, relation="differs")
