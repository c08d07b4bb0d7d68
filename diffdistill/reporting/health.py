"""What the metrics of a run say about its health, in words.

The signs are those of distribution matching (a critic that lags, a discriminator that wins, ratios out of calibration,
images that saturate or lose their spread); each is judged only if its metric was logged. A `Sign` compares the end of
one metric with a bound, or with an earlier part of the run; functions judge what is not so simple.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from diffdistill.evaluation.figures import figure_of, label_of
from diffdistill.evaluation.metrics import metrics
from diffdistill.reporting.rundata import STOPPED_FOR, RunData, Series

# A critic trained on the teacher's own data, where the true gap is 0, shows 0.19 to 0.25 (docs/lab/quickstart.md).
CRITIC_NOISE = 0.25
Kind = Literal["good", "watch", "bad"]
Window = tuple[float, float]


@dataclass(frozen=True)
class Verdict:
    kind: Kind
    title: str
    text: str


@dataclass(frozen=True)
class Level:
    """A verdict for values above, or below, a bound; `advice` ends its text."""

    kind: Kind
    title: str
    advice: str
    above: float = float("inf")
    below: float = float("-inf")


@dataclass(frozen=True)
class Sign:
    """A metric whose mean over `last`, or its ratio to that over `before`, is judged by the first level that fits.

    text: a format of before, last, percent (100 last) and change (in percent, with its direction). least: points that
    are needed. not_of: a verb whose metric of this name means something else.
    """

    metric: str
    least: int
    last: Window
    text: str
    good: str
    levels: tuple[Level, ...]
    before: Window | None = None
    not_of: str | None = None

    def __call__(self, run: RunData) -> Verdict | None:
        series = _series(run, self.metric, self.least)
        if series is None or run.verb == self.not_of:
            return None
        last = series.mean(*self.last)
        before = series.mean(*self.before) if self.before else last
        ratio = 1.0 if last == before else last / (before or 1e-12)
        value = ratio if self.before else last
        change = f"{100 * abs(1 - ratio):.1f}% {'below' if ratio <= 1 else 'above'}"
        text = self.text.format(before=before, last=last, percent=100 * last, change=change)
        for level in self.levels:
            if value > level.above or value < level.below:
                return Verdict(level.kind, level.title, text + level.advice)
        return Verdict("good", self.good, f"{text}.")


BEHIND, BEHIND_ADVICE = "The critic falls behind", ": give it more updates per step or a higher learning rate."
SATURATE, SATURATE_ADVICE = "The samples saturate", ": lower the guidance scale or the adversarial weight."
GRIDS = ": look at the grids for lost variety or harsh contrast."

# A critic that lags behind the student makes its gradient wrong.
CRITIC = Sign(
    "critic/loss", 8, (0.8, 1), "Its loss was {before:.3g} halfway and {last:.3g} at the end", "The critic keeps up",
    (Level("bad", BEHIND, BEHIND_ADVICE, above=2), Level("watch", BEHIND, BEHIND_ADVICE, above=1.3)),
    before=(0.4, 0.6),
)  # fmt: skip
# 0.5 is a coin, 1 a discriminator whose gradient is of no more use.
DISCRIMINATOR = Sign(
    "discriminator/accuracy", 4, (0.75, 1), "It is right in {percent:.0f}% of the cases (50% is a coin)",
    "Discriminator and student are balanced",
    (Level("bad", "The discriminator wins", ": lower its learning rate, or set method.adversarial.r1.", above=0.95),
     Level("watch", "The discriminator is far ahead", "; its gradient may become coarse.", above=0.85)),
)  # fmt: skip
# A student that collapses loses the spread of its pixels, one that overshoots gains too much.
SPREAD = Sign(
    "x0/std", 8, (0.85, 1),
    "Their standard deviation was {before:.3g} after a third of the run and is {last:.3g} at the end",
    "The spread of the samples is steady",
    (Level("watch", "The spread of the samples shrinks", GRIDS, below=0.85),
     Level("watch", "The spread of the samples grows", GRIDS, above=1.15)),
    before=(0.3, 0.5),
)  # fmt: skip
# Pixels beyond the range of images are clipped to black or white.
SATURATION = Sign(
    "x0/saturation", 1, (0.9, 1), "{percent:.2g}% of the student's pixels lie outside the range of images",
    "No saturation",
    (Level("bad", SATURATE, SATURATE_ADVICE, above=0.1), Level("watch", SATURATE, SATURATE_ADVICE, above=0.01)),
)  # fmt: skip
# Whether a teacher would gain from a longer run.
TEACHER_LOSS = Sign(
    "loss", 12, (0.75, 1), "The denoising loss of the last quarter is {last:.4g}, {change} the quarter before",
    "The loss has settled",
    (Level("bad", "The loss rises", ": lower the learning rate.", above=1.05),
     Level("watch", "The loss still falls", ": a longer run would help.", below=0.97)),
    before=(0.5, 0.75), not_of="align",
)  # fmt: skip
# Preferring one image to another must not come from making both worse.
UNLEARNING = Sign(
    "loss/win", 8, (0.75, 1),
    "Their loss was {before:.3g} in the first quarter of the run and is {last:.3g} in the last",
    "The wanted images are not unlearned",
    (Level("watch", "The wanted images are unlearned, too", ": lower the learning rate.", above=1.15),),
    before=(0, 0.25),
)  # fmt: skip


def verdicts(run: RunData) -> list[Verdict]:
    """All signs that can be read off this run, the worst first."""
    judged = [verdict for check in CHECKS if (verdict := check(run)) is not None]
    return sorted(judged, key=lambda verdict: ("bad", "watch", "good").index(verdict.kind))


def _series(run: RunData, name: str, least: int = 4) -> Series | None:
    series = run.metrics.get(name)
    return series if series is not None and len(series) >= least else None


def early_stop(run: RunData) -> Verdict | None:
    """A run that `evaluation.stop` ended."""
    settings = (run.config.get("evaluation") or {}).get("stop") or {}
    series = run.metrics.get(f"evaluation/{settings.get('metric')}")
    kept = run.metrics[STOPPED_FOR].values[-1] if STOPPED_FOR in run.metrics else None
    if series is None or kept not in series.steps:
        return None
    lower = figure_of(settings["metric"], run.words).lower_is_better
    best, value = (min if lower else max)(series.values), series.values[series.steps.index(kept)]
    text = (
        f"{settings['metric']} was {best:.4g} at best and {series.values[-1]:.4g} at step {series.steps[-1]:g}: the "
        f"model is that of step {kept:g}, with {value:.4g} the last within the margin of {settings.get('margin', 0):g}"
    )
    return Verdict("watch", "The run was ended early", f"{text}; lower rates, or less of a reward, may go further.")


def rounds(run: RunData) -> Verdict | None:
    """Whether a run of rounds, as of DDO, has found a better model than the one it began with."""
    metric = str((run.config.get("objective") or {}).get("metric"))
    series = run.metrics.get(f"evaluation/{metric}")
    if series is None:
        return None
    lower = figure_of(metric, run.words).lower_is_better
    first, best = series.values[0], (min if lower else max)(series.values)
    text = f"{metric} was {first:.4g} at the start and {best:.4g} at best, at step"
    text = f"{text} {series.steps[series.values.index(best)]:g}, whose model is kept"
    if best == first:
        advice = "try other alpha and beta, lower rates, or more evaluations in a round"
        return Verdict("watch", "No model was better than the one it began with", f"{text}: {advice}.")
    return Verdict("good", "The model became better", f"{text}; chosen by that figure, so measure it on other seeds.")


def quality(run: RunData) -> Verdict | None:
    """Whether the last evaluation is the best."""
    if STOPPED_FOR in run.metrics:
        return None
    for figure in (figure for row in metrics().values() for figure in row.numbers if figure.lower_is_better):
        series = _series(run, f"evaluation/{figure.name}", least=2)
        if series is None:
            continue
        best = min(range(len(series)), key=series.values.__getitem__)
        label = label_of(figure.name, run.features, run.words)
        lowest, last = series.values[best], series.values[-1]
        if last > 1.1 * lowest:
            text = f"{label} was {lowest:.2f} at step {series.steps[best]:g} and is {last:.2f} at the end"
            kind: Kind = "watch" if last < 1.5 * lowest else "bad"
            return Verdict(kind, f"{label} got worse again", f"{text}: stop earlier, or lower the learning rates.")
        text = f"{label} went from {series.values[0]:.2f} to {last:.2f}; the best value was {lowest:.2f}."
        return Verdict("good", f"{label} improved to the end", text)
    return None


def score_gap(run: RunData) -> Verdict | None:
    """The gap of teacher and critic, relative to the noise the student leaves: what distillation makes small.

    It starts near 0, for the critic begins as a copy of the teacher, so it is judged from its peak on.
    """
    series = _series(run, "score_gap/relative", least=10)
    if series is None:
        return None
    tenths = [series.mean(k / 10, (k + 1) / 10) for k in range(10)]
    peak, last = max(tenths), tenths[-1]
    lowest = min(tenths[tenths.index(peak) :])
    text = f"The relative gap between critic and teacher was at most {peak:.3g} and is {last:.3g} at the end"
    if last == peak:
        advice = "lower the student's learning rate or give the critic more updates."
        return Verdict("watch", "The score gap still grows", f"{text}: {advice}")
    if last > 1.5 * lowest:
        advice = f"after {lowest:.3g}: the student drifts away; lower its learning rate."
        return Verdict("bad", "The score gap grows again", f"{text}, {advice}")
    if last > 0.6 * peak:
        if last <= CRITIC_NOISE:
            text = f"{text}; a critic of real images shows up to {CRITIC_NOISE:g}, by the noise of its updates."
            return Verdict("good", "The score gap is within the critic's own noise", text)
        advice = "part of it is the critic's own noise; train longer, or lower both learning rates."
        return Verdict("watch", "The score gap has hardly closed", f"{text}: {advice}")
    return Verdict("good", "The score gap closes", f"{text}.")


def reward(run: RunData) -> Verdict | None:
    """What the reward pulls, against what holds the student near its teacher."""
    pull, hold = _series(run, "gradient/reward"), _series(run, "gradient/matching")
    if pull is None or hold is None:
        return None
    share = pull.mean(0.75, 1) / max(hold.mean(0.75, 1), 1e-12)
    text = f"In the last quarter its gradient is {share:.2g} of the matching term's"
    if share > 1:
        return Verdict("watch", "The reward outweighs the teacher", f"{text}: lower method.reward.weight.")
    return Verdict("good", "The reward does not outweigh the teacher", f"{text}; judge the images by another measure.")


def ratio(run: RunData) -> Verdict | None:
    """E_q[r] is 1 for a calibrated density ratio r = p / q."""
    means = {name: series.mean(0.75, 1) for name, series in run.metrics.items() if name.startswith("ratio/mean")}
    if not means:
        return None
    low, high = min(means.values()), max(means.values())
    clipped = run.metrics["ratio/clipped"].mean(0.75, 1) if "ratio/clipped" in run.metrics else 0.0
    text = f"Its mean per level bin is {low:.2g} to {high:.2g} (right: 1), {100 * clipped:.2g}% of it is clipped"
    if clipped > 0.001 or not 0.5 <= low <= high <= 2:
        kind: Kind = "bad" if clipped > 0.05 or low < 0.2 or high > 5 else "watch"
        advice = "give the discriminator more steps or a lower rate."
        return Verdict(kind, "The density ratio is out of calibration", f"{text}: {advice}")
    return Verdict("good", "The density ratio is calibrated", f"{text}.")


def clipping(run: RunData) -> Verdict | None:
    """How often a gradient was shortened; a bound that always acts is a choice, a gradient that outgrows it a sign."""
    worst: tuple[float, str, float] | None = None
    for name, limit in _limits(run.config).items():
        series = _series(run, f"{name}/grad_norm")
        if series is None:
            continue
        part = sum(value > limit for value in series.values) / len(series)
        if worst is None or part > worst[0]:
            worst = (part, name, limit)
    if worst is None:
        return None
    part, name, limit = worst
    text = f"That of the {name} exceeded its bound of {limit:g} in {100 * part:.0f}% of the logged steps"
    if part <= 0.5:
        return Verdict("good", "Gradients stay within bounds", f"{text}.")
    series = run.metrics[f"{name}/grad_norm"]
    middle, last = series.mean(0.25, 0.5), series.mean(0.75, 1)
    text = f"{text}; its norm was {middle:.3g} before the middle of the run and is {last:.3g} at the end"
    if last > 1.5 * middle:
        return Verdict("watch", "Clipped gradients grow", f"{text}: lower the learning rate of the {name}.")
    return Verdict("good", "Gradients are held at their bound", f"{text}.")


def _limits(config: dict[str, Any]) -> dict[str, float]:
    """Bound of the gradient norm of each trained network, from the settings."""
    adversarial = (config.get("method") or {}).get("adversarial") or {}
    holders = {
        "network": config,
        "student": config.get("student"),
        "critic": config.get("critic"),
        "discriminator": adversarial,
    }
    limits = {name: ((holder or {}).get("optimizer") or {}).get("max_grad_norm") for name, holder in holders.items()}
    return {name: float(limit) for name, limit in limits.items() if limit is not None}


CHECKS: tuple[Callable[[RunData], Verdict | None], ...] = (
    early_stop, rounds, quality, score_gap, CRITIC, DISCRIMINATOR, reward, ratio, SPREAD, SATURATION, clipping,
    TEACHER_LOSS, UNLEARNING,
)  # fmt: skip
