"""`diffdistill sweep`: runs in turn, each a process of its own, so that none takes another with it."""

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from diffdistill.cli.grid_of_runs import Planned, planned
from diffdistill.cli.parent import of_this_process
from diffdistill.errors import ConfigError, DiffDistillError, Interrupted, Preempted
from diffdistill.files import not_written, read_json, write_json
from diffdistill.reporting.compare_page import write_comparison
from diffdistill.training.lock import is_ours, locked
from diffdistill.training.signals import Stopped, StopRequest, stop_requests

RECORD, COMPARED = "sweep.json", "compare"
WAITING, FINISHED, FAILED, INTERRUPTED = "waiting", "finished", "failed", "interrupted"
ERROR = "diffdistill: error: "
STOPS = (Preempted.exit_code, Interrupted.exit_code)


class Sweep:
    """A sweep in its folder: what is planned, and what has become of each run, kept in `sweep.json`."""

    def __init__(self, args: Namespace):
        self.args, self.folder = args, Path(args.out)
        self.verb, self.runs = planned(args)
        self.states = self._earlier()
        for run in self.runs:
            state = self.states.setdefault(run.name, {"state": WAITING, "sha256": run.sha256})
            if state.get("sha256") != run.sha256:
                raise ConfigError(
                    f"'{self.folder / run.name}' was run with other settings; name another folder by --out"
                )

    def _earlier(self) -> dict[str, dict[str, Any]]:
        """The states of an earlier sitting; ConfigError for a folder that holds something else."""
        record = self.folder / RECORD
        if not record.exists():
            if self.folder.exists() and not (self.folder.is_dir() and all(map(is_ours, self.folder.iterdir()))):
                raise ConfigError(f"--out '{self.folder}' holds files and no sweep ({RECORD}); name a new folder")
            return {}
        try:
            known = read_json(record)["runs"]
            return {name: dict(state) for name, state in known.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"'{record}' is damaged; name a new folder by --out, or remove that file") from None

    def finished(self, run: Planned) -> bool:
        """Whether a run is done and its model is there."""
        places = (self.folder / run.name / part / "model_index.json" for part in ("student", "model"))
        return self.states[run.name]["state"] == FINISHED and any(place.is_file() for place in places)

    def count(self) -> int:
        return sum(map(self.finished, self.runs))

    def note(self, run: Planned, state: str, **more: Any) -> None:
        self.states[run.name] = {"state": state, "sha256": run.sha256, "overrides": list(run.overrides), **more}
        try:
            write_json(self.folder / RECORD, {"verb": self.verb, "config": self.args.recipe, "runs": self.states})
        except OSError as error:
            raise not_written(self.folder, error, "free space") from error

    def command(self, run: Planned) -> list[str]:
        flags = [flag for flag in ("quiet", "debug", "allow_code") if getattr(self.args, flag)]
        return [
            sys.executable, "-m", "diffdistill", self.verb, self.args.recipe, *run.overrides,
            f"output_dir={self.folder / run.name}", "resume_from_checkpoint=latest",
            *(f"--{flag.replace('_', '-')}" for flag in flags),
        ]  # fmt: skip

    def listed(self) -> str:
        """A line a run: its name, and what has become of it."""
        words = {FINISHED: "finished, skipped", FAILED: "failed, tried again", INTERRUPTED: "resumed"}
        width = max(len(run.name) for run in self.runs)
        states = {run: self.states[run.name]["state"] for run in self.runs}
        return "\n".join(
            f"{run.name:<{width}}  {words.get(state, WAITING) if state != FINISHED or self.finished(run) else WAITING}"
            for run, state in states.items()
        )


def run(args: Namespace) -> int:
    """Run what is not finished; the exit code of those that failed, 0 where none did."""
    with stop_requests() as stop:
        sweep = Sweep(args)
        if args.dry_run:
            print(sweep.listed())
            return 0
        try:
            sweep.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(sweep.folder, error, "choose another --out") from error
        with locked(sweep.folder):
            for number, one in enumerate(sweep.runs, 1):
                stop.sentence = f"stopped before run '{one.name}'; {sentence(sweep)}"
                if not sweep.finished(one):
                    print(f"run {number} of {len(sweep.runs)}: {one.name}", flush=True)
                    _run_one(sweep, one, stop)
            return _ended(sweep)


def sentence(sweep: Sweep) -> str:
    return f"{sweep.count()} of {len(sweep.runs)} are finished; give the same command again to go on"


def _run_one(sweep: Sweep, one: Planned, stop: StopRequest) -> None:
    """Run one to its end and note what became of it; Stopped, Preempted or Interrupted where it was asked to end."""
    sweep.note(one, INTERRUPTED)  # until it is known: a kill of this process comes without a word
    began = time.monotonic()
    stop.sentence = f"stopped in run '{one.name}'; {sentence(sweep)}"
    code, said = child(sweep.command(one), stop)
    seconds = round(time.monotonic() - began, 1)
    if code in STOPS:
        raise (Interrupted if code == Interrupted.exit_code else Preempted)(stop.sentence)
    if code == 0:
        sweep.note(one, FINISHED, seconds=seconds)
    else:
        sweep.note(one, FAILED, seconds=seconds, exit_code=code, error=said or f"it ended with code {code}")
        print(f"run '{one.name}' failed (exit code {code}); the rest goes on", file=sys.stderr)


def child(command: list[str], stop: StopRequest) -> tuple[int, str]:
    """Exit code of a process, and the error it told; what it says on stderr is handed on as it comes.

    It is in a group of its own, so that a Ctrl-C reaches it once, through us: it saves, and we wait for that. Where we
    are killed it saves and ends by itself.
    """
    told: list[str] = []
    apart = os.name != "nt"
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=apart, env=of_this_process()) as process:
        try:
            _handed_on(process, told)
        except Stopped:
            process.send_signal(signal.SIGINT if stop.error is Interrupted else signal.SIGTERM)
            _handed_on(process, told)
            raise
        except BaseException:
            process.kill()
            raise
    return process.returncode, " ".join(told)


def _handed_on(process: "subprocess.Popen[bytes]", told: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        words = line.decode("utf-8", "replace")
        sys.stderr.write(words)
        sys.stderr.flush()
        if words.startswith(ERROR):
            told.append(words.removeprefix(ERROR).strip())
    process.wait()


def _ended(sweep: Sweep) -> int:
    """The page of what there is, and the exit code."""
    done = [sweep.folder / one.name for one in sweep.runs if sweep.finished(one)]
    failed = [sweep.states[one.name] for one in sweep.runs if sweep.states[one.name]["state"] == FAILED]
    if len(done) > 1:
        try:
            print(f"{write_comparison(done, sweep.folder / COMPARED, mixed=True)}: the runs beside each other")
        except DiffDistillError as error:
            print(f"warning: the runs are not compared: {error}", file=sys.stderr)
    print(f"{len(done)} of {len(sweep.runs)} runs are finished" + (f", {len(failed)} failed" if failed else ""))
    codes = {state["exit_code"] for state in failed}
    return 0 if not codes else codes.pop() if len(codes) == 1 else 1
