"""ImageReward (2304.05977): a BLIP that was taught people's preferences."""

from typing import TYPE_CHECKING

from diffdistill.rewards.kinds import RewardKind

if TYPE_CHECKING:
    from diffdistill.rewards.protocol import Reward


def load(where: str | None, batch_size: int) -> "Reward":
    from diffdistill.rewards.image_reward import ImageReward

    return ImageReward.load(where, batch_size)


REWARD = RewardKind("imagereward", "ImageReward", load, ("ImageReward.*",), "ImageReward.pt", 0)
