"""The one step that all distribution-matching methods share: a row of choices, a gradient at x0, a critic loss.

It owns no optimiser and no device: the loop does (`training/tasks/distill.py`, or one's own as in the docstring of
`diffdistill.matching`).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diffdistill import processes
from diffdistill.denoiser import Denoiser
from diffdistill.divergences import get_divergence
from diffdistill.errors import ConfigError
from diffdistill.losses import (
    WeightLike,
    denoising_loss,
    fisher_gradient,
    guidance_gradient,
    mean_weight,
    native_weight,
    score_gap_gradient,
    warn_if_unstable,
)
from diffdistill.matching.discriminators import AdversarialTerm
from diffdistill.matching.level_mean import LevelNormaliser
from diffdistill.matching.level_weights import get_level_weight
from diffdistill.matching.micro_batches import CriticNoise, Metrics, StudentNoise, joined, mean_of, parts_of, rows_of
from diffdistill.matching.ratio import RatioTracker
from diffdistill.matching.settings import Choices
from diffdistill.process import LevelLaw, per_sample

__all__ = ["DistributionMatching", "RewardLike"]

LEVEL_BINS = 5
OF_LEVEL = "score_gap/level_"


class RewardLike(Protocol):
    """What the step asks of a reward; `rewards.term.RewardTerm` is one.

    >>> from diffdistill.rewards import CallableReward
    >>> from diffdistill.rewards.term import RewardTerm
    >>> bright = CallableReward(lambda images, prompts: images.mean((1, 2, 3)), "bright")
    >>> reward: RewardLike = RewardTerm(bright, weight=1.0)
    >>> gradient, figures = reward.gradient(torch.zeros(2, 1, 4, 4))
    >>> gradient.unique(), figures  # -C H W d mean((x + 1) / 2) / dx; the mean score
    (tensor([-0.5000]), {'reward/score': tensor(0.5000)})
    """

    def check(self, num_classes: int | None) -> None:
        """Raises ConfigError where it cannot score images of so many classes."""

    def gradient(self, x: Tensor, prompts: Any = None) -> tuple[Tensor, Metrics]:
        """Each sample's gradient at x, `(B, C, H, W)`, and figures; prompts: texts, labels, or nothing."""


class PartResult(NamedTuple):
    """What one part of the batch gave: gradients by term, and the networks' verdicts, without graphs."""

    terms: dict[str, Tensor]
    teacher_x0: Tensor
    critic_x0: Tensor
    raw: Tensor | None  # the discriminator's logit (B,)
    logit: Tensor | None  # calibrated
    metrics: Metrics


class DistributionMatching:
    """Student gradient and critic loss of one method.

    teacher: frozen here; critic: the denoiser of the student's images, trained beside it. Both see x_t = x0 + sigma
    eps. level: law of sigma in the student's gradient and of the discriminator; critic_level: in the critic's loss.
    autocast: the precision of the passes; float32_gap: not that of the two whose difference is the gap. reward: what
    else the student follows.

    Raises ConfigError for guidance of a teacher without a null class, and for a reward that cannot score its images.

    A loop of one's own is in the docstring of `diffdistill.matching`. The gap to a critic that is still the teacher:

    >>> from diffdistill import load_model
    >>> from diffdistill.matching.settings import Choices
    >>> from diffdistill.process import Level, LevelLaw
    >>> teacher, critic = (load_model("builtin:fashion_mnist_teacher") for _ in range(2))
    >>> law = LevelLaw(Level("karras"))
    >>> step = DistributionMatching(Choices("score_gap"), teacher, critic, law, law)
    >>> x0, labels = torch.randn(2, 1, 28, 28), torch.tensor([0, 9])
    >>> gradient, metrics = step.student_gradient(x0, labels, progress=0.0)
    >>> gradient.shape, float(gradient.abs().max())
    (torch.Size([2, 1, 28, 28]), 0.0)
    """

    def __init__(
        self,
        choices: Choices,
        teacher: Denoiser,
        critic: Denoiser,
        level: LevelLaw,
        critic_level: LevelLaw,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
        float32_gap: bool = False,
        reward: RewardLike | None = None,
    ):
        self.choices = choices
        self.teacher, self.critic = teacher.requires_grad_(False).eval(), critic.eval()
        self.level, self.critic_level = level, critic_level
        self.autocast, self.float32_gap = autocast, float32_gap
        device = teacher.device
        if choices.guidance_scale != 1.0 and teacher.null_class is None:
            raise ConfigError(
                "method.guidance_scale needs a teacher with a null class (trained with class_dropout > 0); set it to 1"
            )
        settings = choices.adversarial
        self.adversarial = AdversarialTerm(settings, teacher, critic) if settings is not None else None
        ratio = choices.ratio
        self.ratio = RatioTracker(ratio.bins, ratio.decay, ratio.clip).to(device) if ratio and settings else None
        self.reward = reward
        if reward is not None:
            reward.check(teacher.num_classes)
        self.level_weight = get_level_weight(choices.level_weight)
        self.normaliser = LevelNormaliser().to(device) if self.level_weight.of_batch else None
        if choices.form == "fisher":
            warn_if_unstable(choices.alpha)

    def modules(self) -> dict[str, nn.Module]:
        """What belongs in a checkpoint beside student and critic."""
        head = None if self.adversarial is None else self.adversarial.discriminator
        parts = {"discriminator": head, "ratio": self.ratio, "normaliser": self.normaliser}
        return {name: part for name, part in parts.items() if part is not None}

    def student_gradient(
        self,
        x0: Tensor,
        cond: Tensor | None,
        progress: float,
        prompts: Any = None,
        part_size: int | None = None,
        noise: StudentNoise | None = None,
        count: int | None = None,
    ) -> tuple[Tensor, Metrics]:
        """d(loss of each sample) / d x0, `(B, C, H, W)`, in the sum convention.

        It is taken at a leaf copy of x0, so nothing else gets a gradient.
        x0: the student's images; cond: their labels; progress: part of the run done, for methods with a warm-up;
        prompts: texts, for a reward that reads them; part_size: images at a time, for the same gradient in less
        memory: noise is drawn, and means are taken, over the whole batch.
        noise: drawn here if it is not given. count: images of the batch over all processes, of which x0 are this
        one's (`processes.rows`), with their part of the whole batch's noise; means are then taken over all.
        Where no image lies in bin K of the level, the figure `score_gap/level_K` is absent; on an accelerator NaN.
        """
        c, x0 = self.choices, x0.detach()
        warm = progress < c.fisher_warmup
        noise = noise or self.student_noise(x0)
        u, parts = noise.u, parts_of(len(x0), part_size)
        results = [
            self._part(x0[rows], rows_of(cond, rows), noise.part(rows), warm, rows_of(prompts, rows)) for rows in parts
        ]
        terms = {name: torch.cat([part.terms[name] for part in results]) for name in results[0].terms}
        teacher_x0, critic_x0 = (
            torch.cat([getattr(part, n) for part in results]) for n in ("teacher_x0", "critic_x0")
        )
        if c.normalize and not warm:
            divergence = get_divergence(c.divergence)
            logit = joined([part.logit for part in results])
            logit = x0.new_zeros(len(x0)) if logit is None else logit
            terms["matching"] = terms["matching"] / mean_weight(divergence, logit)
        raw = joined([part.raw for part in results])
        if self.ratio is not None and raw is not None:
            self.ratio.update(raw, u)
        if self.normaliser is not None:
            weight = self.normaliser(x0, teacher_x0, u)
            terms |= {name: weight * terms[name] for name in ("matching", "guidance") if name in terms}
        gradient = torch.stack(list(terms.values())).sum(0)
        metrics = processes.mean(mean_of([part.metrics for part in results], parts), len(x0), count)
        norms = processes.gather(torch.stack([g.flatten(1).norm(dim=1) for g in terms.values()], dim=1), count)
        metrics |= {f"gradient/{name}": norms[:, i].mean() for i, name in enumerate(terms)}
        return gradient, metrics | self._health(x0, teacher_x0, critic_x0, u, count)

    def _part(self, x0: Tensor, cond: Tensor | None, noise: StudentNoise, warm: bool, prompts: Any) -> PartResult:
        """The terms of some samples, before what is a mean over the batch: of weights, and of levels."""
        c = self.choices
        x, sigma = x0.detach().requires_grad_(), noise.sigma
        x_t = x + per_sample(sigma, x) * noise.eps

        # The score-gap form takes both denoisers as constants, the Fisher form differentiates through them.
        term = self.adversarial
        taps = () if term is None else term.discriminator.taps
        on_teacher, on_critic = ((), taps) if term is not None and term.trains_features else (taps, ())
        constant = c.form == "score_gap"
        inside = c.guidance_scale if c.guidance == "inside" else 1.0
        with self._precision():
            teacher_x0, features = self.teacher.guided_tapped(x_t, sigma, cond, inside, on_teacher, only_taps=constant)
            critic_x0, critic_features = self.critic.tapped(x_t, sigma, cond, on_critic, only_taps=constant)
        heads = None if term is None else term.discriminator(features or critic_features)
        raw = None if heads is None else heads.mean(1)
        logit = None if self.ratio is None or raw is None else self.ratio(raw, noise.u)

        weight = self.level_weight.argument(self.level, noise.u)
        terms = {"matching": self._matching(x, teacher_x0, critic_x0, logit, weight, warm, keep_graph=raw is not None)}
        metrics: Metrics = {}
        if c.guidance == "outside" and c.guidance_scale != 1.0:
            over = weight if self.level_weight.weighs_guidance else None
            terms["guidance"] = self._outside(x, x_t, sigma, cond, teacher_x0, over)
        if term is not None and heads is not None and term.settings.weight > 0 and not warm:
            terms["adversarial"] = term.gradient(heads, x)
        if self.reward is not None:
            terms["reward"], metrics = self.reward.gradient(x, cond if prompts is None else prompts)
        raw, logit = (None if value is None else value.detach() for value in (raw, logit))
        return PartResult(terms, teacher_x0.detach(), critic_x0.detach(), raw, logit, metrics)

    def _precision(self) -> AbstractContextManager[None]:
        """Of the passes whose difference is the gap."""
        return nullcontext() if self.float32_gap else self.autocast()

    def _matching(
        self,
        x: Tensor,
        teacher_x0: Tensor,
        critic_x0: Tensor,
        logit: Tensor | None,
        weight: WeightLike,
        warm: bool,
        keep_graph: bool,
    ) -> Tensor:
        """The distribution-matching term: the row of the table as a call of `losses`."""
        c = self.choices
        divergence = "reverse_kl" if warm else c.divergence
        if c.form == "score_gap":
            return score_gap_gradient(
                x, teacher_x0, critic_x0,
                logit=logit, divergence=divergence, level_weight=weight,
            )  # fmt: skip
        return fisher_gradient(
            x, teacher_x0, critic_x0,
            logit=logit, divergence=divergence, level_weight=weight,
            alpha=1.0 if warm else c.alpha, detach_ratio=c.detach_ratio, retain_graph=keep_graph,
        )  # fmt: skip

    @torch.no_grad()
    def _outside(
        self, x: Tensor, x_t: Tensor, sigma: Tensor, cond: Tensor | None, conditional_x0: Tensor, weight: WeightLike
    ) -> Tensor:
        """Guidance as a term of its own."""
        with self._precision():
            null_x0 = self.teacher(x_t, sigma, self.teacher.null_condition(cond))
        return guidance_gradient(x, conditional_x0, null_x0, self.choices.guidance_scale, level_weight=weight)

    @torch.no_grad()
    def _health(self, x: Tensor, teacher_x0: Tensor, critic_x0: Tensor, u: Tensor, count: int | None) -> Metrics:
        """What tells that training goes wrong: the relative gap of each level, the spread of the images, E[r]."""
        gap = (critic_x0 - teacher_x0).abs().flatten(1).mean(1)
        relative = gap / (x - teacher_x0).abs().flatten(1).mean(1).clamp_min(1e-5)
        x, u, relative = (processes.gather(value, count) for value in (x, u, relative))
        bins = (u * LEVEL_BINS).long().clamp(0, LEVEL_BINS - 1)
        metrics: Metrics = {"score_gap/relative": relative.mean()}
        for k in range(LEVEL_BINS):
            # NaN where no sample has such a level: to ask whether one has, the host would wait for the device.
            inside = bins == k
            if inside.device.type != "cpu" or bool(inside.any()):
                metrics[f"{OF_LEVEL}{k}"] = torch.where(inside, relative, 0).sum() / inside.sum()
        metrics["x0/std"] = x.std()
        if not self.teacher.draws_texts:  # latents have no bounds
            # A tenth of half the range: a black background that is a shade too black is no harm.
            metrics["x0/saturation"] = (x.abs() > 1.1).float().mean()
        if self.ratio is not None:
            metrics |= {f"ratio/{name.removeprefix('ratio_')}": value for name, value in self.ratio.metrics().items()}
        return metrics

    def student_noise(self, x0: Tensor) -> StudentNoise:
        """What `student_gradient` needs for a whole batch like x0, of which parts may then be taken."""
        u, sigma = self.level.draw(len(x0), x0.device)
        return StudentNoise(u, sigma, torch.randn_like(x0))

    def critic_noise(self, x0: Tensor, with_real: bool) -> CriticNoise:
        """What `critic_loss` needs for a whole batch, of which parts may then be taken."""
        _, sigma = self.critic_level.draw(len(x0), x0.device)
        noise = CriticNoise(sigma, torch.randn_like(x0))
        if self.adversarial is None or not with_real:
            return noise
        _, seen_sigma = self.level.draw(len(x0), x0.device)
        drawn = CriticNoise(*noise[:2], seen_sigma, *torch.randn_like(torch.cat([x0, x0])).chunk(2))
        return drawn if not self.adversarial.settings.mix else drawn._replace(mix=self.adversarial.mix(len(x0)))

    def critic_loss(
        self, x0: Tensor, cond: Tensor | None, real: Tensor | None, noise: CriticNoise | None = None
    ) -> tuple[Tensor, Metrics]:
        """Scalar loss of the critic (denoising score matching on the student's images) and of the discriminator: the
        sum of `critic_losses`, whose arguments it takes.
        """
        losses, figures = zip(*self.critic_losses(x0, cond, real, noise), strict=True)
        return torch.stack(losses).sum(), {name: value for values in figures for name, value in values.items()}

    def critic_losses(
        self, x0: Tensor, cond: Tensor | None, real: Tensor | None, noise: CriticNoise | None = None
    ) -> Iterator[tuple[Tensor, Metrics]]:
        """The terms of the loss, each computed when it is asked for: after `backward` of one its graph is gone.

        x0: student images, detached here; real: as many real images of the same labels, for the discriminator only;
        noise: drawn here if it is not given.
        """
        x0 = x0.detach()
        noise = noise or self.critic_noise(x0, real is not None)
        yield self._denoising(x0, cond, noise)
        if self.adversarial is not None and real is not None:
            assert noise.seen_sigma is not None and noise.real_eps is not None and noise.fake_eps is not None  # noqa: PT018
            with self.autocast():
                eps = noise.real_eps, noise.fake_eps
                term = self.adversarial.loss(real, x0, noise.seen_sigma, cond, eps, noise.mix)
            yield term

    def _denoising(self, x0: Tensor, cond: Tensor | None, noise: CriticNoise) -> tuple[Tensor, Metrics]:
        with self.autocast():
            prediction = self.critic(x0 + per_sample(noise.sigma, x0) * noise.eps, noise.sigma, cond)
        weight = native_weight(self.teacher.process, noise.sigma)
        loss = denoising_loss(prediction, x0, noise.sigma, weight=weight).mean()
        return loss, {"critic/loss": loss.detach()}
