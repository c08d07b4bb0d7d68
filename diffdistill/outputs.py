"""Files that a command answers into: refused before the work, written whole after it. `-` is standard output."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffdistill.errors import ConfigError, DiskError
from diffdistill.files import behind_links, not_written, read_json, write_text


def is_stdout(target: str | Path | None) -> bool:
    """`-`, and the name that systems give it: a file opened by that would be written over by what is printed."""
    return str(target) in ("-", "/dev/stdout")


def check_output(target: str | Path, flag: str, ours: Callable[[Any], bool] | None = None) -> None:
    """Refuse a file that could not be written, or that holds anything of someone else's, before anything is computed.

    flag: what names it, for messages. ours: of the content of an existing JSON file, whether it may be replaced; None:
    no file is. Empty files, devices and pipes may be written to. Raises ConfigError, DiskError without permission.
    """
    if is_stdout(target):
        return
    file, what = behind_links(Path(target)), f"{flag} {target}"
    try:
        folder = file.absolute().parent
        if not str(target) or file.is_dir():
            raise ConfigError(f"{what} is a folder; name a file")
        if not folder.is_dir():
            raise ConfigError(f"{what}: there is no folder {folder}; make it first")
        if not os.access(folder, os.W_OK) and (file.is_file() or not file.exists()):
            raise DiskError(f"{what}: nothing can be written in {folder}; choose another folder or change its rights")
        taken = file.is_file() and file.stat().st_size > 0
    except OSError as error:
        raise ConfigError(f"{what:.200} cannot be a file ({error.strerror or error}); name another") from None
    if taken and not (ours is not None and _holds(file, ours)):
        raise ConfigError(f"{what} exists and holds something else: delete it or name another file")


def _holds(file: Path, ours: Callable[[Any], bool]) -> bool:
    try:
        return ours(read_json(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def has_keys(*names: str) -> Callable[[Any], bool]:
    """Whether a content is an object with these keys, as an answer of the same command is."""
    return lambda content: set(names) <= content.keys()


def write_answer(target: str | Path, value: Any) -> None:
    """Write JSON to a file, whole or not at all, or print it; numbers that JSON has no words for are text, "nan"."""
    text = json.dumps(_json(value), indent=2, allow_nan=False)
    if is_stdout(target):
        print(text, flush=True)
        return
    try:
        write_text(Path(target), text + "\n")
    except OSError as error:
        raise not_written(target, error, "name another file") from error


def _json(value: Any) -> Any:
    """The same of plain types: numbers of NumPy and torch as Python's."""
    if isinstance(value, dict):
        return {str(key): _json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json(entry) for entry in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    return _json(value.tolist()) if hasattr(value, "tolist") else str(value)
