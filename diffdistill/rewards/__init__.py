"""Rewards: how good an image is, for its prompt. `load_reward("pickscore")(images, prompts)` -> scores `(B,)`.

Nothing is imported until it is used, so that settings and help can name the rewards at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.rewards.combine import CallableReward, WeightedReward
    from diffdistill.rewards.ensemble import EnsembleReward, measure_scales
    from diffdistill.rewards.load import load_reward
    from diffdistill.rewards.protocol import PairScores, Prompts, Reward, score_pairs

__all__ = [
    "CallableReward",
    "EnsembleReward",
    "PairScores",
    "Prompts",
    "Reward",
    "WeightedReward",
    "load_reward",
    "measure_scales",
    "score_pairs",
]

_HOME = {"CallableReward": "combine", "WeightedReward": "combine", "load_reward": "load"}
_HOME |= dict.fromkeys(("EnsembleReward", "measure_scales"), "ensemble")
_HOME |= dict.fromkeys(("PairScores", "Prompts", "Reward", "score_pairs"), "protocol")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffdistill.rewards' has no attribute '{name}'")
    return getattr(import_module(f"diffdistill.rewards.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
