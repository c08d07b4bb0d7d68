"""HPSv2.1 (2306.09341): the plain cosine; tables show it times 100."""

from diffdistill.rewards.clip_weights import LAION_H, ClipWeights
from diffdistill.rewards.kinds import RewardKind
from diffdistill.rewards.kinds.clip import loader

WEIGHTS = ClipWeights("xswu/HPSv2", LAION_H, ["HPS_v2.1_compressed.pt"], 1.0)
REWARD = RewardKind("hps_v2", "HPSv2.1", loader("hps_v2", WEIGHTS), ("HPS_v2.1*",), "HPS_v2.1*.pt", 1)
