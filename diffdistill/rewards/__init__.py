"""Rewards: how good an image is, for its prompt. `load_reward("pickscore")(images, prompts)` -> scores `(B,)`."""

from diffdistill.rewards.combine import CallableReward, WeightedReward
from diffdistill.rewards.load import load_reward
from diffdistill.rewards.protocol import PairScores, Prompts, Reward, score_pairs

__all__ = ["CallableReward", "PairScores", "Prompts", "Reward", "WeightedReward", "load_reward", "score_pairs"]
