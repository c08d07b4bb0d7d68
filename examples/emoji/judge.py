"""The judge of the emoji's style, as `module:function`: `diffdistill.rewards.emoji_style:noto`, and `twemoji`.

It is the network of `--features emoji`, which no training sees; to optimise it would spoil that.
"""

from functools import cache

from torch import Tensor

from diffdistill.data.emoji import STYLES
from diffdistill.evaluation.extractors.bundled import EmojiFeatures
from diffdistill.evaluation.features import load_features
from diffdistill.rewards.protocol import Prompts


@cache
def judge() -> EmojiFeatures:
    found = load_features("emoji")
    assert isinstance(found, EmojiFeatures)
    return found


def probability(style: str, images: Tensor) -> Tensor:
    """Images `(B, 3, H, W)` in [0, 1] -> probabilities `(B,)` that they are of a style."""
    pixels = (images * 255).round().byte()
    return judge().styles(judge()(pixels))[:, STYLES.index(style)]


def noto(images: Tensor, prompts: Prompts = None) -> Tensor:
    return probability("noto", images)


def twemoji(images: Tensor, prompts: Prompts = None) -> Tensor:
    return probability("twemoji", images)
