"""Early stop: where a held-out figure gets worse, as when a reward is exploited, the run goes back and ends."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffdistill.config.parts import EarlyStop
from diffdistill.errors import ConfigError
from diffdistill.evaluation.figures import figure_of
from diffdistill.files import read_text
from diffdistill.reporting.rundata import STOPPED_FOR, read_metrics
from diffdistill.training.loop import Observer, TrainingRun


class EarlyStopObserver(Observer):
    """Watches one figure of the evaluations; to stand after the observer that makes them.

    It is read from the log of the run, so that a resumed run decides as one never stopped.

    scores: the figures that rewards or judges give; raises ConfigError for another of their kind.
    """

    def __init__(self, settings: EarlyStop, evaluate: Callable[[Any], dict[str, Any]], scores: Collection[str]):
        if "/" in settings.metric and settings.metric not in scores:
            raise ConfigError(
                f"evaluation.stop.metric is '{settings.metric}', and what scores is {', '.join(scores)}; watch one"
            )
        self.settings, self.evaluate = settings, evaluate

    def start(self, run: TrainingRun[Any]) -> None:
        self.judge(run)

    def after(self, run: TrainingRun[Any]) -> None:
        if run.evaluated == run.step:
            self.judge(run)

    def judge(self, run: TrainingRun[Any]) -> None:
        """End a run that fell: its tensors go back first, then they are measured; a kill in between is caught up."""
        run.kept_step, run.ended = self.verdict(run.log.file)
        if not run.ended or run.kept_step is None:
            return
        if run.went_back is None:
            if not run.log.has(run.step, STOPPED_FOR):
                run.record({STOPPED_FOR: run.kept_step})
            tqdm.write(f"step {run.step}: evaluation.stop ends the run, with the model of step {run.kept_step}")
            run.go_back(run.kept_step)
        with run.stop.window():
            run.evaluation = self.evaluate(run.task.averaged())

    def verdict(self, log: Path) -> tuple[int | None, bool]:
        """`(good, fallen)` by the evaluations in the log.

        good: step of the last evaluation that is worse than the best so far by no more than `margin`: not the best
        itself, for by that figure they are equal, and the later one has been trained for longer. None before the
        first. fallen: whether `patience` evaluations have come since.
        """
        steps, scores = scores_in(log, self.settings.metric)
        if not steps:
            return None, False
        last = max(i for i, score in enumerate(scores) if max(scores) - score <= self.settings.margin)
        return steps[last], len(scores) - 1 - last >= self.settings.patience


def scores_in(log: Path, metric: str) -> tuple[list[int], list[float]]:
    """`(steps, scores)` of the evaluations in a log by one figure, higher is better; empty where there is none."""
    series = read_metrics(read_text(log) if log.is_file() else "").get(f"evaluation/{metric}")
    if series is None:
        return [], []
    sign = -1 if figure_of(metric).lower_is_better else 1
    return [int(step) for step in series.steps], [sign * value for value in series.values]
