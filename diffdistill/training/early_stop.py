"""Early stop: where a held-out figure gets worse, as when a reward is exploited, the run goes back and ends."""

from collections.abc import Collection
from pathlib import Path

from diffdistill.config.parts import EarlyStop
from diffdistill.errors import ConfigError
from diffdistill.evaluation.figures import figure_of
from diffdistill.reporting.rundata import read_metrics


class Watch:
    """One figure of the evaluations, read from the log of the run, so that a resumed run decides as one never stopped.

    good: step of the last evaluation that is worse than the best so far by no more than `margin`: not the best itself,
        for by that figure they are equal, and the later one has been trained for longer. None before the first.
    fallen: whether `patience` evaluations have come since.
    """

    good: int | None = None
    fallen = False

    def __init__(self, settings: EarlyStop | None, log: Path):
        self.settings, self.log = settings, log
        self.look()

    def look(self) -> None:
        if self.settings is None or not self.log.is_file():
            return
        series = read_metrics(self.log.read_text()).get(f"evaluation/{self.settings.metric}")
        if series is None:
            return
        sign = -1 if figure_of(self.settings.metric).lower_is_better else 1
        scores = [sign * value for value in series.values]
        last = max(i for i, score in enumerate(scores) if max(scores) - score <= self.settings.margin)
        self.good = int(series.steps[last])
        self.fallen = len(scores) - 1 - last >= self.settings.patience


def check_watched(settings: EarlyStop | None, scores: Collection[str]) -> None:
    """ConfigError where `stop` watches the score of a reward or judge that does not measure."""
    if settings is not None and "/" in settings.metric and settings.metric not in scores:
        raise ConfigError(
            f"evaluation.stop.metric is '{settings.metric}', and what scores is {', '.join(scores)}; watch one"
        )
