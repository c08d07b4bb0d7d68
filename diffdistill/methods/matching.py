"""The one step that all distribution-matching methods share: a row of choices, a gradient at x0, a critic loss.

It owns no optimiser and no device: the loop's task does (`training/distiller.py`).
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffdistill.config.methods import Adversarial, Rewarded
from diffdistill.config.methods import Ratio as RatioSettings
from diffdistill.config.methods import Reward as RewardSettings
from diffdistill.denoiser import Denoiser
from diffdistill.discriminators import AdversarialTerm
from diffdistill.divergences import get_divergence
from diffdistill.errors import ConfigError
from diffdistill.level_weights import LevelNormaliser, native_weight
from diffdistill.losses import (
    denoising_loss,
    fisher_gradient,
    guidance_gradient,
    score_gap_gradient,
    warn_if_unstable,
)
from diffdistill.process import LevelLaw, per_sample
from diffdistill.ratio import RatioTracker
from diffdistill.rewards.protocol import Prompts
from diffdistill.rewards.term import reward_term

Metrics = dict[str, Tensor | float]
LEVEL_BINS = 5


@dataclass(frozen=True)
class Choices:
    """A row of the table: what distinguishes one method from another."""

    form: Literal["score_gap", "fisher"]
    divergence: str = "reverse_kl"
    level_weight: str = "dmd"
    alpha: float = 0.5
    normalize: bool = False
    detach_ratio: bool = False
    adversarial: Adversarial | None = None
    ratio: RatioSettings | None = None
    guidance_scale: float = 1.0
    guidance: Literal["inside", "outside"] = "inside"
    reward: RewardSettings | None = None
    critic_warmup: float = 0.0
    # Until this part of the run: alpha 1, reverse KL, no adversarial term (Uni-Instruct starts as SIM).
    fisher_warmup: float = 0.0

    def __post_init__(self) -> None:
        if get_divergence(self.divergence).needs_ratio and self.adversarial is None:
            raise ConfigError(
                f"divergence '{self.divergence}' needs a density ratio and there is no discriminator; "
                "set method.adversarial.weight (0 trains the ratio only), or use reverse_kl"
            )
        if self.form == "fisher":
            warn_if_unstable(self.alpha)


def warn_if_unrewarded(settings: Rewarded, plain: str) -> None:
    """Warn where a rewarded method has neither a reward nor guidance, for it is then another method."""
    if settings.reward is None and settings.guidance_scale == 1.0:
        warnings.warn(
            f"{settings.name} without method.reward and without guidance is {plain}; give one of them.",
            stacklevel=4,
        )


class DistributionMatching:
    """Student gradient and critic loss of one method.

    teacher: frozen; critic: the student's own denoiser, trained beside it. Both see x_t = x0 + sigma eps.
    """

    def __init__(
        self,
        choices: Choices,
        teacher: Denoiser,
        critic: Denoiser,
        level: LevelLaw,
        critic_level: LevelLaw,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self.choices = choices
        self.teacher, self.critic = teacher.requires_grad_(False).eval(), critic
        self.level, self.critic_level, self.autocast = level, critic_level, autocast
        device = next(teacher.parameters()).device
        if choices.guidance_scale != 1.0 and teacher.null_class is None:
            raise ConfigError(
                "method.guidance_scale needs a teacher with a null class (trained with class_dropout > 0); set it to 1"
            )
        settings = choices.adversarial
        self.adversarial = AdversarialTerm(settings, teacher, critic) if settings is not None else None
        ratio = choices.ratio
        self.ratio = RatioTracker(ratio.bins, ratio.decay, ratio.clip).to(device) if ratio and settings else None
        decode = None if teacher.prompts is None else teacher.decode
        self.reward = None if choices.reward is None else reward_term(choices.reward, device, decode)
        if self.reward is not None:
            self.reward.check(teacher.num_classes)
        self.normaliser = LevelNormaliser().to(device) if choices.level_weight == "dmd_level" else None

    def modules(self) -> dict[str, nn.Module]:
        """What belongs in a checkpoint beside student and critic."""
        head = None if self.adversarial is None else self.adversarial.discriminator
        parts = {"discriminator": head, "ratio": self.ratio, "normaliser": self.normaliser}
        return {name: part for name, part in parts.items() if part is not None}

    def student_gradient(
        self, x0: Tensor, cond: Tensor | None, progress: float, prompts: Prompts = None
    ) -> tuple[Tensor, Metrics]:
        """d(loss of each sample) / d x0, `(B, C, H, W)`, in the sum convention.

        It is taken at a leaf copy of x0, so nothing else gets a gradient.
        x0: the student's images; cond: their labels; progress: part of the run done, for methods with a warm-up;
        prompts: what the reward reads, if not the labels.
        """
        c = self.choices
        warm = progress < c.fisher_warmup
        x = x0.detach().requires_grad_()
        u, sigma = self.level.draw(len(x), x.device)
        x_t = x + per_sample(sigma, x) * torch.randn_like(x)

        # The score-gap form takes both denoisers as constants, the Fisher form differentiates through them.
        term = self.adversarial
        taps = () if term is None else term.discriminator.taps
        on_teacher, on_critic = ((), taps) if term is not None and term.trains_eyes else (taps, ())
        with self.autocast():
            with torch.set_grad_enabled(c.form == "fisher" or bool(on_teacher)):
                inside = c.guidance_scale if c.guidance == "inside" else 1.0
                teacher_x0, features = self.teacher.guided_tapped(x_t, sigma, cond, inside, on_teacher)
            with torch.set_grad_enabled(c.form == "fisher" or bool(on_critic)):
                critic_x0, critic_features = self.critic.tapped(x_t, sigma, cond, on_critic)
        raw = None if term is None else term.discriminator(features or critic_features)
        logit = None if self.ratio is None or raw is None else self.ratio(raw, u)

        weight = c.level_weight if self.normaliser is None else self.normaliser(x, teacher_x0, u)
        terms = {"matching": self._matching(x, teacher_x0, critic_x0, logit, weight, warm, keep_graph=raw is not None)}
        metrics: Metrics = {}
        if c.guidance == "outside" and c.guidance_scale != 1.0:
            terms["guidance"] = self._outside(x, x_t, sigma, cond, teacher_x0, weight)
        if term is not None and raw is not None and term.settings.weight > 0 and not warm:
            terms["adversarial"] = term.gradient(raw, x)
        if self.reward is not None:
            terms["reward"], metrics = self.reward.gradient(x, cond if prompts is None else prompts)
        gradient = torch.stack(list(terms.values())).sum(0)
        metrics |= {f"gradient/{name}": g.flatten(1).norm(dim=1).mean() for name, g in terms.items()}
        return gradient, metrics | self._health(x.detach(), teacher_x0.detach(), critic_x0.detach(), u)

    def _matching(
        self,
        x: Tensor,
        teacher_x0: Tensor,
        critic_x0: Tensor,
        logit: Tensor | None,
        weight: Any,
        warm: bool,
        keep_graph: bool,
    ) -> Tensor:
        """The distribution-matching term: the row of the table as a call of `losses`."""
        c = self.choices
        divergence = "reverse_kl" if warm else c.divergence
        if c.form == "score_gap":
            return score_gap_gradient(
                x, teacher_x0, critic_x0,
                logit=logit, divergence=divergence, level_weight=weight, normalize=c.normalize,
            )  # fmt: skip
        return fisher_gradient(
            x, teacher_x0, critic_x0,
            logit=logit, divergence=divergence, level_weight=weight, normalize=c.normalize,
            alpha=1.0 if warm else c.alpha, detach_ratio=c.detach_ratio, retain_graph=keep_graph,
        )  # fmt: skip

    @torch.no_grad()
    def _outside(
        self, x: Tensor, x_t: Tensor, sigma: Tensor, cond: Tensor | None, conditional_x0: Tensor, weight: Any
    ) -> Tensor:
        """Guidance as a term of its own. The pseudo-Huber factor belongs to the distance, not to the level: w = 1."""
        with self.autocast():
            null_x0 = self.teacher(x_t, sigma, self.teacher.null_condition(cond))
        level = "none" if isinstance(weight, str) and weight == "pseudo_huber" else weight
        return guidance_gradient(x, conditional_x0, null_x0, self.choices.guidance_scale, level_weight=level)

    @torch.no_grad()
    def _health(self, x: Tensor, teacher_x0: Tensor, critic_x0: Tensor, u: Tensor) -> Metrics:
        """What tells that training goes wrong: the relative gap of each level, the spread of the images, E[r]."""
        gap = (critic_x0 - teacher_x0).abs().flatten(1).mean(1)
        relative = gap / (x - teacher_x0).abs().flatten(1).mean(1).clamp_min(1e-5)
        bins = (u * LEVEL_BINS).long().clamp(0, LEVEL_BINS - 1)
        metrics: Metrics = {"score_gap/relative": relative.mean()}
        for k in range(LEVEL_BINS):
            if bool((bins == k).any()):
                metrics[f"score_gap/level_{k}"] = relative[bins == k].mean()
        metrics["x0/std"] = x.std()
        if self.teacher.prompts is None:  # latents have no bounds
            # A tenth of half the range: a black background that is a shade too black is no harm.
            metrics["x0/saturation"] = (x.abs() > 1.1).float().mean()
        if self.ratio is not None:
            metrics |= {f"ratio/{name.removeprefix('ratio_')}": value for name, value in self.ratio.metrics().items()}
        return metrics

    def critic_loss(self, x0: Tensor, cond: Tensor | None, real: Tensor | None) -> tuple[Tensor, Metrics]:
        """Scalar loss of the critic (denoising score matching on the student's images) and of the discriminator.

        x0: student images, detached here; real: as many real images of the same labels, for the discriminator only.
        """
        x0 = x0.detach()
        _, sigma = self.critic_level.draw(len(x0), x0.device)
        with self.autocast():
            prediction = self.critic(x0 + per_sample(sigma, x0) * torch.randn_like(x0), sigma, cond)
        weight = native_weight(self.teacher.process, sigma)
        loss = denoising_loss(prediction, x0, sigma, weight=weight).mean()
        metrics: Metrics = {"critic/loss": loss.detach()}
        if self.adversarial is not None and real is not None:
            _, sigma = self.level.draw(len(x0), x0.device)
            with self.autocast():
                term, more = self.adversarial.loss(real, x0, sigma, cond)
            loss, metrics = loss + term, metrics | more
        return loss, metrics
