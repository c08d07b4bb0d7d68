"""The rewards by name, a file each: what it measures, what of a folder tells it, where its weights are published.

A file declares `REWARD = RewardKind(...)` and imports nothing heavy to say so; networks are imported when it loads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffdistill.errors import ConfigError
from diffdistill.files import expanded
from diffdistill.registry import Registry

if TYPE_CHECKING:
    from diffdistill.rewards.protocol import Reward


@dataclass(frozen=True)
class RewardKind:
    """One reward.

    name: in settings, also as `NAME:FOLDER` and `NAME:HUB_ID`. label: for people. load: `(folder, Hub id or None for
    the published weights, images at a time) -> Reward`, on the CPU and frozen. contents: patterns of files, any of
    which tells a folder of it; contents_text: the same in words; rank: lower ones are looked for first.

    In a file that DIFFDISTILL_PLUGINS names, `brightness` is then a reward as `pickscore` is:

    >>> import torch
    >>> from diffdistill.rewards import CallableReward
    >>> def load(where, batch_size):
    ...     return CallableReward(lambda images, prompts: images.mean((1, 2, 3)))
    >>> REWARD = RewardKind("brightness", "Brightness", load)
    >>> REWARD.load(None, 16)(torch.ones(2, 3, 8, 8))
    tensor([1., 1.])
    """

    name: str
    label: str
    load: "Callable[[str | None, int], Reward]"
    contents: tuple[str, ...] = ()
    contents_text: str = ""
    rank: int = 0


REWARDS: Registry[RewardKind] = Registry("reward", RewardKind, __name__, "REWARD")


def check_reward(name: str) -> None:
    """ConfigError for what can name no reward; what is in a folder, a file or on the Hub only loading tells.

    >>> check_reward("clip:builtin:emoji_clip")
    >>> check_reward("pikscore")
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: reward 'pikscore' is not known (did you mean pickscore?); ...
    """
    if name.partition(":")[0] not in REWARDS.rows() and not is_code(name) and not expanded(name).is_dir():
        raise unknown_reward(name)


def is_code(name: str) -> bool:
    """Whether a name is that of a function, `FILE.py:function` or `module:function`.

    >>> is_code("mine.py:brightness"), is_code("clip")
    (True, False)
    """
    place, _, attribute = name.rpartition(":")
    return bool(place) and attribute.isidentifier()


def unknown_reward(name: str) -> ConfigError:
    return ConfigError(REWARDS.unknown(name).replace("or FILE.py:NAME", "a folder, or FILE.py:function"))


def allowed_rewards(of_package: bool = False) -> str:
    """What may stand where a reward is named, in words. of_package: see `Registry.rows`.

    >>> allowed_rewards(of_package=True)
    'aesthetic, classifier, clip, hps_v2, imagereward, pickscore, NAME:FOLDER, a folder, or FILE.py:function'
    """
    return f"{', '.join(REWARDS.rows(of_package))}, NAME:FOLDER, a folder, or FILE.py:function"
