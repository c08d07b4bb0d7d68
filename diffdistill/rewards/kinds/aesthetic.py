"""The LAION aesthetic predictor: how people rated pictures like it. It reads no prompt."""

from typing import TYPE_CHECKING

from diffdistill.rewards.kinds import RewardKind

if TYPE_CHECKING:
    from diffdistill.rewards.protocol import Reward


def load(where: str | None, batch_size: int) -> "Reward":
    from diffdistill.rewards.aesthetic import AestheticReward

    return AestheticReward.load(where, batch_size)


REWARD = RewardKind("aesthetic", "LAION aesthetics", load, ("*linearMSE.*", "aesthetic*"), "a head *linearMSE.pth", 2)
