"""The scalar loss of every method, summed over samples, as its paper states it: what autograd of it gives is compared
with the production step. Float64 throughout, but for what the networks say.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from by_hand import Answer, Karras, Net, h_of, stratified
from torch import Tensor

from diffdistill.methods.base import Adversarial, Method

BINS, MEMORY, CLIP = 10, 0.98, (0.01, 100.0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


@dataclass
class Memory:
    """What a step remembers of those before: E[r] in ten bins of u, E|x0 - D_T| in 32."""

    ratio: Tensor = field(default_factory=lambda: torch.tensor([[8.0] * BINS] * 2, dtype=torch.float64))
    distance: Tensor = field(default_factory=lambda: torch.tensor([[1e-3] * 32] * 2, dtype=torch.float64))

    @staticmethod
    def count(table: Tensor, values: Tensor, u: Tensor, memory: float) -> None:
        size = table.shape[1]
        for k in range(size):
            inside = (u * size).long().clamp(max=size - 1) == k
            if inside.any():
                table[:, k] *= memory
                table[0, k] += values[inside].double().sum()
                table[1, k] += inside.sum()

    @staticmethod
    def at(table: Tensor, u: Tensor) -> Tensor:
        size = table.shape[1]
        return (table[0] / table[1])[(u * size).long().clamp(max=size - 1)]


@dataclass
class Seen:
    """All that a loss may use, attached to the images x; logits (B, heads)."""

    x: Tensor
    x_t: Tensor
    sigma: Tensor
    u: Tensor
    teacher: Tensor  # D_T, guided where guidance is inside
    critic: Tensor
    conditional: Tensor
    null: Tensor | None
    logits: Tensor | None


@dataclass
class Reference:
    """A method, by hand: `gradient` is d loss / d x0 of the next step."""

    settings: Method
    teacher: Net
    critic: Net
    law: Karras
    null_class: int | None = None
    heads: Any = None
    reward_slope: Tensor | None = None  # of a linear reward of pixels in [0, 1], with its weight
    memory: Memory = field(default_factory=Memory)

    def gradient(self, x0: Tensor, labels: Tensor | None, seed: int, progress: float = 0.9) -> Tensor:
        torch.manual_seed(seed)
        u = stratified(len(x0))
        x = x0.detach().clone().requires_grad_()
        seen = self.look(x, labels, u, torch.randn_like(x0))
        if self.settings.level_weight == "dmd_level":
            Memory.count(self.memory.distance, self.distance(seen), u, 0.99)
        (gradient,) = torch.autograd.grad(self.loss(seen, progress), x)
        return gradient

    def look(self, x: Tensor, labels: Tensor | None, u: Tensor, eps: Tensor) -> Seen:
        s = self.settings
        sigma = self.law.sigma(u)
        x_t = x + sigma.reshape(-1, 1, 1, 1) * eps
        term = s.adversarial
        own = term is not None and term.features == "critic"
        taps = () if term is None else term.taps
        cond = self.teacher(x_t, sigma, labels, () if own else taps)
        fake = self.critic(x_t, sigma, labels, taps if own else ())
        null = None
        if s.guidance_scale != 1:
            null = self.teacher(x_t, sigma, torch.full_like(labels, self.null_class)).x0.double()
        guided = cond.x0.double()
        if null is not None and getattr(s, "guidance", "inside") == "inside":
            guided = null + s.guidance_scale * (guided - null)
        logits = None if term is None else self.logits(fake if own else cond, term)
        return Seen(
            x.double(), x_t.double(), sigma.double(), u, guided, fake.x0.double(), cond.x0.double(), null, logits
        )

    def logits(self, answer: Answer, term: Adversarial) -> Tensor:
        found = [head(answer.taps[name]).reshape(-1, 1) for head, name in zip(self.heads, term.taps, strict=True)]
        return torch.cat(found, dim=1).double()

    def ratio(self, seen: Seen) -> Tensor | None:
        """r, calibrated by the steps before and clipped; then this one is counted."""
        if seen.logits is None or not hasattr(self.settings, "ratio"):
            return None
        logit = seen.logits.mean(1).clamp(-10, 10)
        r = (logit.exp() / Memory.at(self.memory.ratio, seen.u)).clamp(*CLIP)
        Memory.count(self.memory.ratio, logit.exp().detach(), seen.u, MEMORY)
        return r

    def loss(self, seen: Seen, progress: float) -> Tensor:
        s, n = self.settings, seen.x[0].numel()
        warm = progress < getattr(s, "fisher_warmup", 0.0)
        r = self.ratio(seen)
        total = LOSSES[s.name](self, seen, r, warm)
        if s.adversarial is not None and not warm:
            # The generator wants to be taken for real: log(1 + e^-l) falls as the logit rises.
            generator = (1 + (-seen.logits).exp()).log().mean(1).sum()
            total = total + s.adversarial.weight * n * generator
        if getattr(s, "guidance", "inside") == "outside":
            w = 1.0 if s.level_weight == "pseudo_huber" else self.weight(seen, attached=False)
            pull = (s.guidance_scale - 1) * (seen.null - seen.conditional).detach()
            total = total + (w * dot(pull, seen.x)).sum()
        if self.reward_slope is not None:
            total = total - n * dot((0.5 * seen.x + 0.5), self.reward_slope.double().expand_as(seen.x)).sum()
        return total

    def weight(self, seen: Seen, attached: bool) -> Tensor:
        """w (B,), on the score gap in units of x0."""
        kind, x = self.settings.level_weight, seen.x
        if kind == "none":
            return torch.ones(len(x), dtype=torch.float64)
        if kind == "dmd":
            return 1 / self.distance(seen)
        if kind == "dmd_level":
            return 1 / Memory.at(self.memory.distance, seen.u)
        if kind == "expansion":
            return self.law.slope(seen.u) / seen.sigma**3
        squares = (seen.critic - seen.teacher).square().flatten(1).sum(1)
        w = (squares + 1e-4 * x[0].numel()).rsqrt()
        return w if attached else w.detach()

    @staticmethod
    def distance(seen: Seen) -> Tensor:
        """mean |x0 - D_T| over each image."""
        return (seen.x - seen.teacher).abs().flatten(1).mean(1).detach()

    def scores(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """s_q - s_p, and s_q - grad log q(x_t | x0), by Tweedie's formula; x_t = x0 + sigma eps."""
        s2 = seen.sigma.reshape(-1, 1, 1, 1) ** 2
        s_q, s_p = (seen.critic - seen.x_t) / s2, (seen.teacher - seen.x_t) / s2
        return s_q - s_p, s_q - (seen.x - seen.x_t) / s2


def diff_instruct(m: Reference, seen: Seen, r: Tensor | None, warm: bool) -> Tensor:
    """2305.18455: sg[D_F - D_T] . x0."""
    return (m.weight(seen, False) * dot((seen.critic - seen.teacher).detach(), seen.x)).sum()


def dmd(m: Reference, seen: Seen, r: Tensor | None, warm: bool) -> Tensor:
    """2405.14867: half the squared distance to a target that is a step down the gap."""
    w = m.weight(seen, False).reshape(-1, 1, 1, 1)
    target = (seen.x - w * (seen.critic - seen.teacher)).detach()
    return 0.5 * (seen.x - target).square().sum()


def f_distill(m: Reference, seen: Seen, r: Tensor | None, warm: bool) -> Tensor:
    """2502.15681: DMD's target, a sample's step as long as h(r) over its mean."""
    r = (torch.ones(len(seen.x), dtype=torch.float64) if r is None else r.detach()).requires_grad_()
    h = h_of(m.settings.divergence, r)[0].detach()
    w = (m.weight(seen, False) * h / h.mean()).reshape(-1, 1, 1, 1)
    target = (seen.x - w * (seen.critic - seen.teacher)).detach()
    return 0.5 * (seen.x - target).square().sum()


def sid(m: Reference, seen: Seen, r: Tensor | None, warm: bool) -> Tensor:
    """2404.04057, eq. 23: (1 - a) |f_psi - f_phi|^2 + (f_phi - f_psi) . (f_psi - x_g), f_phi the teacher."""
    gap = seen.teacher - seen.critic
    a = m.settings.alpha
    return (m.weight(seen, False) * ((1 - a) * dot(gap, gap) + dot(gap, seen.critic - seen.x))).sum()


def sim(m: Reference, seen: Seen, r: Tensor | None, warm: bool) -> Tensor:
    """2410.16794: -d'(y) . (s_q - grad log q(x_t | x0)), d'(y) = y / sqrt(|y|^2 + c^2), y in units of x0."""
    y, residual = (v * seen.sigma.reshape(-1, 1, 1, 1) ** 2 for v in m.scores(seen))
    return -(m.weight(seen, True) * dot(y, residual)).sum()


def uni_instruct(m: Reference, seen: Seen, r: Tensor | None, warm: bool) -> Tensor:
    """2505.20755 with the exact gradient of its integrand: sigma^4 / 2 times
    -2 h delta . (s_q - grad log q(x_t | x0)) + (h - r h') |delta|^2, r attached. SIM's loss before.
    """
    delta, residual = m.scores(seen)
    w = m.weight(seen, False) * seen.sigma**4 / 2
    if warm:
        return -(2 * w * dot(delta, residual)).sum()
    r = torch.ones(len(seen.x), dtype=torch.float64, requires_grad=True) if r is None else r
    if m.settings.detach_ratio:
        r = r.detach().requires_grad_()
    h, slope = h_of(m.settings.divergence, r)
    mean = h.detach().mean()
    if m.settings.detach_ratio:
        h, slope = h.detach(), slope.detach()
    terms = -2 * h * dot(delta, residual) + (h - slope) * dot(delta, delta)
    return (w * terms / mean).sum()


LOSSES = {
    "diff_instruct": diff_instruct,
    "diff_instruct_pp": diff_instruct,
    "diff_instruct_star": sim,
    "dmd2": dmd,
    "f_distill": f_distill,
    "sid": sid,
    "sim": sim,
    "uni_instruct": uni_instruct,
}
