"""The judge of the emoji's style, a reward of one's own: `examples/emoji/judge.py:noto`, and `twemoji`.

It is the network of `--features emoji`, which no training sees; to optimise it would spoil that.
"""

from functools import cache
from typing import Any

from torch import Tensor

from diffdistill.evaluation.features import load_features
from diffdistill.rewards import Prompts

STYLES = ("noto", "twemoji")  # in the order of the network's outputs


@cache
def judge() -> Any:
    return load_features("emoji")


def probability(style: str, images: Tensor) -> Tensor:
    """Images `(B, 3, H, W)` in [0, 1] -> probabilities `(B,)` that they are of a style."""
    pixels = (images * 255).round().byte()
    scores: Tensor = judge().styles(judge()(pixels))
    return scores[:, STYLES.index(style)]


def noto(images: Tensor, prompts: Prompts = None) -> Tensor:
    return probability("noto", images)


def twemoji(images: Tensor, prompts: Prompts = None) -> Tensor:
    return probability("twemoji", images)
