"""Reading a run folder for the report: missing and damaged parts are left out."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffdistill.config.yaml import MAX_BYTES, parse
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.evaluation.figures import features_of
from diffdistill.files import parse_json
from diffdistill.reporting.forms import CONFIG, ENVIRONMENT, EVALUATIONS, MODEL, MOST, formed, number

MOST_LOG, MOST_JSON, LONGEST_NAME = 1 << 26, 1 << 24, 200  # bytes of a log and of other records; of a metric's name
STEP = re.compile(r"step-([0-9]{1,18})")
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
    def features(self) -> str | None:
        """The id of the features that measured the run; None where none did."""
        return next((id for result in self.evaluation.values() if (id := features_of(result))), None)

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
    """Read a run folder; CheckpointError if it is none. Damaged or missing parts are left out, and so is what a report
    does not need: the folder may be a stranger's.
    """
    config_file, log = folder / "config.yaml", folder / "metrics.jsonl"
    if not config_file.is_file() and not log.is_file():
        raise CheckpointError(
            f"'{folder}' is no run folder (no config.yaml, no metrics.jsonl); give the output_dir of train or distill"
        )
    text = _text(folder, config_file, MAX_BYTES)
    samples = sorted(file for file in (folder / "samples").glob("*.png") if _within(folder, file))
    grids = [(int(step[1]), file) for file in samples if (step := STEP.fullmatch(file.stem))]
    known = {file for _, file in grids}
    return RunData(
        folder=folder,
        config_text=text,
        config=formed(_yaml(text), CONFIG),
        metrics=_drawn(read_metrics(_text(folder, log, MOST_LOG))),
        grids=sorted(grids),
        pictures={file.stem: file for file in samples if file not in known},
        evaluation=formed(_json(folder, "evaluation.json"), EVALUATIONS),
        environment=formed(_json(folder, "environment.json"), ENVIRONMENT),
        model=formed(_json(folder, "student/diffdistill.json") or _json(folder, "model/diffdistill.json"), MODEL),
    )


def read_metrics(text: str) -> dict[str, Series]:
    """Every numeric key of `metrics.jsonl` as a series; a line that a kill cut short is skipped."""
    metrics: dict[str, Series] = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            step, seconds = float(entry["step"]), float(entry.get("time", 0.0))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            continue
        if not (number(step) and number(seconds)):
            continue
        for name, value in entry.items():
            if name in ("step", "time") or not number(value):
                continue
            series = metrics.setdefault(name, Series())
            series.steps.append(step)
            series.seconds.append(seconds)
            series.values.append(float(value))
    return metrics


def _drawn(metrics: dict[str, Series]) -> dict[str, Series]:
    """The first few hundred series, with names that fit on a page."""
    return dict([(name, series) for name, series in metrics.items() if len(name) <= LONGEST_NAME][:MOST])


def _within(folder: Path, file: Path) -> bool:
    """Whether a file lies in the folder itself: a link of a stranger's could show any file of this machine."""
    return file.is_file() and file.resolve().is_relative_to(folder.resolve())


def _text(folder: Path, file: Path, most: int) -> str:
    """The text of a file of the folder, its end where it is longer than `most` bytes."""
    if not _within(folder, file):
        return ""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - most))
            return stream.read(most).decode("utf-8", errors="replace").replace("\r\n", "\n")
    except OSError:
        return ""


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = parse_json(_text(folder, folder / name, MOST_JSON))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _yaml(text: str) -> dict[str, Any]:
    try:
        value = parse(text, "config.yaml")
    except ConfigError:
        return {}
    return value if isinstance(value, dict) else {}
