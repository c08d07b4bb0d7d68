"""`metrics.jsonl`: one JSON object a line, with the step, the seconds of training and what was measured."""

import json
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffdistill.errors import DiskError
from diffdistill.files import write_text


class Log:
    """The log of a run. Where the run goes on after step `start`, lines of later steps are dropped; all of them at 0.
    dropped: the former, for who was told of them.

    Lines that a loss of power damaged are left out, with a warning; the last one may be cut by any kill.
    """

    def __init__(self, file: Path, start: int):
        self.file, self.dropped = file, list[str]()
        if file.is_dir():
            raise DiskError(f"'{file}' is a folder and should be the log of the run; move it away")
        if file.exists():
            lines = file.read_text("utf-8", errors="replace").splitlines()
            if start and any(step_of(line) is None for line in lines[:-1]):
                tqdm.write(f"warning: lines of '{file}' are damaged and left out; the run is not")
            kept = [line for line in lines if (step := step_of(line)) is not None and step <= start]
            if start:
                self.dropped = [line for line in lines if (step := step_of(line)) is not None and step > start]
            write_text(file, "".join(f"{line}\n" for line in kept if start))

    def write(self, values: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """What is written so far."""
        if not self.file.exists():
            return []
        return [json.loads(line) for line in self.file.read_text("utf-8").splitlines() if step_of(line) is not None]

    def has(self, step: int, name: str) -> bool:
        """Whether a line of this step has a value whose name begins so."""
        return any(key.startswith(name) for entry in self.lines() if entry["step"] == step for key in entry)

    def sync(self) -> None:
        """Have it survive a loss of power, as the checkpoint that follows does."""
        if self.file.exists():
            with self.file.open("a", encoding="utf-8") as stream:
                os.fsync(stream.fileno())


def step_of(line: str) -> int | None:
    """The step of a line; None for one that is damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None
