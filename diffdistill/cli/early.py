"""What is wrong with names in flags, found before anything heavy is imported: models, data, features, files.

Each function takes what was given and raises the error that the verb itself would raise, seconds later.
"""

import logging
import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from diffdistill.assets import BUILTIN, bundled, is_builtin, resolve_builtin
from diffdistill.config.places import placed
from diffdistill.config.unused import refuse_idle, value_at
from diffdistill.config.watching import check_tracker
from diffdistill.data.formats import allowed, by_rank, known_place, open_source
from diffdistill.data.prompts import read_prompts, without_texts
from diffdistill.data.source import Entry, is_picture
from diffdistill.errors import CheckpointError, ConfigError, DataError, DiffDistillError, DiskError
from diffdistill.evaluation.features import check_features
from diffdistill.evaluation.metrics import check_enough, metric, too_few
from diffdistill.files import expanded, read_json, reading
from diffdistill.pipelines.folder import local
from diffdistill.rewards.kinds import check_reward

if TYPE_CHECKING:
    from diffdistill.config import Resolved
    from diffdistill.config.schema import Run

MOST_SEEN = 1000  # names of a folder that are looked at to tell what it is


def look_at(args: Namespace, names: Mapping[str, str]) -> None:
    """Look at the values of flags, each by the function of this file that `names` says."""
    for flag, what in names.items():
        value = getattr(args, flag)
        for name in value if isinstance(value, list | tuple) else [value]:
            if name is not None:
                LOOKING[what](name)


def model(name: str) -> None:
    """MODEL: a folder that is there, with an index; a Hub id, which only the Hub knows, is left to the verb."""
    with reading(name, CheckpointError):
        place = resolve_builtin(name) if is_builtin(name) else expanded(name)
        if (what := not_a_model(name, place)) is not None:
            raise CheckpointError(what)
        folder = local(name)
        if folder is not None and not (folder / "model_index.json").exists():
            raise CheckpointError(
                f"model folder '{folder}' has no model_index.json; give a folder in diffusers format, or make it again"
            )


def not_a_model(name: str, place: Path) -> str | None:
    """A sentence where a name is that of data or of a run, and a model is asked for; None where it may be one."""
    if (place / "model_index.json").exists():
        return None
    parts = [part for part in ("student", "model") if (place / part / "model_index.json").is_file()]
    if parts:
        return f"'{name}' is the folder of a run, and a model is asked for; give '{Path(name) / parts[0]}'"
    if (place / "config.yaml").is_file() and (place / "metrics.jsonl").exists():
        return f"'{name}' is the folder of a run that has published no model yet; finish it, or give another model"
    if is_data(name, place):
        return f"'{name}' is a data set, and a model is asked for; give a folder with model_index.json or a Hub id"
    return None


def is_data(name: str, place: Path) -> bool:
    """Whether images lie there: a set that comes with the package, a file of a form of DATA, a folder of pictures."""
    if is_builtin(name):
        return (place / "manifest.json").is_file()
    if place.is_dir():
        here = [path for path in place.iterdir() if not path.name.startswith(".")][:MOST_SEEN]
        inside = [path for folder in here if folder.is_dir() for path in islice(folder.iterdir(), MOST_SEEN)]
        pictures = any(is_picture(PurePath(path.name)) for path in (*here, *inside))
        return pictures or any(row.matches(name, place) for row in by_rank() if row.name != "images")
    return place.is_file() and any(row.matches(name, place) for row in by_rank())


def model_at_steps(name: str) -> None:
    """The same, perhaps with `@K` behind it."""
    match = re.fullmatch(r"(.+)@(\d+)", name)
    with reading(name, CheckpointError):
        plain = match is None or Path(name).exists()
    if not plain and match is not None and int(match[2][:18]) < 1:
        raise ConfigError(f"'{name}' asks for a model at 0 steps; write MODEL@K with a K of 1 or more")
    model(name if plain or match is None else match[1])


def data(name: str) -> None:
    """DATA: something that is there, or that a format knows by its name."""
    no_model(name)
    with reading(name, DataError):
        known_place(name)


def no_model(name: str) -> None:
    """DataError where a name is that of a model or of a run, and data are asked for."""
    known = {f"{BUILTIN}{folder.name}": folder for folder in bundled()}
    with reading(name, DataError):
        place = known.get(name, expanded(name))
        if (place / "model_index.json").exists():
            raise DataError(f"'{name}' is a model, and data are asked for; give {allowed()}")
        if (place / "config.yaml").is_file() and (place / "metrics.jsonl").exists():
            raise DataError(f"'{name}' is the folder of a run, and data are asked for; give {allowed()}")


def run_or_model(name: str) -> None:
    """RUN, whether it has published a model yet or not, or MODEL."""
    place = expanded(name)
    with reading(name, CheckpointError):
        if (place / "config.yaml").is_file() or (place / "metrics.jsonl").is_file():
            return
    model(name)


LOOKING: dict[str, Callable[[str], object]] = {
    "model": model,
    "model_at_steps": model_at_steps,
    "run_or_model": run_or_model,
    "data": data,
    "features": check_features,
    "reward": check_reward,
}
"""By the kind of name: what raises the error for one that cannot be."""


def settings(resolved: "Resolved[Run]") -> None:
    """What a run's settings name, and whether its folder could be one; a complaint begins with the setting's place."""
    config: Any = resolved.config

    def look(key: str, check: Callable[..., object], *more: Any, about: Mapping[str, str] | None = None) -> None:
        """about: other settings of the check, by a word of the complaints that are about them."""
        value = value_at(config, key)
        for name in value if isinstance(value, list | tuple | dict) else [value]:
            try:
                if name is not None:
                    check(name, *more)
            except DiffDistillError as error:
                others = [other for word, other in (about or {}).items() if word in str(error)]
                at = next((other for other in others if other in resolved.origins), key)
                raise placed(error, config, resolved.origins, at) from error

    for key in ("teacher", "model"):
        look(key, model)
    draws_texts = check_kind(resolved)
    for key in ("method.reward.name", "method.reward.sum", "evaluation.rewards", "evaluation.judges"):
        look(key, check_reward)
    look("evaluation.features", check_features)
    look("data.prompts", prompts_of)
    if hasattr(config.data, "ties"):  # pairs have forms of their own
        look("data.path", no_model)
        look("data.held_out_path", no_model)
    else:
        _look_at_images(config, look, bool(draws_texts))
    look("report_to", check_tracker)
    look("output_dir", run_folder)


def _look_at_images(config: Any, look: Callable[..., None], draws_texts: bool) -> None:
    split = config.evaluation.reference_split
    measured = config.evaluation.metrics if config.evaluation.every or config.evaluation.at_end else ()
    if config.data.prompts is None:
        about = {" split ": "data.split", "data.limit": "data.limit", " at least": "data.limit"}
        compared = () if config.evaluation.reference is not None else measured
        look("data.path", opened, config.data.split, config.data.limit, compared, draws_texts, about=about)
    about = {" split ": "data.split" if split is None else "evaluation.reference_split"}
    look("evaluation.reference", opened, split or config.data.split, None, measured, about=about)
    look("evaluation.num_images", drawn, measured)
    look("evaluation.prompts", prompts_of)


def check_kind(resolved: "Resolved[Any]") -> bool | None:
    """Whether the teacher draws texts, where there is one that is here; the Hub's are known once they are fetched.

    ConfigError for settings that this kind of teacher does not use.
    """
    if not hasattr(resolved.config, "teacher"):
        return None
    folder = local(resolved.config.teacher)
    try:
        index = None if folder is None else read_json(folder / "model_index.json")
    except (OSError, ValueError):
        return None  # the verb says what is wrong with it
    if not isinstance(index, dict):
        return None
    draws_texts = any(name.startswith("text_encoder") for name in index)
    refuse_idle(resolved, draws_texts)
    return draws_texts


def prompts_of(name: str) -> None:
    """A file of prompts that is there and can be read."""
    with reading(name, DataError):
        read_prompts(name)


def opened(
    name: str, split: str, limit: int | None = None, compared: Sequence[str] = (), captioned: bool = False
) -> None:
    """DATA that a format reads, with that split and so many images, enough for the metrics that compare with them,
    with labels or captions where these are needed; no image is decoded.
    """
    data(name)
    if not (is_builtin(name) or expanded(name).exists()):
        return  # of the Hub
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # what is passed over is said when the images are read
    try:
        with reading(name, DataError):
            source = open_source(name, split)
    finally:
        logging.disable(before)
    if limit is not None and limit > source.count:
        raise DataError(f"{name} has {source.count} images, but {limit} were asked for: lower data.limit")
    if captioned and source.texts is None:
        raise ConfigError(without_texts(name))
    comparing = [one for one in compared if metric(one).compares]
    if too_few(comparing, limit or source.count) and not hasattr(source.images, "shape"):
        _decode_few(source.images)
    check_enough(comparing, limit or source.count, name)
    of_classes = next((one for one in compared if "labels" in metric(one).needs), None)
    if of_classes is not None and source.labels is None:
        raise DataError(
            f"{name} has no labels, and metric '{of_classes}' needs them: give class folders, or leave it out"
        )


def _decode_few(entries: Iterable[Entry]) -> None:
    """DataError for a damaged image among a few, which is told before that there are few."""
    from diffdistill.data.pixels import decode

    for label, entry in entries:
        decode(entry, label)


def drawn(count: int, metrics: Sequence[str]) -> None:
    """ConfigError for fewer images than one of the metrics needs."""
    if (need := too_few(metrics, count)) is not None:
        raise ConfigError(f"evaluation.num_images is {count}, and {need}; raise it, or leave it out of the metrics")


def run_folder(name: str) -> None:
    """ConfigError for an output_dir that cannot be a folder, DiskError for one that may not be made."""
    folder = Path(name)
    try:
        if folder.is_symlink() and not folder.exists():
            raise ConfigError(
                f"output_dir '{name}' is a link to '{os.readlink(folder)}', which is not there; make that folder, or "
                f"name another"
            )
        if not name.strip() or (folder.exists() and not folder.is_dir()):
            raise ConfigError(f"output_dir '{name}' is no folder; name a new one")
        above = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path())
        if not above.is_dir():
            raise ConfigError(f"output_dir '{name}' lies in '{above}', which is a file; name another folder")
    except OSError as error:
        raise ConfigError(f"output_dir '{name:.100}' cannot be a folder ({error.strerror}); name another") from None
    if not os.access(above, os.W_OK):
        raise DiskError(f"output_dir '{name}': nothing can be written in '{above}'; choose another folder")
