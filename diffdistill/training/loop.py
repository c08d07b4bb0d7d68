"""The loop: one for every method. It knows steps, folders and signals; it knows no loss."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from diffdistill.config.schema import Run
from diffdistill.denoiser import Denoiser
from diffdistill.errors import Interrupted, NonFiniteError, Preempted
from diffdistill.evaluation.figures import numbers_of
from diffdistill.files import read_text, write_text
from diffdistill.reporting.rundata import STOPPED_FOR
from diffdistill.training.early_stop import Watch
from diffdistill.training.randomness import seed_step
from diffdistill.training.store import CheckpointStore, Parts, load_checkpoint

Metrics = dict[str, Tensor | float]


class Task(Protocol):
    """What is trained: a teacher, a student."""

    parts: Parts
    denoisers: dict[str, Denoiser]  # every network of the run, by its role

    def update(self, step: int) -> Metrics:
        """One update of everything; all randomness from torch's generators, seeded by the loop."""

    def averaged(self) -> Denoiser:
        """The model to look at, to measure and to keep."""


class Observer(Protocol):
    """What a run looks at between updates."""

    def grid(self, model: Denoiser, file: Path) -> None: ...

    def evaluate(self, model: Denoiser) -> dict[str, Any]: ...


def run_loop(task: Task, config: Run, folder: Path, observer: Observer) -> dict[str, Any]:
    """Train to `max_train_steps`, or until `evaluation.stop`, from a checkpoint if there is one to resume; returns the
    last evaluation.

    A resumed run is bit-equal to one never stopped, for the same number of threads: step k seeds itself with (seed,
    k), the data order is a function of (seed, epoch), and all tensors are in the checkpoint.
    """
    store = CheckpointStore(folder / "checkpoints", config.keep_checkpoints)
    start, seconds = resume(task, config, store)
    log = Log(folder / "metrics.jsonl", start)
    watch = Watch(config.evaluation.stop, log.file)
    evaluation: dict[str, Any] = {}

    def evaluate(done: int) -> dict[str, Any]:
        found = observer.evaluate(task.averaged())
        figures = flat(found)
        log.write({"step": done, "time": round(seconds, 3), **{f"evaluation/{k}": v for k, v in figures.items()}})
        bar.write(f"step {done}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
        watch.look()
        return found

    def save(done: int) -> None:
        state = {"seconds": seconds, "threads": torch.get_num_threads(), "torch": torch.__version__}
        store.save(done, task.parts, state, spare=watch.good)

    with (
        stop_requests() as stop,
        tqdm(total=config.max_train_steps, initial=start, unit="step", mininterval=1.0) as bar,
    ):
        if start == 0 and config.sample_every:
            observer.grid(task.averaged(), folder / "samples" / "step-000000.png")
        if start == 0 and config.evaluation.stop is not None:
            evaluate(0)
            save(0)
        for step in range(start, start if watch.fallen else config.max_train_steps):
            began = time.perf_counter()
            seed_step(config.seed, step)
            metrics = task.update(step)
            seconds += time.perf_counter() - began
            done, last = step + 1, step + 1 == config.max_train_steps
            bar.update()

            if due(done, config.log_every) or last or done == 1:
                values = finite(metrics, step)
                log.write({"step": done, "time": round(seconds, 3), **values})
                bar.set_postfix({k.split("/")[-1]: f"{v:.3g}" for k, v in values.items() if k in SHOWN})
            if due(done, config.evaluation.every) or (last and config.evaluation.at_end):
                evaluation = evaluate(done)
            if watch.fallen:
                log.write({"step": done, "time": round(seconds, 3), STOPPED_FOR: watch.good})
                bar.write(f"step {done}: evaluation.stop ends the run, with the model of step {watch.good}")
                go_back(task, store, watch.good)
                evaluation = observer.evaluate(task.averaged())
            if config.sample_every and (due(done, config.sample_every) or last or watch.fallen):
                observer.grid(task.averaged(), folder / "samples" / f"step-{done:06d}.png")
            if due(done, config.checkpoint_every) or last or stop.requested or watch.fallen or watch.good == done:
                save(done)
            if watch.fallen:
                break
            if stop.requested and not last:
                raise stop.error(f"stopped at step {done}, state saved; continue with resume_from_checkpoint=latest")
    return evaluation


SHOWN = {"loss", "critic/loss", "score_gap/relative", "x0/std"}


def flat(evaluation: dict[str, Any]) -> dict[str, float]:
    """The figures of an evaluation by name: `fid`, `kid`, `precision`, `recall`, ..."""
    return numbers_of(evaluation)


def due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def finite(metrics: Metrics, step: int) -> dict[str, float]:
    """Metrics as numbers; a NaN here means that something was lost before the guards saw it."""
    values = {name: float(value) for name, value in metrics.items()}
    bad = [name for name, value in values.items() if value - value != 0]
    if bad:
        raise NonFiniteError(
            f"{', '.join(bad)} not finite at step {step}; lower the learning rates or use mixed_precision=no"
        )
    return values


def resume(task: Task, config: Run, store: CheckpointStore) -> tuple[int, float]:
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


def go_back(task: Task, store: CheckpointStore, step: int | None) -> None:
    """Everything as it was at `step`; saved again as the last checkpoint, it is what later runs start from."""
    assert step is not None
    folder, _ = store.find(step)
    assert folder is not None  # find refuses a step that it has not
    load_checkpoint(folder, task.parts)


class Log:
    """`metrics.jsonl`: one line a logged step; on resume, the lines after the checkpoint are dropped first."""

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


class StopRequest:
    requested = False
    error: type[Exception] = Preempted


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """SIGTERM, SIGUSR1 and Ctrl-C stop the run at the next step boundary, saved; a second signal stops it at once."""
    stop = StopRequest()

    def handle(number: int, _frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        stop.error = Interrupted if number == signal.SIGINT else Preempted

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are the caller's
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
