"""Where a run's figures are shown besides its own folder: names of trackers, and whether they are on this machine."""

import importlib.util
from typing import Any

from diffdistill.errors import ConfigError
from diffdistill.registry import check_consent, is_plugin

# By name: what is imported, and what installs it. The classes behind them are accelerate's.
TRACKERS = {
    "tensorboard": ("tensorboard", "diffdistill[tensorboard]"),
    "wandb": ("wandb", "diffdistill[wandb]"),
    "trackio": ("trackio", "diffdistill[trackio]"),
    "mlflow": ("mlflow", "diffdistill[mlflow]"),
}
ALL, NONE = "all", "none"


def listed(given: Any) -> Any:
    """`wandb` or `[wandb, tensorboard]` as a tuple; `none` is an empty one."""
    given = [given] if isinstance(given, str) else given
    if given == [NONE]:
        return ()
    return tuple(given) if isinstance(given, list) else given


def tracker_name(name: str) -> str:
    """A name of a tracker, `all`, or `FILE.py:NAME` of a class; ValueError for any other."""
    if name not in (*TRACKERS, ALL) and not is_plugin(name):
        known = ", ".join((NONE, *TRACKERS, ALL))
        raise ValueError(f"report_to is '{name:.60}'; it must be {known}, FILE.py:NAME, or a list of several of them")
    return name


def installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(TRACKERS[name][0]) is not None
    except (ImportError, ValueError):
        return False


def check_tracker(name: str) -> None:
    """ConfigError for a tracker that is not installed here, or is code that nobody allowed."""
    if is_plugin(name):
        check_consent(name)
    elif name == ALL and not any(map(installed, TRACKERS)):
        raise ConfigError(
            f"report_to is 'all', and of {', '.join(TRACKERS)} none is installed; install one of them, or leave it out"
        )
    elif name != ALL and not installed(name):
        raise ConfigError(
            f"report_to names '{name}', which is not installed; pip install '{TRACKERS[name][1]}', or leave it out"
        )


def meant(names: tuple[str, ...]) -> tuple[str, ...]:
    """Each tracker once, in order; of `all` those that are installed."""
    some = [one for name in names for one in ((*filter(installed, TRACKERS),) if name == ALL else (name,))]
    return tuple(dict.fromkeys(some))
