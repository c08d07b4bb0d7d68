"""The CLIP score (2104.08718) in the units of torchmetrics: 100 times the cosine, never cut at 0, where a reward would
have no gradient.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from diffdistill.rewards.clip_weights import FOLDER, ClipWeights
from diffdistill.rewards.kinds import RewardKind

if TYPE_CHECKING:
    from diffdistill.rewards.protocol import Reward


def loader(name: str, weights: ClipWeights) -> "Callable[[str | None, int], Reward]":
    """Load a reward that is the similarity of a CLIP."""

    def load(where: str | None, batch_size: int) -> "Reward":
        from diffdistill.rewards.clip import ClipReward

        return ClipReward.load(name, weights, where, batch_size)

    return load


REWARD = RewardKind(
    "clip",
    "CLIP score",
    loader("clip", ClipWeights("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14", FOLDER, 100.0)),
    ("config.json",),
    "a CLIP's config.json",
    9,  # a folder of another reward may have one, too
)
