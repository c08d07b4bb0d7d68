"""What a reward is: images and prompts in, one score an image out; and how two images are compared by one."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffdistill.errors import DataError

# Texts, one an image; or the class labels `(B,)` of a class-conditional model; or nothing.
Prompts = Sequence[str] | Tensor | None


@runtime_checkable
class Reward(Protocol):
    """R(x, c): higher is better, each image on its own, nothing averaged.

    Attributes:
        name: what scores, for logs.
        differentiable: whether a gradient reaches the images.
        needs_prompt: whether it reads texts.

    >>> class Brightness:
    ...     name, differentiable, needs_prompt = "brightness", True, False
    ...
    ...     def __call__(self, images, prompts=None):
    ...         return images.mean((1, 2, 3))
    ...
    ...     def to(self, device):
    ...         return self
    >>> isinstance(Brightness(), Reward), Brightness()(torch.ones(2, 3, 8, 8))
    (True, tensor([1., 1.]))
    """

    name: str
    differentiable: bool
    needs_prompt: bool

    def __call__(self, images: Tensor, prompts: Prompts = None) -> Tensor:
        """Images `(B, C, H, W)` in [0, 1], with or without a graph -> scores `(B,)`."""

    def to(self, device: str | torch.device) -> "Reward":
        """Itself, on another device."""


class PairScores(NamedTuple):
    """What a reward says of pairs. margin: R(a, c) - R(b, c), `(B,)`; accuracy: part of the pairs in which a wins,
    ties counted half.

    >>> from diffdistill.rewards import CallableReward, score_pairs
    >>> brightness = CallableReward(lambda images, prompts: images.mean((1, 2, 3)))
    >>> images = torch.rand(4, 3, 8, 8)
    >>> scores: PairScores = score_pairs(brightness, images, images)
    >>> scores.margin, scores.accuracy
    (tensor([0., 0., 0., 0.]), 0.5)
    """

    margin: Tensor
    accuracy: float


@torch.no_grad()
def score_pairs(reward: Reward, a: Tensor, b: Tensor, prompts: Prompts = None) -> PairScores:
    """Which of two images a reward prefers: to label pairs, or to test a reward on pairs people have judged.

    a, b: `(B, C, H, W)` in [0, 1], of the same prompts. Raises DataError if their numbers differ.

    >>> from diffdistill.rewards import CallableReward
    >>> brightness = CallableReward(lambda images, prompts: images.mean((1, 2, 3)))
    >>> score_pairs(brightness, torch.full((2, 3, 8, 8), 0.75), torch.full((2, 3, 8, 8), 0.25))
    PairScores(margin=tensor([0.5000, 0.5000]), accuracy=1.0)
    """
    if len(a) != len(b):
        raise DataError(f"{len(a)} and {len(b)} images cannot be paired; give as many of one as of the other")
    margin = reward(a, prompts) - reward(b, prompts)
    return PairScores(margin, float((0.5 * (margin.sign() + 1)).mean()))


def texts_of(prompts: Prompts, count: int, name: str) -> list[str]:
    """The texts of `count` images; DataError if there are none, or too few."""
    if prompts is None or isinstance(prompts, Tensor):
        raise DataError(
            f"the reward {name} reads texts and got {'class labels' if prompts is not None else 'none'}; give one "
            f"text an image (a class-conditional distillation: method.reward.class_prompts)"
        )
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(texts) != count:
        raise DataError(f"the reward {name} got {count} images and {len(texts)} texts; give one text an image")
    return texts
