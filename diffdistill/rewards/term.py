"""A reward as a term of a distillation's gradient: beside the matching term, at the same leaf copy of x0."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffdistill.config.methods import Reward as RewardSettings
from diffdistill.errors import ConfigError
from diffdistill.rewards.combine import WeightedReward
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

    Raises ConfigError if no gradient can come of the reward.
    """

    def __init__(
        self,
        reward: Reward,
        weight: float,
        class_prompts: Sequence[str] | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
    ):
        if not reward.differentiable:
            raise ConfigError(
                f"the reward {reward.name} has no gradient and cannot train a student; let it judge or label pairs"
            )
        self.reward, self.weight, self.class_prompts, self.decode = reward, weight, class_prompts, decode

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

    def gradient(self, x: Tensor, prompts: Prompts = None) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Each sample's gradient `(B, C, H, W)`, and the mean scores by name.

        x: a leaf `(B, C, H, W)` that requires a gradient; prompts: texts, or class labels `(B,)`.
        """
        if isinstance(prompts, Tensor) and self.class_prompts is not None:
            prompts = [self.class_prompts[int(label)] for label in prompts]
        images = soft_clamp(0.5 * (x if self.decode is None else self.decode(x)) + 0.5)
        metrics: dict[str, Tensor | float] = {}
        if isinstance(self.reward, WeightedReward):
            parts = self.reward.parts(images, prompts)
            metrics |= {f"reward/{name}": scores.detach().mean() for name, scores in parts.items()}
            scores = self.reward.total(parts)
        else:
            scores = self.reward(images, prompts)
        metrics["reward/score"] = scores.detach().mean()
        if not scores.requires_grad:
            raise ConfigError(
                f"the scores of the reward {self.reward.name} carry no gradient to the images; compute them with "
                f"torch, without no_grad or detach"
            )
        (gradient,) = torch.autograd.grad(scores.sum(), x)
        return -self.weight * x[0].numel() * gradient, metrics


def reward_term(settings: RewardSettings, device: str | torch.device = "cpu") -> RewardTerm:
    """The term that `method.reward` means; raises what `load_reward` raises."""
    if settings.sum:
        terms = {name: (w, load_reward(name, batch_size=settings.batch_size)) for name, w in settings.sum.items()}
        reward: Reward = WeightedReward(terms)
    else:
        assert settings.name is not None
        reward = load_reward(settings.name, batch_size=settings.batch_size)
    return RewardTerm(reward.to(device), settings.weight, settings.class_prompts)
