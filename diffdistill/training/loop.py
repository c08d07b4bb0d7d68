"""The loop: one for every task. It knows steps, signals and observers; it knows no loss and no figure."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import torch
from tqdm import tqdm

from diffdistill import processes
from diffdistill.config.schema import Run
from diffdistill.matching.micro_batches import Metrics, read
from diffdistill.training.attention import Networks
from diffdistill.training.flat import Parts, checksum, fused_in
from diffdistill.training.log import Log
from diffdistill.training.optim.updater import notes_of, require_unbroken
from diffdistill.training.randomness import seed_step
from diffdistill.training.resume import Inputs, resume, settings_of
from diffdistill.training.sharded.plan import Plan
from diffdistill.training.signals import Stopped, StopRequest, led, stop_requests
from diffdistill.training.store import KEPT, READ, CheckpointStore, serve

GO_ON = "continue with resume_from_checkpoint=latest"

Model = TypeVar("Model")
Model_co = TypeVar("Model_co", covariant=True)


class Task(Protocol[Model_co]):
    """What is trained: a teacher, a student, the network of a pipeline."""

    parts: Parts
    plan: Plan

    def update(self, step: int) -> Metrics:
        """One update of everything; all randomness from torch's generators, seeded by the loop."""

    def averaged(self) -> Model_co:
        """The model to look at, to measure and to keep."""

    def networks(self) -> Networks:
        """Every network of the run by its role, for its attention."""


@dataclass
class TrainingRun(Generic[Model]):
    """A run on its way, as observers see and steer it.

    step, seconds: updates done and the time they took, over all sittings. metrics: of the last update. evaluation: the
    last one, made at step `evaluated`. kept_step: the step whose checkpoint must stay. ended: an observer wants no
    more steps. inputs: what the run is made from. saved: the step of the last checkpoint, written at `saved_at`.
    went_back: the step whose tensors these are, where the run went back to them. notes: of updates that were not
    finite, on an accelerator (`Updater`). listeners: told of every line of the log and every grid. shown: figures
    beside the progress.
    """

    task: Task[Model]
    config: Run
    folder: Path
    store: CheckpointStore
    stop: StopRequest
    bar: tqdm
    step: int = 0
    seconds: float = 0.0
    metrics: Metrics = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    evaluated: int | None = None
    kept_step: int | None = None
    ended: bool = False
    inputs: Inputs = field(default_factory=dict)
    saved: int | None = None
    saved_at: float = 0.0
    went_back: int | None = None
    notes: Metrics = field(default_factory=dict)
    listeners: "list[Listener]" = field(default_factory=list)
    shown: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.saved_at = time.monotonic()
        if processes.leader():
            self.log  # noqa: B018  # made now: later lines go

    @cached_property
    def log(self) -> Log:
        """The leader's alone."""
        return Log(self.folder / "metrics.jsonl", self.step)

    @property
    def last(self) -> bool:
        """Whether this step is the last one asked for."""
        return self.step >= self.config.max_train_steps

    @property
    def over(self) -> bool:
        return self.last or self.ended

    def due(self, every: int) -> bool:
        """Whether something that comes every so many steps comes now; 0: never."""
        return every > 0 and self.step % every == 0

    @property
    def overdue(self) -> bool:
        """Whether checkpoints come by time, and the last one is older than `checkpoint_minutes`."""
        minutes = 0 if self.config.checkpoint_every else self.config.checkpoint_minutes
        return minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes

    def record(self, values: dict[str, Any]) -> None:
        """Add a line to the log."""
        line = {"step": self.step, "time": round(self.seconds, 3), **values}
        self.log.write(line)
        for listener in self.listeners:
            listener.line(line)

    def show(self, values: dict[str, str]) -> None:
        """Put values beside the progress bar."""
        self.shown = values
        self.bar.set_postfix(values)

    def check(self) -> None:
        """NonFiniteError if an update was not finite; for who looks at the model. The CPU's said so at once."""
        require_unbroken(read(self.notes))

    def save(self, replace: bool = False) -> None:
        """Write a checkpoint of this step, once; prune old ones, but that of `kept_step`."""
        if self.saved == self.step and not replace:
            return
        self.check()
        state = {
            "seconds": self.seconds,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "fused": fused_in(self.task.parts),
            "settings": settings_of(self.config),
            "inputs": self.inputs,
            "went_back": self.went_back,
            KEPT: self.kept_step,
        }
        with self.stop.held():
            self.log.sync()
            self.store.save(self.step, self.task.parts, state, spare=self.kept_step, replace=replace)
        self.saved, self.saved_at = self.step, time.monotonic()

    def stop_here(self, start: int) -> NoReturn:
        """Save what this sitting trained after step `start`; a signal has come."""
        if self.step > start:
            processes.lead(self.save)
            self.stop.sentence = f"stopped at step {self.step}, state saved; {GO_ON}"
        raise Stopped

    def agree(self) -> None:
        """What one process has seen, a signal or an end, is so for all; Stopped where it is a signal."""
        word = processes.most(2 * self.stop.word + self.ended)
        self.ended = self.ended or word % 2 == 1
        self.stop.hear(word // 2)
        if word > 1:
            raise Stopped

    def go_back(self, step: int) -> None:
        """Everything as it was at `step`, saved as the checkpoint of this step: what later runs start from."""
        folder, _ = self.store.find(step)
        assert folder is not None  # find refuses a step that it has not
        with self.stop.held():
            processes.call(READ, str(folder))
            self.went_back = step
            self.save(replace=True)


class Listener(Protocol):
    """Who is told what a run writes down, as trackers are."""

    def line(self, values: dict[str, Any]) -> None:
        """A line of the log, with its step."""

    def picture(self, step: int, name: str, file: Path) -> None:
        """A grid of that step."""


class Observer:
    """What happens between steps; each hook does nothing unless a subclass says otherwise."""

    def start(self, run: TrainingRun[Any]) -> None:
        """Before the first step of this sitting, after a checkpoint was loaded if there is one to resume."""

    def after(self, run: TrainingRun[Any]) -> None:
        """After each step."""

    def end(self, run: TrainingRun[Any]) -> None:
        """After the last step, not where the run was interrupted."""

    def leave(self) -> None:
        """When this sitting is over, however it ended."""


def run_loop(
    task: Task[Model], config: Run, folder: Path, observers: Sequence[Observer] = (), inputs: Inputs | None = None
) -> TrainingRun[Model]:
    """Train to `max_train_steps`, or until an observer ends the run, from a checkpoint if there is one to resume.

    A resumed run is bit-equal to one never stopped, for the same number of threads: step k seeds itself with (seed,
    k), the data order is a function of (seed, epoch), and all tensors are in the checkpoint. Observers are called in
    their order. Raises Preempted or Interrupted where a signal came, once the last whole step is saved.

    Several processes make one run, of any number of them: all update alike, the leader alone has observers and files.
    """
    store = CheckpointStore(folder / "checkpoints", config.keep_checkpoints)
    serve(task.parts)
    with stop_requests() as stop:
        state = resume(task.parts, config, store, inputs or {}) or {}
        if processes.size() > 1:  # each takes the steps of all, so they must begin alike
            processes.agree({"weights": checksum(task.parts)})
        start = state.get("step")
        with tqdm(total=config.max_train_steps, initial=start or 0, unit="step", mininterval=1.0) as bar:
            run = TrainingRun(
                task, config, folder, store, stop, bar, start or 0, state.get("seconds", 0.0),
                inputs=inputs or {}, saved=start, went_back=state.get("went_back"),
            )  # fmt: skip
            try:
                _train(run, observers)
            except Stopped:
                run.stop_here(start or 0)
            finally:
                for observer in observers:
                    observer.leave()
    return run


def _train(run: TrainingRun[Any], observers: Sequence[Observer]) -> None:
    led(lambda: _each(observers, "start", run))
    run.agree()
    while not run.over:
        with run.stop.held():  # a signal waits for the end of the update, and of what sees it
            began = time.perf_counter()
            seed_step(run.config.seed, run.step)
            with processes.talking():  # torch does, within the passes of sharded networks
                run.metrics = run.task.update(run.step)
            run.notes |= notes_of(run.metrics)
            run.seconds += time.perf_counter() - began
            run.step += 1
            run.bar.update()
            led(lambda: _each(observers, "after", run), at_once=False)
        run.agree()
    run.check()
    led(lambda: _each(observers, "end", run))


def _each(observers: Sequence[Observer], hook: str, run: TrainingRun[Any]) -> None:
    for observer in observers:
        getattr(observer, hook)(run)
