"""A run of rounds: each begins with the average of the best evaluation so far, and the best of all is what is kept.

A round is stopped early in this sense: what was trained past its best evaluation is given up.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffdistill import processes
from diffdistill.errors import DataError
from diffdistill.reporting.rundata import STOPPED_FOR
from diffdistill.training.early_stop import scores_in
from diffdistill.training.loop import Observer, TrainingRun
from diffdistill.training.store import load_checkpoint

BEGIN = "begin a round"  # as processes call it
ROUND = "round"  # among the parts of a task


class RoundNumber(nn.Module):
    """The number of the round that a task is in, as a part of its checkpoints."""

    number: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("number", torch.zeros((), dtype=torch.int64))


class _Average(nn.Module):
    """A model under the names that a run's average has in its checkpoints."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))


def average_at(checkpoint: Path, model: nn.Module) -> None:
    """Fill a model with the average that a checkpoint holds."""
    load_checkpoint(checkpoint, {"ema": _Average(model)})


class Rounds(Observer):
    """Begins the rounds of a task that has a `round`; to stand after the observer that makes the evaluations.

    All is read from the log and the checkpoints, so that a resumed run decides as one never stopped: the checkpoint of
    a round's last step is that of the next round's beginning, once that is made.
    """

    def __init__(self, settings: Any, measure: Callable[[TrainingRun[Any]], dict[str, Any]]):
        self.metric, self.length, self.measure = settings.metric, settings.round_steps, measure

    def start(self, run: TrainingRun[Any]) -> None:
        self.judge(run)
        if run.kept_step is not None:
            run.store.find(run.kept_step)  # said now, not at the end of a round

    def after(self, run: TrainingRun[Any]) -> None:
        if run.evaluated == run.step or run.step % self.length == 0:  # a round ends, though it could not be measured
            self.judge(run)

    def judge(self, run: TrainingRun[Any]) -> None:
        run.kept_step = self.best(run)
        number, within = divmod(run.step, self.length)
        if within or number == self.round_of(run):
            return
        run.ended = run.kept_step <= run.step - self.length  # the round has brought nothing better
        if run.over:
            self.finish(run)
        else:
            self.begin(run, number)

    def round_of(self, run: TrainingRun[Any]) -> int:
        """The round that the task is in."""
        return int(cast(RoundNumber, run.task.parts[ROUND]).number)

    def best(self, run: TrainingRun[Any]) -> int:
        """The step of the best evaluation, of equal ones the first."""
        steps, scores = scores_in(run.log.file, self.metric)
        if not steps:
            raise DataError(
                f"the model that the run begins with could not be measured by {self.metric}, by which objective."
                f"metric chooses; see what was said of it, or measure by another figure"
            )
        return steps[scores.index(max(scores))]

    def begin(self, run: TrainingRun[Any], number: int) -> None:
        assert run.kept_step is not None
        folder, _ = run.store.find(run.kept_step)
        tqdm.write(f"step {run.step}: round {number + 1} begins with the model of step {run.kept_step}")
        with run.stop.held():
            processes.call(BEGIN, number, str(folder))
            run.went_back = None
            run.save(replace=True)

    def finish(self, run: TrainingRun[Any]) -> None:
        """The run ends with the best model: its tensors go back, then they are measured again, as of an early stop."""
        best = run.kept_step
        assert best is not None
        if best == run.step:
            return
        if run.went_back is None:
            if not run.log.has(run.step, STOPPED_FOR):
                run.record({STOPPED_FOR: best})
            tqdm.write(f"step {run.step}: the run ends, with the model of step {best}")
            run.go_back(best)
        run.evaluation = self.measure(run)
