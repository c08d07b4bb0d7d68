"""Positive weights w on the score gap: one table of them, and their functions.

Any positive function of the level alone leaves the objective a divergence; a weight that depends on the sample does so
only approximately (or, attached in the Fisher form, makes another one: the pseudo-Huber distance of SIM).

No torch is loaded here: settings ask the table for its names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffdistill import registry
from diffdistill.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.process import LevelLaw


@dataclass(frozen=True)
class LevelWeight:
    """A weight by name, and what it is a function of; of nothing: 1.

    of_images: of a sample's images, (x0, teacher_x0, critic_x0) -> (B, 1, 1, 1). of_level: of the level, (law, u) ->
    (B,). of_batch: of the whole batch and those before; the step keeps it (`LevelNormaliser`). forms: where it has a
    meaning. weighs_guidance: whether it also weighs guidance outside the gap.

    >>> import torch
    >>> from diffdistill.process import Level, LevelLaw
    >>> exact = LevelWeight("exact", "1 / sigma^2", of_level=lambda law, u: law.sigma(u) ** -2)
    >>> exact.argument(LevelLaw(Level("uniform", sigma_min=1.0, sigma_max=3.0)), torch.tensor([0.5]))
    tensor([0.2500])
    """

    name: str
    meaning: str
    of_images: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    of_level: Callable[[LevelLaw, Tensor], Tensor] | None = None
    of_batch: bool = False
    forms: tuple[str, ...] = ("score_gap", "fisher")
    weighs_guidance: bool = True

    def argument(self, law: LevelLaw, u: Tensor) -> Tensor | Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """What the functions of `losses` take for `level_weight` at u `(B,)`; None where the step weighs later."""
        return self.of_images if self.of_level is None else self.of_level(law, u)


def dmd_weight(x0: Tensor, teacher_x0: Tensor, critic_x0: Tensor | None = None, *, floor: float = 1e-5) -> Tensor:
    """DMD's per-sample normaliser w = 1 / max(mean_{C,H,W} |x0 - D_T|, floor), detached (2311.18828).

    x0, teacher_x0: (B, C, H, W). Returns (B, 1, 1, 1). Its mean over a sample needs many dimensions: for a few, 1/|x0
        - D_T| has no expectation; take `LevelNormaliser` there. `critic_x0` is ignored.

    >>> import torch
    >>> dmd_weight(torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5)).flatten()
    tensor([2., 2.])
    """
    from diffdistill.process import per_sample

    distance = (x0.detach() - teacher_x0.detach()).abs().flatten(1).mean(1)
    return per_sample(1 / distance.clamp_min(floor), x0)


def pseudo_huber_weight(x0: Tensor, teacher_x0: Tensor, critic_x0: Tensor, *, c: float | None = None) -> Tensor:
    """w = 1 / sqrt(||g||^2 + c^2), g = D_F - D_T, the norm over the whole sample (2410.16794).

    Attached to its inputs: in the Fisher form with alpha = 1 the loss is then that of the pseudo-Huber distance
    sqrt(||g||^2 + c^2) - c, and the weight's own dependence on x is part of it. `c` is in units of x0; None: 0.01
    sqrt(C H W). Returns (B, 1, 1, 1).

    >>> import torch
    >>> x0, teacher_x0, critic_x0 = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 3.0)
    >>> round(float(pseudo_huber_weight(x0, teacher_x0, critic_x0, c=4.0)), 4)
    0.2
    """
    from diffdistill.process import per_sample

    if c is None:
        c = 0.01 * x0[0].numel() ** 0.5
    squared_norm = (critic_x0 - teacher_x0).square().flatten(1).sum(1)
    return per_sample((squared_norm + c * c).rsqrt(), x0)


def expansion_weight(law: LevelLaw, u: Tensor) -> Tensor:
    """w = (d sigma / du) / sigma^3 at u (B,), for the Fisher form with alpha = 1/2 (2505.20755, Theorem 3.1; VE).

    D_f(p || q) = D_f at the highest level + integral of sigma E[h(r) ||grad log q - grad log p||^2] d(sigma), and with
    the score gap (D_F - D_T) / sigma^2 that is E[h(r) ||D_F - D_T||^2] d(sigma) / sigma^3. The law's density of sigma,
    du / d(sigma), is divided out, so the objective is the same under every law. Returns (B,).

    >>> import torch
    >>> from diffdistill.process import Level, LevelLaw
    >>> expansion_weight(LevelLaw(Level("uniform", sigma_min=1.0, sigma_max=3.0)), torch.tensor([0.5]))  # 2 / 2^3
    tensor([0.2500])
    """
    sigma = law.sigma(u)
    return law.slope(u) / sigma**3


LEVEL_WEIGHTS = {
    weight.name: weight
    for weight in (
        LevelWeight("none", "1"),
        LevelWeight("dmd", "1 / mean|x0 - D_T| per sample", of_images=dmd_weight),
        LevelWeight("dmd_level", "its expectation per level", of_batch=True),
        LevelWeight(
            "pseudo_huber",
            "1 / sqrt(||g||^2 + c^2)",
            of_images=pseudo_huber_weight,
            weighs_guidance=False,  # it belongs to the distance, not to the level
        ),
        LevelWeight(
            "expansion",
            "d(sigma) / sigma^3, Uni-Instruct's own, whatever the level law",
            of_level=expansion_weight,
            forms=("fisher",),
        ),
    )
}


def level_weight_names(form: str | None = None) -> tuple[str, ...]:
    """The names of all weights, or of those that a form may have.

    >>> level_weight_names("score_gap")
    ('none', 'dmd', 'dmd_level', 'pseudo_huber')
    """
    return tuple(name for name, weight in LEVEL_WEIGHTS.items() if form is None or form in weight.forms)


def get_level_weight(name: str) -> LevelWeight:
    """The row of that name, or the `LevelWeight` that `FILE.py:NAME` is; ConfigError where there is none.

    >>> get_level_weight("dmd").meaning, get_level_weight("expansion").forms
    ('1 / mean|x0 - D_T| per sample', ('fisher',))
    """
    if name in LEVEL_WEIGHTS:
        return LEVEL_WEIGHTS[name]
    if not registry.is_plugin(name):
        known = ", ".join(LEVEL_WEIGHTS)
        raise ConfigError(f"level_weight '{name}' is not known; it must be one of {known}, or FILE.py:NAME")
    weight = registry.load(name)
    if not isinstance(weight, LevelWeight):
        raise ConfigError(f"'{name}' is no level weight; it must be a {LevelWeight.__module__}.LevelWeight")
    return weight
