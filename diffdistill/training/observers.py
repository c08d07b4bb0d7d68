"""What happens between the steps of a run, in this order: the log, checkpoints, evaluation, early stop, grids.

Saving comes before looking: a kill while the model is drawn or measured, which may take minutes, loses no step. What
it did not come to is done when the run is resumed.
"""

import math
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from diffdistill.config.schema import Run
from diffdistill.errors import DataError, NonFiniteError
from diffdistill.evaluation.figures import features_of, label_of, numbers_of
from diffdistill.matching.micro_batches import Metrics, read
from diffdistill.matching.step import OF_LEVEL
from diffdistill.training.early_stop import EarlyStopObserver
from diffdistill.training.loop import Observer, TrainingRun
from diffdistill.training.optim.updater import BROKEN, require_unbroken
from diffdistill.training.progress import Lines
from diffdistill.training.rounds import Rounds
from diffdistill.training.store import name_of

Model_contra = TypeVar("Model_contra", contravariant=True)

SHOWN = {"loss", "ddo/loss", "critic/loss", "score_gap/relative", "x0/std"}
"""Figures beside the progress bar."""

MEASURED = "evaluation/"  # begins the names of measured figures in the log


class Monitor(Protocol[Model_contra]):
    """How a kind of model is looked at and measured: images, images of texts, pairs."""

    @property
    def scores(self) -> Collection[str]:
        """Names of the figures that rewards or judges give, such as `reward/clip`."""

    def begin(self, folder: Path) -> None:
        """Once in the folder of a run, before a checkpoint is loaded: what later models are compared with."""

    def grid(self, model: Model_contra, file: Path) -> None:
        """A picture of samples with fixed seeds."""

    def evaluate(self, model: Model_contra) -> dict[str, Any]:
        """`metrics`, each by name with value and error, and the `protocol` they were measured by; {} where nothing
        can be measured.
        """


def usual_observers(config: Run, monitor: Monitor[Any]) -> list[Observer]:
    """Those of every run; raises ConfigError where early stop watches a score that is not measured."""
    stop, measuring = config.evaluation.stop, EvaluationObserver(monitor)
    ends: list[Observer] = [] if stop is None else [EarlyStopObserver(stop, monitor.evaluate, monitor.scores)]
    objective = getattr(config, "objective", None)
    if objective is not None and objective.in_rounds:
        ends.append(Rounds(objective, measuring.measured))
    return [Steps(), Lines(config.print_every), Checkpoints(), measuring, *ends, Grids(monitor)]


class Steps(Observer):
    """Logs what the updates say."""

    def after(self, run: TrainingRun[Any]) -> None:
        if run.due(run.config.log_every) or run.last or run.step == 1:
            values = finite({**run.metrics, **run.notes}, run.step - 1)
            run.record(values)
            run.show({name.split("/")[-1]: f"{value:.3g}" for name, value in values.items() if name in SHOWN})


def finite(metrics: Metrics, step: int) -> dict[str, float]:
    """Metrics as numbers, in one transfer; NonFiniteError where an update, or a figure, was not finite.

    NaN for a bin of the level says that no image lies in it; one that comes from an image is in `score_gap/relative`.
    """
    values = read(metrics)
    require_unbroken(values)
    values = {
        name: value
        for name, value in values.items()
        if not name.endswith(BROKEN) and not (name.startswith(OF_LEVEL) and math.isnan(value))
    }
    bad = [name for name, value in values.items() if value - value != 0]
    if bad:
        raise NonFiniteError(
            f"{', '.join(bad)} not finite at step {step}; lower the learning rates or use mixed_precision=no"
        )
    return values


class Checkpoints(Observer):
    """Saves every so many steps or minutes, at the end, and before anything is measured."""

    def start(self, run: TrainingRun[Any]) -> None:
        if run.step == 0 and run.config.compares:  # to go back to
            run.save()

    def after(self, run: TrainingRun[Any]) -> None:
        measured = run.due(run.config.evaluation.every)
        if run.due(run.config.checkpoint_every) or run.overdue or measured or run.over:
            run.save()


class EvaluationObserver(Observer):
    """Measures the model to keep every so many steps and at the end; at the start too where early stop compares."""

    def __init__(self, monitor: Monitor[Any]):
        self.monitor = monitor

    def start(self, run: TrainingRun[Any]) -> None:
        if run.step == 0 and run.config.compares:  # to compare with
            self.evaluate(run)
            run.evaluation = {}  # of the start, which is no result
        elif run.step and self.wanted(run) and not run.log.has(run.step, MEASURED):  # a kill came before it
            self.evaluate(run)

    def after(self, run: TrainingRun[Any]) -> None:
        if self.wanted(run):
            self.evaluate(run)

    def end(self, run: TrainingRun[Any]) -> None:
        if not run.evaluation and run.config.evaluation.at_end:  # a finished run, resumed
            run.evaluation = self.measured(run)

    def wanted(self, run: TrainingRun[Any]) -> bool:
        settings = run.config.evaluation
        return run.due(settings.every) or (run.last and settings.at_end)

    def measured(self, run: TrainingRun[Any]) -> dict[str, Any]:
        """The figures, {} where there can be none: a run is not lost to them, its model is published all the same."""
        run.check()
        try:
            with run.stop.window():
                evaluation = self.monitor.evaluate(run.task.averaged())
        except DataError as error:
            tqdm.write(f"warning: step {run.step} is not measured: {error}", file=sys.stderr)
            return {}
        for name, sentence in evaluation.get("failed", {}).items():
            tqdm.write(f"warning: step {run.step}, {name} is not measured: {sentence}", file=sys.stderr)
        return evaluation

    def evaluate(self, run: TrainingRun[Any]) -> None:
        evaluation = self.measured(run)
        if not evaluation:
            return
        run.evaluation, run.evaluated = evaluation, run.step
        figures = numbers_of(run.evaluation)
        run.record({f"{MEASURED}{name}": value for name, value in figures.items()})
        features, words = features_of(run.evaluation), run.evaluation.get("figures")
        shown = (f"{label_of(name, features, words)} {value:.3f}" for name, value in figures.items())
        tqdm.write(f"step {run.step}: {', '.join(shown)}")


class Grids(Observer):
    """Pictures of samples: of the start, every so many steps, of the end."""

    def __init__(self, monitor: Monitor[Any]):
        self.monitor = monitor

    def start(self, run: TrainingRun[Any]) -> None:
        if self.wanted(run) and (run.step == 0 or not self.file(run).exists()):
            self.draw(run)

    def after(self, run: TrainingRun[Any]) -> None:
        if self.wanted(run):
            self.draw(run)

    def wanted(self, run: TrainingRun[Any]) -> bool:
        return run.config.sample_every > 0 and (run.due(run.config.sample_every) or run.over)

    def file(self, run: TrainingRun[Any]) -> Path:
        return run.folder / "samples" / f"{name_of(run.step)}.png"

    def draw(self, run: TrainingRun[Any]) -> None:
        run.check()
        with run.stop.window():
            self.monitor.grid(run.task.averaged(), self.file(run))
        for listener in run.listeners:
            listener.picture(run.step, "samples", self.file(run))
