"""What the metrics of a run say about its health, in words.

The signs are those of distribution matching (a critic that lags, a discriminator that wins, ratios out of calibration,
images that saturate or lose their spread); each is judged only if its metric was logged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from diffdistill.reporting.rundata import LOWER_IS_BETTER, STOPPED_FOR, RunData, Series

Metrics = dict[str, Series]
# A critic trained on the teacher's own data, where the true gap is 0, shows 0.19 to 0.25 (docs/design.md).
CRITIC_NOISE = 0.25
DISTANCES = {"evaluation/fid": "FID", "evaluation/kid": "KID"}


@dataclass(frozen=True)
class Verdict:
    kind: Literal["good", "watch", "bad"]
    title: str
    text: str


def verdicts(run: RunData) -> list[Verdict]:
    """All signs that can be read off this run, the worst first."""
    found = [verdict for check in CHECKS if (verdict := check(run)) is not None]
    return sorted(found, key=lambda verdict: ("bad", "watch", "good").index(verdict.kind))


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
    lower = settings["metric"] in LOWER_IS_BETTER
    best, value = (min if lower else max)(series.values), series.values[series.steps.index(kept)]
    text = (
        f"{settings['metric']} was {best:.4g} at best and {series.values[-1]:.4g} at step {series.steps[-1]:g}: the "
        f"model is that of step {kept:g}, with {value:.4g} the last within the margin of {settings['margin']:g}"
    )
    return Verdict("watch", "The run was ended early", f"{text}; lower rates, or less of a reward, may go further.")


def quality(run: RunData) -> Verdict | None:
    """Whether the last evaluation is the best."""
    if STOPPED_FOR in run.metrics:
        return None
    for name, label in DISTANCES.items():
        series = _series(run, name, least=2)
        if series is None:
            continue
        best = min(range(len(series)), key=series.values.__getitem__)
        lowest, last = series.values[best], series.values[-1]
        if last > 1.1 * lowest:
            text = f"{label} was {lowest:.2f} at step {series.steps[best]:g} and is {last:.2f} at the end"
            kind: Literal["watch", "bad"] = "watch" if last < 1.5 * lowest else "bad"
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


def critic(run: RunData) -> Verdict | None:
    """A critic that lags behind the student makes its gradient wrong."""
    series = _series(run, "critic/loss", least=8)
    if series is None:
        return None
    middle, last = series.mean(0.4, 0.6), series.mean(0.8, 1)
    text = f"Its loss was {middle:.3g} halfway and {last:.3g} at the end"
    if last > 1.3 * middle:
        return Verdict(
            "bad" if last > 2 * middle else "watch",
            "The critic falls behind",
            f"{text}: give it more updates per step or a higher learning rate.",
        )
    return Verdict("good", "The critic keeps up", f"{text}.")


def discriminator(run: RunData) -> Verdict | None:
    """0.5 is a coin, 1 a discriminator whose gradient is of no more use."""
    series = _series(run, "discriminator/accuracy")
    if series is None:
        return None
    last = series.mean(0.75, 1)
    text = f"It is right in {100 * last:.0f}% of the cases (50% is a coin)"
    if last > 0.95:
        return Verdict(
            "bad", "The discriminator wins", f"{text}: lower its learning rate, or set method.adversarial.r1."
        )
    if last > 0.85:
        return Verdict("watch", "The discriminator is far ahead", f"{text}; its gradient may become coarse.")
    return Verdict("good", "Discriminator and student are balanced", f"{text}.")


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
        kind: Literal["watch", "bad"] = "bad" if clipped > 0.05 or low < 0.2 or high > 5 else "watch"
        advice = "give the discriminator more steps or a lower rate."
        return Verdict(kind, "The density ratio is out of calibration", f"{text}: {advice}")
    return Verdict("good", "The density ratio is calibrated", f"{text}.")


def spread(run: RunData) -> Verdict | None:
    """A student that collapses loses the spread of its pixels, one that overshoots gains too much."""
    series = _series(run, "x0/std", least=8)
    if series is None:
        return None
    middle, last = series.mean(0.3, 0.5), series.mean(0.85, 1)
    text = f"Their standard deviation was {middle:.3g} after a third of the run and is {last:.3g} at the end"
    if abs(last / middle - 1) > 0.15:
        what = "shrinks" if last < middle else "grows"
        advice = "look at the grids for lost variety or harsh contrast."
        return Verdict("watch", f"The spread of the samples {what}", f"{text}: {advice}")
    return Verdict("good", "The spread of the samples is steady", f"{text}.")


def saturation(run: RunData) -> Verdict | None:
    """Pixels beyond the range of images are clipped to black or white."""
    series = _series(run, "x0/saturation", least=1)
    if series is None:
        return None
    last = series.mean(0.9, 1)
    text = f"{100 * last:.2g}% of the student's pixels lie outside the range of images"
    if last > 0.01:
        kind: Literal["watch", "bad"] = "bad" if last > 0.1 else "watch"
        return Verdict(kind, "The samples saturate", f"{text}: lower the guidance scale or the adversarial weight.")
    return Verdict("good", "No saturation", f"{text}.")


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


def teacher_loss(run: RunData) -> Verdict | None:
    """Whether a teacher would gain from a longer run."""
    series = _series(run, "loss", least=12)
    if series is None or run.verb == "align":
        return None
    before, last = series.mean(0.5, 0.75), series.mean(0.75, 1)
    gain = 1 - last / before
    change = f"{100 * abs(gain):.1f}% {'below' if gain >= 0 else 'above'} the quarter before"
    text = f"The denoising loss of the last quarter is {last:.4g}, {change}"
    if gain < -0.05:
        return Verdict("bad", "The loss rises", f"{text}: lower the learning rate.")
    if gain > 0.03:
        return Verdict("watch", "The loss still falls", f"{text}: a longer run would help.")
    return Verdict("good", "The loss has settled", f"{text}.")


def unlearning(run: RunData) -> Verdict | None:
    """Preferring one image to another must not come from making both worse."""
    series = _series(run, "loss/win", least=8)
    if series is None:
        return None
    first, last = series.mean(0, 0.25), series.mean(0.75, 1)
    text = f"Their loss was {first:.3g} in the first quarter of the run and is {last:.3g} in the last"
    if last > 1.15 * first:
        return Verdict("watch", "The wanted images are unlearned, too", f"{text}: lower the learning rate.")
    return Verdict("good", "The wanted images are not unlearned", f"{text}.")


CHECKS: tuple[Callable[[RunData], Verdict | None], ...] = (
    early_stop, quality, score_gap, critic, discriminator, reward, ratio, spread, saturation, clipping, teacher_loss,
    unlearning,
)  # fmt: skip
