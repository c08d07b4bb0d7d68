"""The one step that all distribution-matching methods share: a row of choices, a gradient at x0, a critic loss.

It owns no optimiser and no device: the loop's task does (`training/distiller.py`).
"""

from contextlib import AbstractContextManager, nullcontext
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from diffdistill.config.schema import Adversarial
from diffdistill.config.schema import Ratio as RatioSettings
from diffdistill.denoiser import Denoiser
from diffdistill.discriminators import Discriminator
from diffdistill.divergences import get_divergence
from diffdistill.errors import ConfigError
from diffdistill.level_weights import LevelNormaliser
from diffdistill.losses import approximate_r1, denoising_loss, discriminator_loss, fisher_gradient, score_gap_gradient, warn_if_unstable
from diffdistill.process import LevelLaw, per_sample
from diffdistill.ratio import RatioTracker

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
            raise ConfigError("method.guidance_scale needs a teacher with a null class (trained with class_dropout > 0); set it to 1")
        adversarial = choices.adversarial
        self.discriminator = Discriminator(self.eyes, adversarial.taps) if adversarial else None
        ratio = choices.ratio
        self.ratio = RatioTracker(ratio.bins, ratio.decay, ratio.clip).to(device) if ratio and adversarial else None
        self.normaliser = LevelNormaliser().to(device) if choices.level_weight == "dmd_level" else None

    @property
    def eyes(self) -> Denoiser:
        """The network whose features the discriminator reads."""
        return self.critic if self.choices.adversarial and self.choices.adversarial.features == "critic" else self.teacher

    def student_gradient(self, x0: Tensor, cond: Tensor | None, progress: float) -> tuple[Tensor, Metrics]:
        """d(loss of each sample) / d x0, `(B, C, H, W)`, sum convention, taken at a leaf copy of x0: nothing else gets a gradient.

        x0: the student's images; cond: their labels; progress: part of the run done, for methods with a warm-up.
        """
        c = self.choices
        warm = progress < c.fisher_warmup
        x = x0.detach().requires_grad_()
        u, sigma = self.level.draw(len(x), x.device)
        x_t = x + per_sample(sigma, x) * torch.randn_like(x)

        # The score-gap form takes both denoisers as constants, the Fisher form differentiates through them.
        taps = self.discriminator.taps if self.discriminator else ()
        on_teacher, on_critic = (taps, ()) if self.eyes is self.teacher else ((), taps)
        with self.autocast():
            with torch.set_grad_enabled(c.form == "fisher" or bool(on_teacher)):
                teacher_x0, features = self._teacher(x_t, sigma, cond, on_teacher)
            with torch.set_grad_enabled(c.form == "fisher" or bool(on_critic)):
                critic_x0, critic_features = self.critic.tapped(x_t, sigma, cond, on_critic)
        raw = self.discriminator(features or critic_features) if self.discriminator else None
        logit = self.ratio(raw, u) if self.ratio is not None else None

        weight = self.normaliser(x, teacher_x0, u) if self.normaliser is not None else c.level_weight
        kwargs = {"logit": logit, "divergence": c.divergence, "level_weight": weight, "normalize": c.normalize}
        if warm:
            kwargs |= {"divergence": "reverse_kl", "logit": None}
        if c.form == "score_gap":
            gradient = score_gap_gradient(x, teacher_x0, critic_x0, **kwargs)
        else:
            alpha, detach = (1.0, False) if warm else (c.alpha, c.detach_ratio)
            gradient = fisher_gradient(x, teacher_x0, critic_x0, alpha=alpha, detach_ratio=detach, retain_graph=raw is not None, **kwargs)
        metrics: Metrics = {"gradient/matching": gradient.flatten(1).norm(dim=1).mean()}
        if raw is not None and c.adversarial.weight > 0 and not warm:
            # lambda_G is given for a score gap averaged over C, H, W; ours is summed.
            (adversarial,) = torch.autograd.grad(softplus(-raw).sum(), x)
            adversarial = c.adversarial.weight * x[0].numel() * adversarial
            metrics["gradient/adversarial"] = adversarial.flatten(1).norm(dim=1).mean()
            gradient = gradient + adversarial
        return gradient, metrics | self._health(x.detach(), teacher_x0.detach(), critic_x0.detach(), u)

    def _teacher(self, x_t: Tensor, sigma: Tensor, cond: Tensor | None, taps: tuple[str, ...]) -> tuple[Tensor, list[Tensor]]:
        x0, features = self.teacher.tapped(x_t, sigma, cond, taps)
        w = self.choices.guidance_scale
        if w != 1.0:
            null = self.teacher(x_t, sigma, self.teacher.null_condition(cond))
            x0 = null + w * (x0 - null)
        return x0, features

    @torch.no_grad()
    def _health(self, x: Tensor, teacher_x0: Tensor, critic_x0: Tensor, u: Tensor) -> Metrics:
        """What tells that training goes wrong: the gap relative to the noise left, per level; the spread of the images; E[r]."""
        gap = (critic_x0 - teacher_x0).abs().flatten(1).mean(1)
        relative = gap / (x - teacher_x0).abs().flatten(1).mean(1).clamp_min(1e-5)
        bins = (u * LEVEL_BINS).long().clamp(0, LEVEL_BINS - 1)
        metrics: Metrics = {"score_gap/relative": relative.mean()}
        for k in range(LEVEL_BINS):
            if bool((bins == k).any()):
                metrics[f"score_gap/level_{k}"] = relative[bins == k].mean()
        metrics["x0/std"] = x.std()
        metrics["x0/saturation"] = (x.abs() > 1.02).float().mean()
        if self.ratio is not None:
            metrics |= {f"ratio/{name.removeprefix('ratio_')}": value for name, value in self.ratio.metrics().items()}
        return metrics

    def critic_loss(
        self, x0: Tensor, cond: Tensor | None, real: Tensor | None, real_cond: Tensor | None
    ) -> tuple[Tensor, Metrics]:
        """Scalar loss of the critic (denoising score matching on the student's images) and of the discriminator.

        x0: detached student images; real: as many real images, needed by methods with a discriminator.
        """
        x0 = x0.detach()
        _, sigma = self.critic_level.draw(len(x0), x0.device)
        with self.autocast():
            prediction = self.critic(x0 + per_sample(sigma, x0) * torch.randn_like(x0), sigma, cond)
        loss = denoising_loss(prediction, x0, sigma, getattr(self.teacher.process, "sigma_data", 0.5)).mean()
        metrics: Metrics = {"critic/loss": loss.detach()}
        if self.discriminator is not None:
            term, more = self._discriminator_loss(x0, cond, real, real_cond)
            loss, metrics = loss + term, metrics | more
        return loss, metrics

    def _discriminator_loss(
        self, fake: Tensor, fake_cond: Tensor | None, real: Tensor, real_cond: Tensor | None
    ) -> tuple[Tensor, Metrics]:
        settings = self.choices.adversarial
        # Real and fake at the same levels, drawn by the law of the score gap: the ratio is right where it is used.
        _, sigma = self.level.draw(len(fake), fake.device)
        both = torch.cat([real, fake])
        sigmas = torch.cat([sigma, sigma])
        noised = both + per_sample(sigmas, both) * torch.randn_like(both)
        conds = None if fake_cond is None else torch.cat([real_cond, fake_cond])
        with self.autocast(), torch.set_grad_enabled(self.eyes is self.critic):
            _, features = self.eyes.tapped(noised, sigmas, conds, self.discriminator.taps, stop=True)
        real_logit, fake_logit = self.discriminator(features).chunk(2)
        loss = discriminator_loss(real_logit, fake_logit)
        metrics: Metrics = {
            "discriminator/loss": loss.detach(),
            "discriminator/accuracy": 0.5 * ((real_logit > 0).float().mean() + (fake_logit < 0).float().mean()),
        }
        if settings.r1 > 0:
            with self.autocast():
                penalty = approximate_r1(lambda x: self.discriminator.look(self.eyes, x, sigma, real_cond), noised[: len(real)], real_logit)
            loss = loss + 0.5 * settings.r1 * penalty.mean()
            metrics["discriminator/r1"] = penalty.mean().detach()
        # On teacher features the heads share nothing with the critic, so their weight is only a learning rate.
        return loss * (settings.critic_weight if self.eyes is self.critic else 1.0), metrics
