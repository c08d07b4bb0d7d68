"""A line now and then where there is no terminal: step, figures, seconds a step, and the time that is left."""

import os
import sys
import time
from typing import Any

from diffdistill.training.loop import Observer, TrainingRun

QUIET = "DIFFDISTILL_QUIET"  # set by --quiet: no bars, and no lines in their place either
APART = 30.0  # seconds between lines where nothing was said of steps


class Lines(Observer):
    """Takes the place of a progress bar in a log file; a terminal, and a notebook, have the bar.

    Every `print_every` steps; by itself, of the steps that are logged, one about every half minute.
    """

    def __init__(self, every: int | None):
        self.every, self.printed = every, False

    def start(self, run: TrainingRun[Any]) -> None:
        self.began, self.first, self.last = time.monotonic(), run.step, time.monotonic()
        self.speaks = bool(run.bar.disable) and self.every != 0 and not os.environ.get(QUIET)

    def after(self, run: TrainingRun[Any]) -> None:
        if not self.speaks or not self.due(run):
            return
        self.last, self.printed = time.monotonic(), True
        pace = (self.last - self.began) / (run.step - self.first)
        print(line(run.step, run.config.max_train_steps, run.shown, pace), file=sys.stderr, flush=True)

    def due(self, run: TrainingRun[Any]) -> bool:
        if self.every is not None:
            return run.due(self.every) or run.over
        if run.over:
            return self.printed
        return run.due(run.config.log_every) and time.monotonic() - self.last >= APART


def line(step: int, total: int, figures: dict[str, str], pace: float) -> str:
    """
    >>> line(40, 1400, {"loss": "0.12"}, 0.5)
    'step 40/1400, loss 0.12, 0.5 s a step, 11 min left'
    """
    shown = "".join(f"{name} {value}, " for name, value in figures.items())
    return f"step {step}/{total}, {shown}{pace:.3g} s a step, {spell(pace * (total - step))} left"


def spell(seconds: float) -> str:
    """
    >>> spell(40), spell(700), spell(9000), spell(200000)
    ('40 s', '12 min', '2.5 h', '2.3 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
