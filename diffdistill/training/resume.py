"""Going on from a checkpoint: the same run as before, and one branch of it alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffdistill import processes
from diffdistill.config.schema import Run
from diffdistill.config.unused import value_at
from diffdistill.errors import ConfigError, DiskError
from diffdistill.files import sha256
from diffdistill.training.flat import Parts, fused_in
from diffdistill.training.store import (
    MANIFEST,
    CheckpointStore,
    check_parts,
    load_checkpoint,
    name_of,
    read_state,
    step_of,
)

FREE = {
    "output_dir",
    "resume_from_checkpoint",
    "allow_changed_inputs",
    "max_train_steps",
    "num_threads",
    "log_every",
    "print_every",
    "report_to",
    "sample_every",
    "sample_classes",
    "sample_prompts",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "evaluation",
    "parallel",
}
"""Settings that may change between a run and its continuation without making it another run."""

PLACES = {"data.path", "teacher", "model"}
"""Settings that say where an input lies; it is known by its digest, wherever it has been moved to."""

# Settings of data that say where things are meanwhile, and change no image.
FREE_OF_DATA = {"keep", "workers", "disk_cache_gb", "prompt_cache_gb", "prompt_device_gb", "prompt_disk_gb"}

# Settings of evaluations that say when, and what else, is measured, and where that lies: no figure changes by them.
FREE_OF_EVALUATION = {"every", "at_end", "stop", "metrics", "batch_size", "rewards", "judges", "reference", "prompts"}

# What a set is known by where not all of its images were decoded; else by their pixels, whatever files hold them.
FILES = "data files"

Inputs = dict[str, Any]
"""Digests of what a run is made from, by name: data, teacher, reward."""


def settings_of(config: Run) -> dict[str, Any]:
    """The settings that make a run what it is, as JSON has them."""
    settings: dict[str, Any] = json.loads(config.model_dump_json(exclude=FREE))
    settings["data"] = {key: value for key, value in settings["data"].items() if key not in FREE_OF_DATA}
    if config.compares:  # figures of another protocol cannot tell which model is the best
        settings["evaluation"] = config.evaluation.model_dump(mode="json", exclude=FREE_OF_EVALUATION)
    return settings


def resume(parts: Parts, config: Run, store: CheckpointStore, inputs: Inputs) -> dict[str, Any] | None:
    """Fill `parts` from the checkpoint to go on from; returns its state, None where there is none to go on from.

    Later checkpoints are set aside. Raises ConfigError where the run was made with other settings or inputs, or has
    gone further than asked for.
    """
    if config.resume_from_checkpoint is None:
        return None
    found = processes.lead(lambda: _found(parts, config, store, inputs))
    if found is None:
        return None
    folder = Path(found["folder"])
    _check_shared(folder, found["manifest"])
    state = load_checkpoint(folder, parts)
    processes.lead(lambda: set_aside(store, state["step"]))
    threads = state.get("threads", torch.get_num_threads())
    if threads != torch.get_num_threads():
        tqdm.write(
            f"resuming with {torch.get_num_threads()} threads what ran with {threads}: results will "
            f"differ in the last digits"
        )
    _say_fused(set(state.get("fused", [])), set(fused_in(parts)))
    tqdm.write(f"resumed {folder.name}")
    return state


def _say_fused(before: set[str], now: set[str]) -> None:
    """Which optimisers step otherwise than they did; sharded weights, say, are never stepped in one pass."""
    for changed, way, former in ((now - before, "the fused", "without"), (before - now, "no fused", "with")):
        if changed:
            tqdm.write(f"resuming with {way} AdamW what ran {former} it: results will differ in the last digits")


def _found(parts: Parts, config: Run, store: CheckpointStore, inputs: Inputs) -> dict[str, str] | None:
    """The folder to go on from, looked at, and the SHA-256 of its manifest; None where there is none."""
    assert config.resume_from_checkpoint is not None
    folder, skipped = store.find(config.resume_from_checkpoint)
    for line in skipped:
        tqdm.write(f"skipped {line}")
    if folder is None:
        return None
    check_parts(folder, parts)
    check_same_run(folder, read_state(folder), config, inputs)
    return {"folder": str(folder.absolute()), "manifest": sha256(folder / MANIFEST)}


def _check_shared(folder: Path, manifest: str) -> None:
    """ConfigError where other processes, which may be on other machines, do not see the leader's checkpoint."""
    try:
        same = sha256(folder / MANIFEST) == manifest
    except OSError:
        same = False
    if processes.most(not same):
        raise processes.together_told(
            ConfigError(
                f"not every process sees the checkpoint '{folder}' of process 0; put output_dir where all machines "
                f"read the same files"
            )
        )


def check_same_run(folder: Path, state: dict[str, Any], config: Run, inputs: Inputs) -> None:
    """ConfigError unless the checkpoint is of this run; what an older version did not record is taken on trust."""
    if state["step"] > config.max_train_steps:
        raise ConfigError(
            f"max_train_steps is {config.max_train_steps} and '{folder}' is of step {state['step']}; raise it, or go "
            f"back to an earlier checkpoint by resume_from_checkpoint=STEP"
        )
    known_by_digest = PLACES if state.get("inputs") else set()
    changed = [name for name in differing(state.get("settings"), settings_of(config)) if name not in known_by_digest]
    if changed:
        raise ConfigError(
            f"'{folder}' was made with other {', '.join(changed)}; resume with the run's own settings, or set another "
            f"output_dir"
        )
    before = state.get("inputs") or {}
    by_pixels = "data" in before and "data" in inputs
    changed = differing(before, {name: value for name, value in inputs.items() if not (by_pixels and name == FILES)})
    if changed and not config.allow_changed_inputs:
        called = ", ".join(_called(name, config) for name in changed)
        raise ConfigError(
            f"the content of {called} is not what '{folder}' was trained with; put the former back, or "
            f"set allow_changed_inputs=true to go on with this"
        )


def _called(name: str, config: Run) -> str:
    """An input with the path that the settings give it."""
    keys = {"data": ("data.prompts", "data.path"), "held out": ("data.held_out_path",)}.get(name, (name,))
    value = next((value for key in keys if isinstance(value := value_at(config, key), str)), None)
    return name if value is None else f"{name} '{value}'"


def differing(before: Any, now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of values that both have and that differ."""
    names: list[str] = []
    for key in before.keys() & now.keys() if isinstance(before, dict) else ():
        if isinstance(before[key], dict) and isinstance(now[key], dict):
            names += differing(before[key], now[key], f"{prefix}{key}.")
        elif before[key] != now[key]:
            names.append(f"{prefix}{key}")
    return sorted(names)


def set_aside(store: CheckpointStore, step: int) -> None:
    """Move what a run holds of later steps to `RUN/abandoned-N`: another branch begins here.

    Mixed with it, later checkpoints would be taken for the newest, and the new ones pruned as older. The newest goes
    first, so that a kill in between leaves the old branch, shortened. Its log goes along.
    """
    later = store.after(step)
    if not later:
        return
    run = store.folder.parent
    aside = next(path for n in range(1, 10**6) if not (path := run / f"abandoned-{n}").exists())
    try:
        (aside / store.folder.name).mkdir(parents=True)
        if (run / "metrics.jsonl").is_file():
            shutil.copyfile(run / "metrics.jsonl", aside / "metrics.jsonl")
        for folder in reversed(later):
            folder.rename(aside / store.folder.name / folder.name)
        (aside / "samples").mkdir()
        for picture in run.glob("samples/step-*.png"):
            if (step_of(picture.with_suffix("")) or 0) > step:
                picture.rename(aside / "samples" / picture.name)
    except OSError as error:
        raise DiskError(
            f"could not set later checkpoints aside in '{aside}' ({error.strerror}); free space, or mend its rights"
        ) from error
    tqdm.write(
        f"going on from {name_of(step)}: {', '.join(folder.name for folder in later)} are in '{aside}', with their "
        f"log; remove it if that branch is not wanted"
    )
