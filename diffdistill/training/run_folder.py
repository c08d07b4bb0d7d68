"""The folder of a run: opened or refused, its settings, and the machine it ran on."""

import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from diffdistill import __version__
from diffdistill.config import Resolved, load_config
from diffdistill.config.schema import Run
from diffdistill.errors import ConfigError, DiskError
from diffdistill.files import read_json, write_json, write_text


def open_folder(config: Run, resolved: Resolved, record: dict[str, str]) -> Path:
    """The run folder: new, or the one to resume (with the same settings but for length and logging).

    record: what `auto` became, for `environment.json`.
    """
    folder = Path(config.output_dir)
    settings = folder / "config.yaml"
    if folder.exists() and any(folder.iterdir()):
        if config.resume_from_checkpoint is None:
            raise ConfigError(
                f"'{folder}' already holds a run; set output_dir to a new folder, or "
                f"resume_from_checkpoint=latest to continue it"
            )
        if settings.exists():
            check_same(config, settings)
            warn_of_precision(folder / "environment.json", record["mixed_precision"])
    try:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        write_text(settings, resolved.text_yaml)
        write_json(folder / "environment.json", environment() | record)
    except OSError as error:
        raise DiskError(f"cannot write to '{folder}' ({error.strerror}); choose another output_dir") from error
    return folder


# What may change between a run and its continuation without making it another run.
FREE = {
    "output_dir",
    "resume_from_checkpoint",
    "max_train_steps",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "keep_checkpoints",
    "evaluation",
}


def check_same(config: Run, settings: Path) -> None:
    before = load_config(type(config), settings).config
    changed = [
        key for key in type(config).model_fields if key not in FREE and getattr(before, key) != getattr(config, key)
    ]
    if changed:
        raise ConfigError(
            f"'{settings.parent}' was run with other {', '.join(changed)}; resume with its own config.yaml, or "
            f"set another output_dir"
        )


def warn_of_precision(environment: Path, precision: str) -> None:
    """`auto` may mean another precision on another machine."""
    before = read_json(environment).get("mixed_precision") if environment.is_file() else None
    if before not in (None, precision):
        print(f"resuming with mixed_precision={precision} what ran with {before}: results will differ")


def environment() -> dict[str, Any]:
    """What a reader needs to judge the speed and repeat the run; no paths, no user names."""
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{package: version(package) for package in ("torch", "diffusers", "accelerate", "safetensors", "numpy")},
        "diffdistill": __version__,
        "command": command_line(),
    }


def command_line() -> str:
    """What started this process, without the folders its program lies in."""
    program = Path(sys.argv[0]).name
    return " ".join(["diffdistill" if program == "__main__.py" else program, *sys.argv[1:]])


def peak_memory() -> int:
    """Most bytes this process ever held: of the GPU where there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
