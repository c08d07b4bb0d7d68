"""`load_reward`: a reward by name, folder, Hub id, or a function of the user's."""

import importlib
import importlib.util
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from diffdistill.assets import is_builtin, resolve_builtin
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.rewards.combine import CallableReward
from diffdistill.rewards.protocol import Reward


def _clip(kind: str) -> Callable[[str | None, int], Reward]:
    def load(where: str | None, batch_size: int) -> Reward:
        from diffdistill.rewards.clip import ClipReward

        return ClipReward.load(kind, where, batch_size)

    return load


def _aesthetic(where: str | None, batch_size: int) -> Reward:
    from diffdistill.rewards.aesthetic import AestheticReward

    return AestheticReward.load(where, batch_size)


def _image_reward(where: str | None, batch_size: int) -> Reward:
    from diffdistill.rewards.image_reward import ImageReward

    return ImageReward.load(where, batch_size)


def _classifier(where: str | None, batch_size: int) -> Reward:
    from diffdistill.rewards.classifier import ClassifierReward

    return ClassifierReward(None if where is None else Path(where).expanduser())


LOADERS: dict[str, Callable[[str | None, int], Reward]] = {
    "pickscore": _clip("pickscore"),
    "imagereward": _image_reward,
    "hps_v2": _clip("hps_v2"),
    "clip": _clip("clip"),
    "aesthetic": _aesthetic,
    "classifier": _classifier,
}
# What a folder is, by a file in it; the first that matches.
CONTENTS = (
    ("ImageReward.*", "imagereward"),
    ("HPS_v2.1*", "hps_v2"),
    ("*linearMSE.*", "aesthetic"),
    ("aesthetic*", "aesthetic"),
    ("config.json", "clip"),
)


def load_reward(name: str, *, batch_size: int = 16) -> Reward:
    """The reward that `name` means, on the CPU, frozen.

    Args:
        name: `pickscore`, `imagereward`, `hps_v2` (2.1), `clip`, `aesthetic`, `classifier` (bundled, Fashion-MNIST),
            each also as `NAME:FOLDER` or `NAME:HUB_ID`; a folder (`builtin:emoji_clip` too), told by the files in
            it (a CLIP without further files is `clip`); or `FILE.py:function` or `module:function`, called with
            (images, prompts), or a `Reward`.
        batch_size: images at a time through a network.

    Raises:
        ConfigError: no such reward. CheckpointError: weights that are absent or damaged, with what to put where.
    """
    kind, _, where = name.partition(":")
    if kind in LOADERS:
        return LOADERS[kind](where or None, batch_size)
    folder = resolve_builtin(name) if is_builtin(name) else Path(name).expanduser()
    if folder.is_dir():
        for pattern, found in CONTENTS:
            if any(folder.glob(pattern)):
                return LOADERS[found](str(folder), batch_size)
        raise CheckpointError(
            f"the folder '{name}' holds no reward that is known: neither ImageReward.pt nor HPS_v2.1*.pt, a head "
            f"*linearMSE.pth or a CLIP's config.json; say NAME:FOLDER, NAME one of {', '.join(LOADERS)}"
        )
    place, colon, attribute = name.rpartition(":")
    if colon and attribute.isidentifier():
        return _user_reward(place, attribute)
    near = get_close_matches(kind, LOADERS, 1)
    raise ConfigError(
        f"reward '{name}' is not known{f' (did you mean {near[0]}?)' if near else ''}; it must be one of "
        f"{', '.join(LOADERS)}, a folder, or FILE.py:function"
    )


def _user_reward(place: str, attribute: str) -> Reward:
    module = _module(place)
    found = getattr(module, attribute, None)
    if isinstance(found, Reward) and not isinstance(found, type):
        return found
    if not callable(found):
        raise ConfigError(f"'{place}' has no function '{attribute}' for a reward; define {attribute}(images, prompts)")
    return CallableReward(found, attribute)


def _module(place: str) -> ModuleType:
    file = Path(place).expanduser()
    try:
        if file.suffix == ".py":
            spec = importlib.util.spec_from_file_location(f"diffdistill_reward_{file.stem}", file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
        return importlib.import_module(place)
    except FileNotFoundError:
        raise ConfigError(f"the reward's file '{place}' does not exist; give its path from here") from None
    except ImportError as error:
        raise ConfigError(
            f"the reward's module '{place}' cannot be imported ({error}); give FILE.py:function"
        ) from None
    except Exception as error:  # the user's own code
        raise ConfigError(
            f"the reward's module '{place}' fails when it is imported ({type(error).__name__}: {error}); mend it"
        ) from error
