"""A reward as a term of a distillation's gradient: beside the matching term, at the same leaf copy of x0."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffdistill.errors import ConfigError
from diffdistill.matching.micro_batches import Metrics
from diffdistill.rewards.combine import WeightedReward
from diffdistill.rewards.ensemble import Combine, EnsembleReward
from diffdistill.rewards.load import load_reward
from diffdistill.rewards.preprocess import soft_clamp
from diffdistill.rewards.protocol import Prompts, Reward


class RewardTerm:
    """d/dx0 of -a R((x0 + 1) / 2, c), a the weight.

    Args:
        reward: its parameters get no gradient, whatever it is.
        weight: for a score gap averaged over C, H, W, as the papers' losses are; ours is summed.
        class_prompts: the text of each class, for a reward that reads texts and a class-conditional student.
        decode: latents to images in [-1, 1], differentiable; None: x0 is the image.
        batch_size: samples at a time.

    Raises ConfigError if no gradient can come of the reward.
    """

    def __init__(
        self,
        reward: Reward,
        weight: float,
        class_prompts: Sequence[str] | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        batch_size: int = 16,
    ):
        if not reward.differentiable:
            raise ConfigError(
                f"the reward {reward.name} has no gradient and cannot train a student; let it judge or label pairs"
            )
        self.reward, self.weight, self.class_prompts = reward, weight, class_prompts
        self.decode, self.batch_size = decode, batch_size

    def check(self, num_classes: int | None) -> None:
        """ConfigError unless a student with that many classes (None: it is not class-conditional) can be scored."""
        if num_classes is None:
            return
        if self.reward.needs_prompt and self.class_prompts is None:
            raise ConfigError(
                f"the reward {self.reward.name} reads texts and the teacher has {num_classes} classes; give the text "
                f"of each in method.reward.class_prompts"
            )
        if self.class_prompts is not None and len(self.class_prompts) != num_classes:
            raise ConfigError(
                f"method.reward.class_prompts has {len(self.class_prompts)} texts and the teacher {num_classes} "
                f"classes; give one text a class"
            )

    def versions(self) -> dict[str, str | None]:
        """Which weights score, by the reward's name, for the record of a run; None where a reward does not say."""
        single = {self.reward.name: (self.weight, self.reward)}
        terms = self.reward.terms if isinstance(self.reward, WeightedReward) else single
        # Of folders the last part: the rest is of one machine only.
        return {re.sub("[^:]*/", "", name): getattr(r, "version", None) for name, (_, r) in terms.items()}

    def gradient(self, x: Tensor, prompts: Prompts = None) -> tuple[Tensor, Metrics]:
        """Each sample's gradient at x, `(B, C, H, W)`, and the mean scores by name.

        x: `(B, C, H, W)`, taken as a constant; prompts: texts, or class labels `(B,)`. Images go through decoder and
        reward `batch_size` at a time, and no more activations than theirs are ever held.
        """
        if isinstance(prompts, Tensor) and self.class_prompts is not None:
            prompts = self.named(prompts)
        gradients, scores = [], []
        for start in range(0, len(x), self.batch_size):
            part = slice(start, start + self.batch_size)
            leaf = x[part].detach().requires_grad_()
            images = soft_clamp(0.5 * (leaf if self.decode is None else self.decode(leaf)) + 0.5)
            scores_of_part = self._scores(images, None if prompts is None else prompts[part])
            gradients.append(torch.autograd.grad(scores_of_part["score"].sum(), leaf)[0])
            scores.append({name: values.detach() for name, values in scores_of_part.items()})
        metrics: Metrics = {
            f"reward/{name}": torch.cat([values[name] for values in scores]).mean() for name in scores[0]
        }
        return -self.weight * x[0].numel() * torch.cat(gradients), metrics

    def named(self, labels: Tensor) -> list[str] | None:
        """The texts of class labels `(B,)`, None where there are none. Labels of the CPU stop no device."""
        return None if self.class_prompts is None else [self.class_prompts[label] for label in labels.tolist()]

    def _scores(self, images: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        """`score`, attached to the images, and the scores of each part of a sum."""
        parts: dict[str, Tensor] = {}
        if isinstance(self.reward, WeightedReward):
            parts = self.reward.parts(images, prompts)
            score = self.reward.total(parts)
        else:
            score = self.reward(images, prompts)
        if not score.requires_grad:
            raise ConfigError(
                f"the scores of the reward {self.reward.name} carry no gradient to the images; compute them with "
                f"torch, without no_grad or detach"
            )
        return parts | {"score": score}


@dataclass(frozen=True)
class RewardSettings:
    """Which reward, or the weights of several by name and how they are combined; and what `RewardTerm` takes."""

    name: str | None = None
    sum: dict[str, float] | None = None
    combine: Combine = "sum"
    scales: dict[str, tuple[float, float]] | None = None
    disagreement: float = 0.5
    weight: float = 0.0
    class_prompts: tuple[str, ...] | None = None
    batch_size: int = 16


def reward_term(
    settings: RewardSettings, device: str | torch.device = "cpu", decode: Callable[[Tensor], Tensor] | None = None
) -> RewardTerm:
    """The term that `method.reward` means; raises what `load_reward` raises."""
    if settings.sum:
        terms = {name: (w, load_reward(name, batch_size=settings.batch_size)) for name, w in settings.sum.items()}
        reward: Reward = WeightedReward(terms)
        if settings.scales is not None:
            reward = EnsembleReward(terms, settings.combine, settings.scales, settings.disagreement)
    else:
        assert settings.name is not None
        reward = load_reward(settings.name, batch_size=settings.batch_size)
    return RewardTerm(reward.to(device), settings.weight, settings.class_prompts, decode, settings.batch_size)
