"""Ensembles of rewards: what one alone says counts less than what all say."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from diffdistill.errors import ConfigError, DataError
from diffdistill.rewards.combine import WeightedReward
from diffdistill.rewards.protocol import Prompts, Reward

Combine = Literal["sum", "worst", "uncertainty"]
Scales = Mapping[str, tuple[float, float]]


class EnsembleReward(WeightedReward):
    """Several rewards on one scale, z_k = w_k (R_k - m_k) / s_k, as one (2310.02743):

        sum: sum_k z_k,        worst (WCO): min_k z_k,        uncertainty (UWO): mean_k z_k - lambda var_k z_k.

    A student that exploits one of the rewards, raising it alone, gains nothing of the least of them, and little of a
    mean whose members disagree. Both need members on one scale, or the least is always the same one.

    >>> from diffdistill.rewards import CallableReward
    >>> bright = CallableReward(lambda images, prompts: images.mean((1, 2, 3)))
    >>> dark = CallableReward(lambda images, prompts: 1 - images.mean((1, 2, 3)))
    >>> scales = {"bright": (0.5, 0.25), "dark": (0.5, 0.25)}
    >>> reward = EnsembleReward({"bright": (1.0, bright), "dark": (1.0, dark)}, "worst", scales)
    >>> reward(torch.full((1, 3, 8, 8), 1.0))  # of z = 2 and z = -2
    tensor([-2.])
    """

    def __init__(
        self, terms: Mapping[str, tuple[float, Reward]], combine: Combine, scales: Scales, disagreement: float = 0.5
    ):
        """scales: `(m, s)` of each reward, as `measure_scales` finds them; disagreement: lambda of uncertainty.

        Raises ConfigError for an ensemble of one, and for a reward without a scale.
        """
        super().__init__(terms)
        check_ensemble(combine, self.terms, scales)
        self.combine, self.scales, self.disagreement = combine, dict(scales), disagreement
        self.name = f"{combine} of {', '.join(self.terms)}"

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The combination of `parts`, `(B,)`."""
        scaled = []
        for name, (weight, _) in self.terms.items():
            mean, std = self.scales[name]
            scaled.append(weight * (parts[name] - mean) / std)
        z = torch.stack(scaled)
        if self.combine == "sum":
            return z.sum(0)
        if self.combine == "worst":
            return z.amin(0)
        return z.mean(0) - self.disagreement * z.var(0, correction=0)


def check_ensemble(combine: str, terms: Mapping[str, object], scales: Scales | None) -> None:
    """ConfigError for an ensemble of fewer than two rewards, or of rewards without scales.

    >>> check_ensemble("worst", {"clip": 1.0}, {"clip": (25.0, 4.0)})
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: combine=worst compares rewards and has 1; name two or more, or set combine=sum
    """
    if combine != "sum" and len(terms) < 2:
        raise ConfigError(
            f"combine={combine} compares rewards and has {len(terms)}; name two or more, or set combine=sum"
        )
    if missing := [name for name in terms if name not in (scales or {})]:
        raise ConfigError(
            f"combine={combine} needs the scale of {missing[0]}; measure mean and spread of each reward first, with "
            f"diffdistill.rewards.measure_scales"
        )


@torch.no_grad()
def measure_scales(rewards: Mapping[str, Reward], images: Tensor, prompts: Prompts = None) -> dict[str, list[float]]:
    """Mean and standard deviation of each reward's scores, `[m, s]` by name, for `method.reward.scales`.

    images: `(B, C, H, W)` in [0, 1], such as the teacher's, or real ones, 64 or more; prompts: theirs. Raises
    DataError for a reward that scores all alike.

    >>> from diffdistill.rewards import CallableReward
    >>> bright = CallableReward(lambda images, prompts: images.mean((1, 2, 3)))
    >>> measure_scales({"bright": bright}, torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]))
    {'bright': [0.5, 0.5]}
    """
    found = {}
    for name, reward in rewards.items():
        scores = reward(images, prompts).double()
        mean, std = float(scores.mean()), float(scores.std(correction=0))
        if not std > 0:
            raise DataError(f"the reward {name} scores all {len(images)} images alike; give images that differ")
        found[name] = [mean, std]
    return found
