"""`load_reward`: a reward by name, folder, Hub id, or a function of the user's."""

from pathlib import Path

from diffdistill.assets import is_builtin, resolve_builtin
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.files import expanded
from diffdistill.registry import load
from diffdistill.rewards.combine import CallableReward, CheckedReward
from diffdistill.rewards.kinds import REWARDS, RewardKind, allowed_rewards, is_code, unknown_reward
from diffdistill.rewards.protocol import Reward


def load_reward(name: str, *, batch_size: int = 16) -> Reward:
    """The reward that `name` means, on the CPU, frozen.

    Args:
        name: one of `diffdistill.rewards.kinds`, such as `pickscore`, also as `NAME:FOLDER` or `NAME:HUB_ID`; a folder
            (`builtin:emoji_clip` too), told by the files in it (a CLIP without further files is `clip`); or
            `FILE.py:function` or `module:function`, called with (images, prompts), or a `Reward`. These run code: the
            command line asks for --allow-code, Python for `diffdistill.registry.allow_code()`.
        batch_size: images at a time through a network.

    Raises:
        ConfigError: no such reward. CheckpointError: weights that are absent or damaged, with what to put where.

    >>> import torch
    >>> reward = load_reward("classifier")  # log p(class | image)
    >>> image = torch.rand(1, 1, 28, 28)
    >>> round(float(reward(image.expand(10, -1, -1, -1), torch.arange(10)).exp().sum()), 4)  # over all ten classes
    1.0
    """
    kinds = REWARDS.rows()
    kind, _, where = name.partition(":")
    if kind in kinds:
        return _checked(kinds[kind].load(where or None, batch_size))
    folder = resolve_builtin(name) if is_builtin(name) else expanded(name)
    if folder.is_dir():
        return _checked(_kind_of(folder, name).load(str(folder), batch_size))
    if is_code(name):
        return _of_user(name, batch_size)
    raise unknown_reward(name)


def _kind_of(folder: Path, name: str) -> RewardKind:
    """What a folder is, by the files in it."""
    kinds = sorted((kind for kind in REWARDS.rows().values() if kind.contents), key=lambda kind: kind.rank)
    for kind in kinds:
        if any(any(folder.glob(pattern)) for pattern in kind.contents):
            return kind
    raise CheckpointError(
        f"the folder '{name}' holds no reward that is known: none of "
        f"{', '.join(kind.contents_text for kind in kinds)}; give {allowed_rewards()}"
    )


def _of_user(name: str, batch_size: int) -> Reward:
    value = load(name)
    if isinstance(value, RewardKind):
        return _checked(value.load(None, batch_size))
    if isinstance(value, Reward) and not isinstance(value, type):
        return _checked(value)
    if not callable(value):
        raise ConfigError(f"'{name}' is no reward; give a function of (images, prompts), or a Reward")
    return CallableReward(value, name.rpartition(":")[2])


def _checked(reward: Reward) -> Reward:
    """The package's own as they are; of a class of the user's what it returns is looked at."""
    return reward if type(reward).__module__.startswith("diffdistill.") else CheckedReward(reward)
