"""Reading a run folder for the report: missing and damaged parts are left out."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffdistill.errors import CheckpointError

STOPPED_FOR = "early_stop/kept"  # in the log of a run that ended early: the step whose model it kept


@dataclass
class Series:
    """One metric over a run: step, seconds of training and value of each line that has it, in the order of the log."""

    steps: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)

    def mean(self, start: float, end: float) -> float:
        """Mean over the part of the run from `start` to `end`, both in [0, 1]; at least one value."""
        first = min(int(start * len(self)), len(self) - 1)
        part = self.values[first : max(first + 1, math.ceil(end * len(self)))]
        return sum(part) / len(part)


@dataclass
class RunData:
    """A run folder as the report sees it; what is missing is empty."""

    folder: Path
    config_text: str
    config: dict[str, Any]
    metrics: dict[str, Series]
    grids: list[tuple[int, Path]]  # (step, picture), in the order of the steps
    pictures: dict[str, Path]  # other pictures of samples/ by their name, such as "teacher"
    evaluation: dict[str, dict[str, Any]]  # of "student", "teacher", ...
    environment: dict[str, Any]
    model: dict[str, Any]  # diffdistill.json of the published model

    @property
    def verb(self) -> str:
        """What made it: configs with a teacher distil, with a model align, all others train."""
        return "distill" if "teacher" in self.config else "align" if "model" in self.config else "train"

    @property
    def words(self) -> dict[str, Any]:
        """Label and direction of every figure by name, as the run's evaluations recorded them."""
        return {
            name: words for result in self.evaluation.values() for name, words in (result.get("figures") or {}).items()
        }

    @property
    def steps(self) -> int:
        return int(max((series.steps[-1] for series in self.metrics.values()), default=0))

    @property
    def seconds(self) -> float:
        return max((series.seconds[-1] for series in self.metrics.values()), default=0.0)


def read_run(folder: Path) -> RunData:
    """Read a run folder; CheckpointError if it is none. Damaged or missing parts are left out."""
    config_file, log = folder / "config.yaml", folder / "metrics.jsonl"
    if not config_file.is_file() and not log.is_file():
        raise CheckpointError(
            f"'{folder}' is no run folder (no config.yaml, no metrics.jsonl); give the output_dir of train or distill"
        )
    text = _text(config_file)
    samples = sorted((folder / "samples").glob("*.png"))
    grids = [(int(file.stem[5:]), file) for file in samples if file.stem[:5] == "step-" and file.stem[5:].isdigit()]
    known = {file for _, file in grids}
    return RunData(
        folder=folder,
        config_text=text,
        config=_yaml(text),
        metrics=read_metrics(_text(log)),
        grids=sorted(grids),
        pictures={file.stem: file for file in samples if file not in known},
        evaluation={
            name: value for name, value in _json(folder / "evaluation.json").items() if isinstance(value, dict)
        },
        environment=_json(folder / "environment.json"),
        model=_json(folder / "student" / "diffdistill.json") or _json(folder / "model" / "diffdistill.json"),
    )


def read_metrics(text: str) -> dict[str, Series]:
    """Every numeric key of `metrics.jsonl` as a series; a line that a kill cut short is skipped."""
    metrics: dict[str, Series] = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            step, seconds = float(entry["step"]), float(entry.get("time", 0.0))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, value in entry.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name in ("step", "time") or not number or not math.isfinite(value):
                continue
            series = metrics.setdefault(name, Series())
            series.steps.append(step)
            series.seconds.append(seconds)
            series.values.append(float(value))
    return metrics


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(file))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _yaml(text: str) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}
