"""`metrics.jsonl`: one JSON object a line, with the step, the seconds of training and what was measured."""

import json
from pathlib import Path
from typing import Any

from diffdistill.files import read_text, write_text


class Log:
    """The log of a run that goes on after step `start`: lines of later steps are dropped first, all of them at 0."""

    def __init__(self, file: Path, start: int):
        self.file = file
        if file.exists():
            kept = [line for line in read_text(file).splitlines() if _step_of(line) <= start]
            write_text(file, "".join(f"{line}\n" for line in kept if start))

    def write(self, values: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # the line that a kill cut short
        return float("inf")
