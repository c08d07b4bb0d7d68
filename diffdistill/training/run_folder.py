"""The folder of a run: opened or refused, its settings, and the machine it ran on."""

import contextlib
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from diffdistill import __version__, devices, machine, processes
from diffdistill.config import Resolved, load_config
from diffdistill.config.schema import Run
from diffdistill.errors import ConfigError, DiffDistillError
from diffdistill.files import not_written, read_json, write_json, write_text
from diffdistill.training.lock import is_ours, locked, remove_leftovers
from diffdistill.training.loop import Observer, TrainingRun
from diffdistill.training.resume import PLACES, differing, settings_of

SETTINGS, MACHINE = "config.yaml", "environment.json"
OWN_FOLDERS = ("samples", "checkpoints")
OF_A_SITTING = {"resume_from_checkpoint": "null", "allow_changed_inputs": "false"}


@contextlib.contextmanager
def opened(config: Run) -> Iterator[Path]:
    """`opened_here`, for the leader of several processes; the others see no more than its name."""
    with contextlib.ExitStack() as stack:
        processes.lead(lambda: str(stack.enter_context(opened_here(config))))
        yield Path(config.output_dir)


@contextlib.contextmanager
def opened_here(config: Run) -> Iterator[Path]:
    """The run folder, for this process alone: new, or the one to resume (with the same settings but for length and
    logging).

    Raises ConfigError where it holds another run, or a process that is at work; DiskError where it cannot be written.
    """
    folder = Path(config.output_dir)
    refuse_taken(config, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    with locked(folder):
        refuse_taken(config, folder)  # by a run that began meanwhile
        for place in (folder, *(folder / name for name in OWN_FOLDERS)):
            remove_leftovers(place)
        if (folder / SETTINGS).exists():
            check_same(config, folder / SETTINGS)
        try:
            for name in OWN_FOLDERS:
                (folder / name).mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        yield folder


class Records(Observer):
    """`config.yaml` and `environment.json`: written when the run begins or goes on, not where that is refused.

    record: what `auto` became, for the latter.
    """

    def __init__(self, resolved: Resolved, record: dict[str, Any]):
        self.resolved, self.record = resolved, record

    def start(self, run: TrainingRun[Any]) -> None:
        if run.step:
            warn_of_precision(run.folder / MACHINE, self.record["mixed_precision"])
        try:
            write_text(run.folder / SETTINGS, lasting(self.resolved.text_yaml))
            write_json(run.folder / MACHINE, environment() | self.record)
        except OSError as error:
            raise unwritable(run.folder, error) from error

    def end(self, run: TrainingRun[Any]) -> None:
        peak = {"peak_memory_mb": round(peak_memory() / 1e6)}
        write_json(run.folder / MACHINE, environment() | self.record | peak)


def lasting(settings: str) -> str:
    """The settings without what was said for this sitting: said again by the file, a run would go back once more."""
    for name, value in OF_A_SITTING.items():
        settings = re.sub(rf"^{name}: .*$", f"{name}: {value}", settings, flags=re.MULTILINE)
    return settings


def unwritable(folder: Path, error: OSError) -> DiffDistillError:
    return not_written(folder, error, "choose another output_dir")


def refuse_taken(config: Run, folder: Path) -> None:
    """ConfigError for a folder that holds anything, unless it is a run's that is to be continued."""
    try:
        taken = folder.exists() and not all(is_ours(path) or _just_made(path) for path in folder.iterdir())
        run = (folder / "checkpoints").is_dir()
    except OSError as error:
        raise unwritable(folder, error) from error
    if taken and not run:
        raise ConfigError(f"'{folder}' holds files and no run (no checkpoints/); set output_dir to a new folder")
    if taken and config.resume_from_checkpoint is None:
        raise ConfigError(
            f"'{folder}' already holds a run; set output_dir to a new folder, or "
            f"resume_from_checkpoint=latest to continue it"
        )


def _just_made(path: Path) -> bool:
    """Whether a run was stopped before it put anything into this folder of its own."""
    return path.name in OWN_FOLDERS and path.is_dir() and not any(path.iterdir())


def check_same(config: Run, settings: Path) -> None:
    """ConfigError where `config.yaml` is of another run. A damaged one says nothing: checkpoints say it too."""
    try:
        before = load_config(type(config), settings).config
    except (ConfigError, OSError, ValueError):
        print(f"warning: '{settings}' is damaged and written anew; the checkpoints say what the run is")
        return
    # Where data and models lie may change: the checkpoint knows whether they are the same.
    changed = [name for name in differing(settings_of(before), settings_of(config)) if name not in PLACES]
    if changed:
        raise ConfigError(
            f"'{settings.parent}' was run with other {', '.join(changed)}; resume with its own config.yaml, or "
            f"set another output_dir"
        )


def warn_of_precision(environment: Path, precision: str) -> None:
    """`auto` may mean another precision on another machine."""
    try:
        before = read_json(environment)["mixed_precision"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # absent, damaged, or of an older version
        return
    if before != precision:
        print(f"resuming with mixed_precision={precision} what ran with {before}: results will differ")


def environment() -> dict[str, Any]:
    """What a reader needs to judge the speed and repeat the run; no paths, no user names."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": None if devices.accelerator() is None else devices.name_of(devices.default_device()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **package_versions(),
        "command": command_line(),
    }


def package_versions() -> dict[str, str]:
    """Of what computes."""
    from importlib.metadata import version

    packages = ("torch", "diffusers", "accelerate", "safetensors", "numpy")
    return {package: version(package) for package in packages} | {"diffdistill": __version__}


def command_line() -> str:
    """What started this process, without the folders its program lies in."""
    program = Path(sys.argv[0]).name
    return " ".join(["diffdistill" if program == "__main__.py" else program, *sys.argv[1:]])


def peak_memory() -> int:
    """Most bytes this process ever held: of the accelerator where there is one, else resident memory."""
    return machine.peak_memory() if devices.accelerator() is None else devices.peak_memory(devices.default_device())
