"""Charts of a run as inline SVG: which metrics share one, how each is shown, and how it is drawn.

Whatever has no entry in the catalogue is grouped by its prefix. Colours and fonts come from the page's style sheet, so
they follow light and dark.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from itertools import pairwise

from diffdistill.evaluation.figures import Figure, figure_of, label_of
from diffdistill.evaluation.metrics import metrics
from diffdistill.reporting.rundata import RunData, Series

WIDTH, HEIGHT = 360, 212
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 10, 24
POINTS = 300  # of a line; more would only make the page larger
MANY = 3  # more lines than this, and the raw ones are left out
WAYS = {True: "lower is better", False: "higher is better", None: ""}
NOISY = 40  # points from which a line is drawn smoothed, with the raw one pale behind it


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
    rows = [(label_of(row.name, run.features) if row.of_features else row.label, row.summary, row.numbers)
            for row in metrics().values()]  # fmt: skip
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
    return _card(chart.title, chart.hint, drawing, lines, values, many)


def _card(title: str, hint: str, drawing: str, lines: Sequence["Line"], values: Sequence[str], many: bool) -> str:
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
    return [_card(f"{fid} and cost", hint, drawing, lines, [""] * len(lines), many=False)]


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


# --- how it is drawn


@dataclass(frozen=True)
class Line:
    """A named line; `colour` is a class of the style sheet, `c1` ... (kinds) or `s1` ... (an order)."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels, linearly or in the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        of = math.log10 if self.log else float
        return self.start + (of(value) - of(self.low)) / (of(self.high) - of(self.low)) * (self.end - self.start)


def line_chart(
    lines: Sequence[Line],
    *,
    name: str,
    log: bool = False,
    percent: bool = False,
    smooth: bool = True,
    reference: tuple[float, str] | None = None,
    x_note: Callable[[float], str] | None = None,
    x_name: str = "step",
) -> str:
    """One chart with a common x axis, in steps unless `x_name` says otherwise.

    name: what is shown, for readers who cannot see it; percent: values are parts of 1; smooth: of many points, draw a
    moving mean over the raw line; reference: a dashed horizontal line with its name; x_note: a second label under each
    x tick, such as the time.
    """
    xs = [x for line in lines for x in line.xs]
    ys = [y for line in lines for y in line.ys] + ([reference[0]] if reference else [])
    log = log and min(ys) > 0
    low, high = _bounds(ys, log)
    y_ticks = log_ticks(low, high) if log else nice_ticks(low, high, 5)
    if not log:
        low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    bottom = HEIGHT - BOTTOM - (13 if x_note else 0)
    to_x = Scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, LEFT, WIDTH - RIGHT)
    to_y = Scale(low, high, bottom, TOP, log)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">']
    for value in y_ticks:
        parts.append(_rule("rule", to_y(value)))
        parts.append(_text(LEFT - 7, to_y(value) + 4, f"{100 * value:g}%" if percent else short(value)))
    parts += _x_axis(to_x, bottom, x_note, x_name)
    for line in lines:
        parts += _draw(line, to_x, to_y, percent, smooth, len(lines) <= MANY, x_name)
    if reference:
        y = to_y(reference[0])
        above = y - 5 if y > TOP + 16 else y + 14
        parts += [_rule("reference", y), _text(WIDTH - RIGHT, above, reference[1], style="tick named")]
    return "".join([*parts, "</svg>"])


def _rule(style: str, y: float) -> str:
    return f'<line class="{style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _text(x: float, y: float, text: str, *, style: str = "tick", anchor: str = "end") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _x_axis(to_x: Scale, bottom: float, note: Callable[[float], str] | None, name: str) -> list[str]:
    parts = [_text(LEFT - 7, bottom + 16, name)]
    for value in nice_ticks(to_x.low, to_x.high, 5):
        if not to_x.low <= value <= to_x.high:
            continue
        x = to_x(value)
        anchor = "end" if x > WIDTH - RIGHT - 14 else "middle"
        parts.append(_text(x, bottom + 16, short(value), anchor=anchor))
        if note:
            parts.append(_text(x, bottom + 29, note(value), style="tick note", anchor=anchor))
    return parts


def _draw(line: Line, to_x: Scale, to_y: Scale, percent: bool, smooth: bool, raw: bool, x_name: str) -> list[str]:
    """The line; few points get dots with their value on hovering, many a smoothed line over the raw one."""
    if len(line.xs) > NOISY:
        xs, ys = thinned(line.xs), thinned(line.ys)
        if not smooth:
            return [_path(xs, ys, to_x, to_y, f"line {line.colour}")]
        behind = [_path(xs, ys, to_x, to_y, f"line raw {line.colour}")] if raw else []
        curve = smoothed(ys, max(1, len(ys) // 25), to_y.log)
        return [*behind, _path(xs, curve, to_x, to_y, f"line {line.colour}")]
    parts = [_path(line.xs, line.ys, to_x, to_y, f"line {line.colour}")]
    for x, y in zip(line.xs, line.ys, strict=True):
        value = f"{100 * y:.3g}%" if percent else f"{y:.4g}"
        parts.append(
            f'<circle class="dot {line.colour}" cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="2.6">'
            f"<title>{escape(line.label)}, {x_name} {x:g}: {value}</title></circle>"
        )
    return parts


def _path(xs: Sequence[float], ys: Sequence[float], to_x: Scale, to_y: Scale, style: str) -> str:
    points = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline class="{style}" points="{points}"/>'


def thinned(values: Sequence[float]) -> list[float]:
    """At most `POINTS` values, means of equally long stretches: no spike is invented, the line keeps its place."""
    count = min(len(values), POINTS)
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def smoothed(values: Sequence[float], reach: int, log: bool = False) -> list[float]:
    """Mean over `reach` neighbours on either side; of the logarithm where the axis is one.

    At the start the window stays centred, and so follows the steep fall of a loss; at the end it only lacks its later
    half.
    """
    inside = [math.log(v) for v in values] if log else list(values)
    windows = (inside[max(0, i - reach) : i + min(reach, i) + 1] for i in range(len(inside)))
    means = [sum(window) / len(window) for window in windows]
    return [math.exp(v) for v in means] if log else means


def _bounds(values: Sequence[float], log: bool) -> tuple[float, float]:
    """A little more than the range of the values; from 0 where they come near it."""
    low, high = min(values), max(values)
    if log:
        return (low / 1.1, high * 1.1) if high > low else (low / 2, high * 2)
    if high == low:
        high, low = high + (abs(high) or 1) * 0.1, low - (abs(low) or 1) * 0.1
    if 0 < low < 0.4 * high:
        low = 0.0
    return low, high


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high]."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high], with 2 and 5 between them where there is room."""
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 2.2 else (1,)
    stride = max(1, round(decades / 5))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers if p % stride == 0 for m in steps if low <= m * 10.0**p <= high]
    return ticks or [low, high]


def short(value: float) -> str:
    """A number in few characters: 1200 -> 1.2k, 0.00005 -> 5e-5."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g}k"
    if abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"
