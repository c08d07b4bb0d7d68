"""The loop: one for every task. It knows steps, signals and observers; it knows no loss and no figure."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from tqdm import tqdm

from diffdistill.config.schema import Run
from diffdistill.files import read_text, write_text
from diffdistill.matching.micro_batches import Metrics
from diffdistill.training.attention import Networks
from diffdistill.training.randomness import seed_step
from diffdistill.training.signals import StopRequest, stop_requests
from diffdistill.training.store import CheckpointStore, Parts, load_checkpoint

Model = TypeVar("Model")
Model_co = TypeVar("Model_co", covariant=True)


class Task(Protocol[Model_co]):
    """What is trained: a teacher, a student, the network of a pipeline."""

    parts: Parts

    def update(self, step: int) -> Metrics:
        """One update of everything; all randomness from torch's generators, seeded by the loop."""

    def averaged(self) -> Model_co:
        """The model to look at, to measure and to keep."""

    def networks(self) -> Networks:
        """Every network of the run by its role, for its attention."""


class Log:
    """`metrics.jsonl`: one JSON object a line, with the step, the seconds of training and what was measured.

    Of a run that goes on after step `start`, lines of later steps are dropped first; all of them at 0.
    """

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


@dataclass
class TrainingRun(Generic[Model]):
    """A run on its way, as observers see and steer it.

    step, seconds: updates done and the time they took, over all sittings. metrics: of the last update. evaluation: the
    last one, made at step `evaluated`. kept_step: the step whose checkpoint must stay. ended: an observer wants no
    more steps.
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

    def __post_init__(self) -> None:
        self.log = Log(self.folder / "metrics.jsonl", self.step)

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

    def record(self, values: dict[str, Any]) -> None:
        """Add a line to the log."""
        self.log.write({"step": self.step, "time": round(self.seconds, 3), **values})

    def show(self, values: dict[str, str]) -> None:
        """Put values beside the progress bar."""
        self.bar.set_postfix(values)

    def save(self) -> None:
        """Write a checkpoint of this step; prune old ones, but that of `kept_step`."""
        state = {"seconds": self.seconds, "threads": torch.get_num_threads(), "torch": torch.__version__}
        self.store.save(self.step, self.task.parts, state, spare=self.kept_step)

    def go_back(self, step: int) -> None:
        """Everything as it was at `step`; saved again as the last checkpoint, it is what later runs start from."""
        folder, _ = self.store.find(step)
        assert folder is not None  # find refuses a step that it has not
        load_checkpoint(folder, self.task.parts)


class Observer:
    """What happens between steps; each hook does nothing unless a subclass says otherwise."""

    def start(self, run: TrainingRun[Any]) -> None:
        """Before the first step of this sitting, after a checkpoint was loaded if there is one to resume."""

    def after(self, run: TrainingRun[Any]) -> None:
        """After each step."""

    def end(self, run: TrainingRun[Any]) -> None:
        """After the last step, not where the run was interrupted."""


def run_loop(task: Task[Model], config: Run, folder: Path, observers: Sequence[Observer] = ()) -> TrainingRun[Model]:
    """Train to `max_train_steps`, or until an observer ends the run, from a checkpoint if there is one to resume.

    A resumed run is bit-equal to one never stopped, for the same number of threads: step k seeds itself with (seed,
    k), the data order is a function of (seed, epoch), and all tensors are in the checkpoint. Observers are called in
    their order. Raises Preempted or Interrupted where a signal came, once they have seen the step it came in.
    """
    store = CheckpointStore(folder / "checkpoints", config.keep_checkpoints)
    start, seconds = resume(task, config, store)
    with (
        stop_requests() as stop,
        tqdm(total=config.max_train_steps, initial=start, unit="step", mininterval=1.0) as bar,
    ):
        run = TrainingRun(task, config, folder, store, stop, bar, start, seconds)
        for observer in observers:
            observer.start(run)
        while not run.over:
            began = time.perf_counter()
            seed_step(config.seed, run.step)
            run.metrics = task.update(run.step)
            run.seconds += time.perf_counter() - began
            run.step += 1
            bar.update()
            for observer in observers:
                observer.after(run)
            if stop.requested and not run.over:
                raise stop.error(
                    f"stopped at step {run.step}, state saved; continue with resume_from_checkpoint=latest"
                )
        for observer in observers:
            observer.end(run)
    return run


def resume(task: Task[Any], config: Run, store: CheckpointStore) -> tuple[int, float]:
    """`(step, seconds)` of the checkpoint that was loaded into the task; zeros where there is none to load."""
    if config.resume_from_checkpoint is None:
        return 0, 0.0
    folder, skipped = store.find(config.resume_from_checkpoint)
    for line in skipped:
        tqdm.write(f"skipped {line}")
    if folder is None:
        return 0, 0.0
    state = load_checkpoint(folder, task.parts)
    if state["threads"] != torch.get_num_threads():
        tqdm.write(
            f"resuming with {torch.get_num_threads()} threads what ran with {state['threads']}: results will "
            f"differ in the last digits"
        )
    tqdm.write(f"resumed {folder.name}")
    return state["step"], state["seconds"]
