"""For class-conditional models: how sure a classifier is of the class asked for; bundled for Fashion-MNIST."""

from typing import TYPE_CHECKING

from diffdistill.files import expanded
from diffdistill.rewards.kinds import RewardKind

if TYPE_CHECKING:
    from diffdistill.rewards.protocol import Reward


def load(where: str | None, _batch_size: int) -> "Reward":
    from diffdistill.rewards.classifier import ClassifierReward

    return ClassifierReward(None if where is None else expanded(where))


REWARD = RewardKind("classifier", "log-probability of the class", load)
