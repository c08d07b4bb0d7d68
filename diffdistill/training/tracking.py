"""Trackers in a run: its settings, every logged figure and every grid, once, however often it is resumed."""

import hashlib
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffdistill.config import Resolved
from diffdistill.config.watching import check_tracker, meant
from diffdistill.files import read_json, reason_of, write_json
from diffdistill.reporting.trackers import Tracker, alone_in_accelerate, takes_back
from diffdistill.training.loop import Observer, TrainingRun
from diffdistill.training.run_folder import unwritable

RECORD = "trackers.json"


class Trackers(Observer):
    """Tells the trackers of `report_to` what the run writes down. One that fails is left out: no run is lost to it.

    Raises ConfigError, before anything is begun, where one is not installed.
    """

    def __init__(self, resolved: Resolved[Any]):
        self.resolved, self.trackers = resolved, dict[str, Tracker]()
        for name in resolved.config.report_to:
            check_tracker(name)
        self.names = meant(resolved.config.report_to)
        self.within = ExitStack()

    def start(self, run: TrainingRun[Any]) -> None:
        if not self.names:
            return
        self.within.enter_context(alone_in_accelerate())
        known = record_of(run.folder)
        key = known.get("key") or hashlib.sha256(f"{run.folder.resolve()} {time.time_ns()}".encode()).hexdigest()[:16]
        before = known.get("trackers", {}) if run.step else {}
        lost = told_before(run.log.dropped)
        self.told = {name: lost if name in before and not takes_back(name) else set() for name in self.names}
        key = key if before else hashlib.sha256(f"{key} {time.time_ns()}".encode()).hexdigest()[:16]
        for name in self.names:
            self.begin(name, run, key, before.get(name))
        ids = {name: tracker.ids for name, tracker in self.trackers.items()}
        try:
            write_json(run.folder / RECORD, {"key": key, "trackers": before | ids})
        except OSError as error:
            raise unwritable(run.folder, error) from error
        run.listeners.append(self)

    def begin(self, name: str, run: TrainingRun[Any], key: str, ids: dict[str, Any] | None) -> None:
        """The tracker of this run: the one of earlier sittings, or a new one, which is told what they logged."""

        def start() -> None:
            self.trackers[name] = tracker = Tracker(name, run.folder, key, ids or {}, run.step)
            if ids:
                return
            config = self.resolved.config.model_dump(mode="json")
            tracker.settings(dict(_flat(config)), self.resolved.text_yaml)
            for line in run.log.lines() if run.step else ():
                tracker.figures(numbers(line), line["step"])
            teacher = run.folder / "samples" / "teacher.png"
            if teacher.is_file():
                tracker.picture("teacher", teacher, 0)

        self.safely(name, start)

    def line(self, values: dict[str, Any]) -> None:
        step = values["step"]
        for name, tracker in list(self.trackers.items()):
            figures = {key: value for key, value in numbers(values).items() if (step, key) not in self.told[name]}
            if figures:
                self.safely(name, lambda of=tracker, some=figures: of.figures(some, step))

    def picture(self, step: int, name: str, file: Path) -> None:
        for own, tracker in list(self.trackers.items()):
            if file.is_file() and step > max((at for at, _ in self.told[own]), default=-1):
                self.safely(own, lambda of=tracker: of.picture(name, file, step))

    def leave(self) -> None:
        for name, tracker in list(self.trackers.items()):
            self.safely(name, tracker.finish)
        self.within.close()

    def safely(self, name: str, act: Any) -> None:
        """A tracker's failure, be it a network's or a full disk, is told once and ends its part alone."""
        try:
            act()
        except Exception as error:
            self.trackers.pop(name, None)
            tqdm.write(f"warning: {name} is told no more of this run: {reason_of(error)}", file=sys.stderr)


def record_of(folder: Path) -> dict[str, Any]:
    """What earlier sittings of the run said to find its trackers again; {} where there is nothing, or no sense."""
    try:
        known = read_json(folder / RECORD)
        whole = isinstance(known["key"], str) and isinstance(known["trackers"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return known if whole else {}


def told_before(lines: list[str]) -> set[tuple[int, str]]:
    """Step and name of the figures in log lines that a kill made the run lose: it will log them again, equal."""
    entries = [json.loads(line) for line in lines]
    return {(entry["step"], name) for entry in entries for name in numbers(entry)}


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The figures of a log line; `time` is `seconds`, for Trackio has a `time` of its own."""
    return {
        "seconds" if name == "time" else name: value
        for name, value in values.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _flat(section: dict[str, Any], prefix: str = "") -> Any:
    """Dotted keys, with values that every tracker takes."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else json.dumps(value)
