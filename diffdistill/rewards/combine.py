"""Rewards made of others: a function of the user's, and a weighted sum."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.rewards.protocol import Prompts, Reward, texts_of


class CallableReward:
    """A function as a reward: `function(images, prompts)` -> B scores, or `(scores, anything)`.

    Args:
        function: images are a tensor `(B, C, H, W)` in [0, 1], or, with `pil`, a list of PIL pictures; scores are a
            tensor or a list.
        differentiable: a gradient reaches the images; never with `pil`.
        needs_prompt: refuse to be called without texts.

    >>> brightness = CallableReward(lambda images, prompts: images.mean((1, 2, 3)), "brightness")
    >>> brightness(torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]))
    tensor([0., 1.])
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        *,
        differentiable: bool = True,
        needs_prompt: bool = False,
        pil: bool = False,
    ):
        self.function, self.pil, self.needs_prompt = function, pil, needs_prompt
        self.name: str = name or getattr(function, "__name__", "") or type(function).__name__
        self.differentiable = differentiable and not pil

    def __call__(self, images: Tensor, prompts: Prompts = None) -> Tensor:
        """Scores `(B,)`; DataError if the function returns another number of them."""
        given = texts_of(prompts, len(images), self.name) if self.needs_prompt else prompts
        result = self.function(pictures(images) if self.pil else images, given)
        given = result[0] if isinstance(result, tuple) and result else result
        try:
            scores = torch.as_tensor(given, device=images.device)
        except (TypeError, ValueError, RuntimeError):
            scores = None
        if scores is None or scores.is_complex():
            raise DataError(
                f"the reward {self.name} returned {given!r:.60} for {len(images)} images; give one number an image"
            )
        if scores.shape != (len(images),):
            raise DataError(
                f"the reward {self.name} returned {tuple(scores.shape)} for {len(images)} images; one number an image "
                f"is a tensor of shape ({len(images)},) or a list as long"
            )
        return scores.float()

    def to(self, device: str | torch.device) -> "CallableReward":
        if isinstance(self.function, torch.nn.Module):
            self.function.to(device)
        return self


class CheckedReward(CallableReward):
    """A `Reward` of the user's own class, which may return anything: it is checked as a function's answer is.

    reward: what is asked; its name, version, and what it reads are this one's.

    >>> class Mean:
    ...     name, differentiable, needs_prompt = "mean", True, False
    ...
    ...     def __call__(self, images, prompts=None):
    ...         return images.mean()
    ...
    ...     def to(self, device):
    ...         return self
    >>> CheckedReward(Mean())(torch.ones(2, 3, 8, 8))
    Traceback (most recent call last):
    diffdistill.errors.DataError: the reward mean returned () for 2 images; one number an image is a tensor of ...
    """

    def __init__(self, reward: Reward):
        asks = {"differentiable": reward.differentiable, "needs_prompt": reward.needs_prompt}
        super().__init__(reward, reward.name, **asks)
        self.reward = reward
        self.version: str | None = getattr(reward, "version", None)

    def to(self, device: str | torch.device) -> "CheckedReward":
        self.function = self.reward = self.reward.to(device)
        return self


def pictures(images: Tensor) -> list[Any]:
    """`(B, 1 or 3, H, W)` in [0, 1] -> PIL pictures."""
    from PIL import Image

    pixels = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(p.squeeze(2) if p.shape[2] == 1 else p) for p in pixels]


class WeightedReward:
    """R = sum_k w_k R_k. A weight is in the units of its reward: HPSv2 differs by hundredths, PickScore by ones.

    >>> from diffdistill.rewards import CallableReward
    >>> bright = CallableReward(lambda images, prompts: images.mean((1, 2, 3)))
    >>> dark = CallableReward(lambda images, prompts: 1 - images.mean((1, 2, 3)))
    >>> reward = WeightedReward({"bright": (3.0, bright), "dark": (1.0, dark)})
    >>> reward.name, reward(torch.full((2, 3, 8, 8), 0.5))
    ('3 bright + 1 dark', tensor([2., 2.]))
    """

    def __init__(self, terms: Mapping[str, tuple[float, Reward]]):
        """terms: weight and reward by the name that logs use."""
        self.terms = dict(terms)
        self.name = " + ".join(f"{weight:g} {name}" for name, (weight, _) in self.terms.items())
        self.differentiable = all(reward.differentiable for _, reward in self.terms.values())
        self.needs_prompt = any(reward.needs_prompt for _, reward in self.terms.values())

    def parts(self, images: Tensor, prompts: Prompts = None) -> dict[str, Tensor]:
        """Each reward's own scores `(B,)`, without its weight."""
        return {name: reward(images, prompts) for name, (_, reward) in self.terms.items()}

    def __call__(self, images: Tensor, prompts: Prompts = None) -> Tensor:
        return self.total(self.parts(images, prompts))

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of `parts`, `(B,)`."""
        return torch.stack([weight * parts[name] for name, (weight, _) in self.terms.items()]).sum(0)

    def to(self, device: str | torch.device) -> "WeightedReward":
        for _, reward in self.terms.values():
            reward.to(device)
        return self
