"""What is wrong with names in flags, found before anything heavy is imported: models, data, features, files.

Each function takes what was given and raises the error that the verb itself would raise, seconds later.
"""

import os
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffdistill.data.formats import known_place
from diffdistill.errors import CheckpointError, ConfigError, DataError, DiskError
from diffdistill.evaluation.features import check_features
from diffdistill.files import reading
from diffdistill.pipelines.folder import local

if TYPE_CHECKING:
    from diffdistill.config.schema import Run


def look_at(args: Namespace, names: Mapping[str, str]) -> None:
    """Look at the values of flags, each by the function of this file that `names` says."""
    for flag, what in names.items():
        value = getattr(args, flag)
        for name in value if isinstance(value, list) else [value]:
            if name is not None:
                LOOKING[what](name)


def model(name: str) -> None:
    """MODEL: a folder that is there, with an index; a Hub id, which only the Hub knows, is left to the verb."""
    with reading(name, CheckpointError):
        folder = local(name)
        if folder is not None and not (folder / "model_index.json").exists():
            raise CheckpointError(
                f"model folder '{folder}' has no model_index.json; give a folder in diffusers format, or make it again"
            )


def model_at_steps(name: str) -> None:
    """The same, perhaps with `@K` behind it."""
    match = re.fullmatch(r"(.+)@(\d+)", name)
    with reading(name, CheckpointError):
        plain = match is None or Path(name).exists()
    model(name if plain or match is None else match[1])


def data(name: str) -> None:
    """DATA: something that is there, or that a format knows by its name."""
    with reading(name, DataError):
        known_place(name)


LOOKING: dict[str, Callable[[str], object]] = {
    "model": model,
    "model_at_steps": model_at_steps,
    "data": data,
    "features": check_features,
}
"""By the kind of name: what raises the error for one that cannot be."""


def settings(config: "Run") -> None:
    """What a run's settings name, and whether its folder could be one."""
    for key in ("teacher", "model"):
        if (name := getattr(config, key, None)) is not None:
            model(name)
    if config.data.prompts is None and not hasattr(config.data, "ties"):  # pairs have forms of their own
        data(config.data.path)
    evaluation = config.evaluation
    for key, check in (("reference", data), ("features", check_features)):
        if (name := getattr(evaluation, key, None)) is not None:
            check(name)
    run_folder(config.output_dir)


def run_folder(name: str) -> None:
    """ConfigError for an output_dir that cannot be a folder, DiskError for one that may not be made."""
    folder = Path(name)
    try:
        if not name.strip() or (folder.exists() and not folder.is_dir()):
            raise ConfigError(f"output_dir '{name}' is no folder; name a new one")
        above = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path())
        if not above.is_dir():
            raise ConfigError(f"output_dir '{name}' lies in '{above}', which is a file; name another folder")
    except OSError as error:
        raise ConfigError(f"output_dir '{name:.100}' cannot be a folder ({error.strerror}); name another") from None
    if not os.access(above, os.W_OK):
        raise DiskError(f"output_dir '{name}': nothing can be written in '{above}'; choose another folder")
