"""Charts of a run as inline SVG: which metrics share one, and how each is shown.

Whatever has no entry in the catalogue is grouped by its prefix. Colours and fonts come from the page's style sheet, so
they follow light and dark.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape

from diffdistill.evaluation.figures import Figure, figure_of, label_of
from diffdistill.evaluation.metrics import metrics
from diffdistill.reporting.line_chart import Line, line_chart, short
from diffdistill.reporting.rundata import RunData, Series

WAYS = {True: "lower is better", False: "higher is better", None: ""}


@dataclass(frozen=True)
class Chart:
    """One chart of the catalogue: the metrics it takes (shell patterns), their labels, and how to read it."""

    title: str
    patterns: tuple[str, ...]
    hint: str
    log: bool = False
    percent: bool = False
    reference: tuple[float, str] | None = None
    ordered: bool = False  # lines are levels of one thing, coloured in order
    smooth: bool = True
    verb: str | None = None  # of the runs that it is for; None: all
    figure: str | None = None  # of evaluations, shown beside the teacher's and with the time of training

    def takes(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


CATALOGUE = (
    Chart("Rewards of the evaluation", ("evaluation/reward/*", "evaluation/judge/*", "evaluation/judge_at_start/*"),
          "Of prompts in turn; higher is better."),
    Chart("Margin", ("margin", "evaluation/margin"), "Between wanted and other image; above 0: the right way round."),
    Chart("Win rate", ("win_rate", "evaluation/win_rate*", "evaluation/judge_win_rate/*"),
          "Part of the pairs the right way round; 50% is chance.", percent=True, reference=(0.5, "chance")),
    Chart("Loss of either image", ("loss/*", "evaluation/loss_*"), "Both rising: both images are unlearned."),
    Chart("Loss", ("loss",), "What the method minimises, of both images.", verb="align"),
    Chart("Denoising loss", ("loss",), "Weighted squared error of x0; falls quickly, then slowly.", log=True),
    Chart("Regression", ("regression/loss",), "Squared error of x0 against the teacher's trajectories.", log=True),
    Chart("Consistency", ("consistency/loss",), "Between neighbouring levels; more levels, a larger loss.", log=True),
    Chart("Loss of DDO", ("ddo/loss",), "(1 + alpha) ln 2 for the reference itself; falls in each round."),
    Chart("Discriminator of DDO", ("ddo/accuracy",), "Data told from the reference's images; 50% is a coin.",
          percent=True, reference=(0.5, "coin")),
    Chart("Log ratios of DDO", ("ddo/ratio_*",), "Model to reference, on data and on samples: one up, one down."),
    Chart("Score gap", ("score_gap/relative",), "Critic against teacher, relative to the noise left; 0: equal.",
          log=True),
    Chart("Score gap by noise level", ("score_gap/level_*",), "The same in bins of the level; bin 0 is the cleanest.",
          log=True, ordered=True),
    Chart("Critic loss", ("critic/loss",), "Denoising loss on the student's images; rising: the critic lags behind."),
    Chart("Discriminator loss", ("discriminator/loss",), "2 ln 2 = 1.39 is a coin.", reference=(1.386, "coin")),
    Chart("Discriminator accuracy", ("discriminator/accuracy",), "50% is a coin; near 100% its gradient is of no use.",
          percent=True, reference=(0.5, "coin")),
    Chart("Mean density ratio E[r]", ("ratio/mean*",), "Per bin of the noise level; 1 is calibrated.",
          log=True, reference=(1.0, "calibrated"), ordered=True),
    Chart("Clipped density ratios", ("ratio/clipped*",), "Part of the samples at the bounds of r; 0.1% is too much.",
          percent=True),
    Chart("Reward", ("reward/*",), "Mean score of the student's images; what is optimised measures nothing."),
    Chart("Standard deviation of samples", ("x0/std",), "Spread of the student's pixels; shrinking: lost variety."),
    Chart("Saturated pixels", ("x0/saturation",), "Part of the pixels outside the range of images.", percent=True),
    Chart("Terms of the gradient", ("gradient/*",), "Mean norm per image, at x0.", log=True),
    Chart("Gradient norms", ("*/grad_norm", "grad_norm"), "Of all parameters, before clipping.", log=True),
    Chart("Learning rates", ("*/learning_rate", "learning_rate"), "With warm-up and decay.", smooth=False),
)  # fmt: skip


def of_evaluations(run: RunData) -> list[Chart]:
    """A chart of every metric in the registry, and of those that only the run itself describes."""
    rows = [
        (label_of(row.name, run.features if row.of_features else None), row.summary, row.numbers)
        for row in metrics().values()
    ]
    known = {figure.name for *_, figures in rows for figure in figures}
    foreign = [figure_of(name, run.words) for name in run.words if name not in known]
    return [_of_metric(*row) for row in [*rows, *((figure.label, "", (figure,)) for figure in foreign)]]


def _of_metric(label: str, summary: str, figures: Sequence[Figure]) -> Chart:
    way = WAYS[figures[0].lower_is_better]
    alone = len(figures) == 1
    words = ", ".join(word for word in (summary, way) if word) + ("; below, the time." if alone else ".")
    patterns = tuple(pattern for figure in figures for pattern in (f"evaluation/{figure.name}", figure.name))
    hint = words[0].upper() + words[1:]
    return Chart(
        label, patterns, hint, log=figures[0].lower_is_better is True, figure=figures[0].name if alone else None
    )


def charts(run: RunData) -> list[str]:
    """All charts of a run as HTML figures, in the order of the catalogue."""
    left = {name: series for name, series in run.metrics.items() if len(series) >= 2}
    figures = _against_evaluations(run)
    for chart in (chart for chart in [*of_evaluations(run), *CATALOGUE] if chart.verb in (None, run.verb)):
        names = [
            name for pattern in chart.patterns for name in sorted(left, key=_natural) if fnmatchcase(name, pattern)
        ]
        if names:
            figures.append(_figure(run, chart, {name: left.pop(name) for name in dict.fromkeys(names)}))
    for prefix in dict.fromkeys(name.partition("/")[0] for name in left):
        group = {name: series for name, series in left.items() if name.partition("/")[0] == prefix}
        figures.append(_figure(run, Chart(prefix.replace("_", " ").capitalize(), (), ""), group))
    return figures


def _figure(run: RunData, chart: Chart, group: dict[str, Series]) -> str:
    labels = _labels(group)
    kind, count = ("s", 5) if chart.ordered else ("c", 6)
    lines = [
        Line(labels[name], series.steps, series.values, f"{kind}{_shade(i, len(group), count)}")
        for i, (name, series) in enumerate(group.items())
    ]
    drawing = line_chart(
        lines,
        name=f"{chart.title} against the training step",
        log=chart.log and _wide(group.values()),
        percent=chart.percent,
        smooth=chart.smooth,
        reference=_teacher(run, chart.figure) if chart.figure else chart.reference,
        x_note=_clock(run) if chart.figure else None,
    )
    values = [f" <b>{_value(line.ys[-1], chart.percent)}</b>" for line in lines]
    # Short names in columns; a long one would run into the next.
    many = len(lines) > 4 and max(len(line.label) for line in lines) < 8
    return card(chart.title, chart.hint, drawing, lines, values, many)


def card(title: str, hint: str, drawing: str, lines: Sequence[Line], values: Sequence[str], many: bool) -> str:
    keys = "".join(
        f'<span class="key"><i class="{line.colour}"></i>{escape(line.label)}{value}</span>'
        for line, value in zip(lines, values, strict=True)
    )
    how_to_read = f'<p class="hint">{escape(hint)}</p>' if hint else ""
    caption = f"<figcaption><h3>{escape(title)}</h3>{how_to_read}</figcaption>"
    return f'<figure class="card">{caption}{drawing}<p class="legend{" many" if many else ""}">{keys}</p></figure>'


def _against_evaluations(run: RunData) -> list[str]:
    """FID over the calls of the network an image takes: a teacher at several numbers of steps, and its student."""
    points: dict[str, list[tuple[float, float]]] = {}
    for name, result in run.evaluation.items():
        calls = (result.get("sampling") or {}).get("evaluations") or (len(run.model.get("levels", ())) or None)
        fid = result.get("metrics", {}).get("fid", {}).get("value")
        if calls and fid is not None:
            points.setdefault(name.partition(" ")[0].capitalize(), []).append((calls, fid))
    if sum(map(len, points.values())) < 3:
        return []
    lines = [
        Line(name, [x for x, _ in sorted(pairs)], [y for _, y in sorted(pairs)], f"c{i + 1}")
        for i, (name, pairs) in enumerate(points.items())
    ]
    values = [y for line in lines for y in line.ys]
    fid = label_of("fid", run.features)
    drawing = line_chart(
        lines, name=f"{fid} against evaluations of the network", log=max(values) > 5 * min(values) > 0, x_name="calls"
    )
    hint = "Over the calls of the network an image takes, best sampler at each."
    return [card(f"{fid} and cost", hint, drawing, lines, [""] * len(lines), many=False)]


def _labels(group: Iterable[str]) -> dict[str, str]:
    """Short names: the part of each that tells it from the others."""
    names = list(group)
    heads, tails = {n.partition("/")[0] for n in names}, {n.rpartition("/")[2] for n in names}
    if len(names) > 1 and len(tails) == 1:
        return {n: n.partition("/")[0].replace("_", " ") for n in names}
    if all(re.fullmatch(r"ratio/mean_\d+|score_gap/level_\d+", n) for n in names):
        return {n: f"bin {n.rpartition('_')[2]}" for n in names}
    if len(names) == 1:
        return dict.fromkeys(names, "at the end")
    return {n: (n.rpartition("/")[2] if len(heads) == 1 else n).replace("_", " ") for n in names}


def _natural(name: str) -> list[tuple[int, str]]:
    """Order in which mean_2 comes before mean_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _shade(index: int, total: int, count: int) -> int:
    """Colour number 1 ... count; an order of more lines than colours shares neighbouring shades."""
    return 1 + (index if total <= count else index * count // total)


def _wide(group: Iterable[Series]) -> bool:
    """Whether the values span enough for a logarithmic axis."""
    values = [value for series in group for value in series.values]
    return min(values) > 0 and max(values) / min(values) > 5


def _value(value: float, percent: bool) -> str:
    return f"{100 * value:.3g}%" if percent else short(float(f"{value:.3g}"))


def _teacher(run: RunData, figure: str) -> tuple[float, str] | None:
    entry = run.evaluation.get("teacher", {}).get("metrics", {}).get(figure, {})
    return (entry["value"], f"teacher {entry['value']:.2f}") if "value" in entry else None


def _clock(run: RunData) -> Callable[[float], str] | None:
    """Time of training at a step, between logged ones in proportion."""
    longest = max(run.metrics.values(), key=len)
    if not longest.seconds[-1]:
        return None

    def note(step: float) -> str:
        known = [(0.0, 0.0), *zip(longest.steps, longest.seconds, strict=True)]
        after = next((k for k, (at, _) in enumerate(known) if at >= step), len(known) - 1)
        (a, s), (b, t) = known[max(after - 1, 0)], known[after]
        return duration(t if b == a else s + (step - a) / (b - a) * (t - s))

    return note


def duration(seconds: float) -> str:
    """1.5 h, 12 min, 40 s."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 570:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
