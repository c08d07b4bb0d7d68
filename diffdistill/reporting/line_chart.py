"""A line chart as inline SVG: scales, ticks, lines; colours and fonts are those of the page's style sheet."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 360, 212
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 10, 24
POINTS = 300  # of a line; more would only make the page larger
MANY = 3  # more lines than this, and the raw ones are left out
NOISY = 40  # points from which a line is drawn smoothed, with the raw one pale behind it


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
        # The first one of a line that begins at step 100 would run into the name of the axis.
        beside = "start" if x - 3.2 * len(short(value)) < LEFT - 5 else anchor
        parts.append(_text(x, bottom + 16, short(value), anchor=beside))
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
