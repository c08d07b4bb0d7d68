"""PickScore (2305.01569, equation 1): differences are log-odds of a preference."""

from diffdistill.rewards.clip_weights import FOLDER, LAION_H, ClipWeights
from diffdistill.rewards.kinds import RewardKind
from diffdistill.rewards.kinds.clip import loader

WEIGHTS = ClipWeights("yuvalkirstain/PickScore_v1", LAION_H, FOLDER, None)
REWARD = RewardKind("pickscore", "PickScore", loader("pickscore", WEIGHTS))
