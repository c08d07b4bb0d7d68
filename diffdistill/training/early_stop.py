"""Early stop: where a held-out figure gets worse, as when a reward is exploited, the run ends at its best model."""

from collections.abc import Collection
from pathlib import Path

from diffdistill.config.parts import EarlyStop
from diffdistill.errors import ConfigError
from diffdistill.reporting.rundata import LOWER_IS_BETTER, read_metrics


class Watch:
    """One figure of the evaluations, read from the log of the run, so that a resumed run decides as one never stopped.

    best: step of the best evaluation so far, None before the first or where nothing is watched.
    fallen: whether each of the last `patience` evaluations is worse than the best by more than `margin`.
    """

    best: int | None = None
    fallen = False

    def __init__(self, settings: EarlyStop | None, log: Path):
        self.settings, self.log = settings, log
        self.look()

    def reason(self) -> str:
        assert self.settings is not None
        return f"{self.settings.metric} is worse by more than {self.settings.margin:g} than it was at step {self.best}"

    def look(self) -> None:
        if self.settings is None or not self.log.is_file():
            return
        series = read_metrics(self.log.read_text()).get(f"evaluation/{self.settings.metric}")
        if series is None:
            return
        sign = -1 if self.settings.metric in LOWER_IS_BETTER else 1
        scores = [sign * value for value in series.values]
        first = scores.index(max(scores))
        self.best = int(series.steps[first])
        recent = scores[first + 1 :][-self.settings.patience :]
        worse = [max(scores) - score > self.settings.margin for score in recent]
        self.fallen = len(recent) == self.settings.patience and all(worse)


def check_watched(settings: EarlyStop | None, scores: Collection[str]) -> None:
    """ConfigError where `stop` watches the score of a reward or judge that does not measure."""
    if settings is not None and "/" in settings.metric and settings.metric not in scores:
        raise ConfigError(
            f"evaluation.stop.metric is '{settings.metric}', and what scores is {', '.join(scores)}; watch one"
        )
