"""What is wrong with names in flags, found before anything heavy is imported: models, data, features, files.

Each function takes what was given and raises the error that the verb itself would raise, seconds later.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from diffdistill.data.formats import known_place
from diffdistill.errors import CheckpointError, ConfigError, DiskError
from diffdistill.evaluation.features import check_features
from diffdistill.files import reading
from diffdistill.pipelines.folder import local

if TYPE_CHECKING:
    from diffdistill.config.schema import Run


def model(name: str) -> str:
    """MODEL: a folder that is there, with an index; a Hub id, which only the Hub knows, is left to the verb."""
    with reading(name, CheckpointError):
        folder = local(name)
        if folder is not None and not (folder / "model_index.json").exists():
            raise CheckpointError(
                f"model folder '{folder}' has no model_index.json; give a folder in diffusers format, or make or fetch "
                "it again"
            )
    return name


def model_at_steps(name: str) -> str:
    """The same, perhaps with `@K` behind it."""
    match = re.fullmatch(r"(.+)@(\d+)", name)
    with reading(name, CheckpointError):
        plain = match is None or Path(name).exists()
    model(name if plain or match is None else match[1])
    return name


def data(name: str) -> str:
    """DATA: what no reader could read is refused, for want of a file, a folder or a name that could be a Hub id."""
    known_place(name)
    return name


def features(name: str) -> str:
    """What `load_features` could mean by the name."""
    check_features(name)
    return name


def settings(config: "Run") -> None:
    """What a run's settings name, and whether its folder could be one."""
    for key in ("teacher", "model"):
        if (name := getattr(config, key, None)) is not None:
            model(name)
    if config.data.prompts is None and not hasattr(config.data, "ties"):  # pairs have forms of their own
        data(config.data.path)
    evaluation = config.evaluation
    for key, check in (("reference", data), ("features", features)):
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
