"""Charts: ticks, scales, and lines where the values are."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from diffdistill.reporting.line_chart import (
    HEIGHT,
    POINTS,
    WIDTH,
    Line,
    Scale,
    line_chart,
    log_ticks,
    nice_ticks,
    short,
    smoothed,
    thinned,
)

RANGES = [(0, 1), (0.13, 0.17), (-3, 12), (1e-6, 4e-6), (0, 54321), (99.5, 100.5)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_ticks_are_round_evenly_spaced_and_enclose_the_range(low, high):
    ticks = nice_ticks(low, high, 5)
    gaps = [b - a for a, b in pairwise(ticks)]
    assert ticks[0] <= low < high <= ticks[-1]
    assert 3 <= len(ticks) <= 9
    assert max(gaps) == pytest.approx(min(gaps))
    assert float(f"{gaps[0]:.3e}"[0]) in (1, 2, 5)


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.1), (0.02, 5), (1e-7, 1e5), (1, 10)])
def test_logarithmic_ticks_lie_inside_and_are_few(low, high):
    ticks = log_ticks(low, high)
    assert all(low <= tick <= high for tick in ticks)
    assert 1 <= len(ticks) <= 9


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (0.05, "0.05"),
        (1200, "1200"),
        (12000, "12k"),
        (5e-5, "5e-5"),
        (1.5e-4, "1.5e-4"),
        (3e6, "3M"),
    ],
)
def test_numbers_are_short(value, text):
    assert short(value) == text


def test_scale_is_linear_or_logarithmic():
    assert Scale(0, 10, 100, 0)(2.5) == 75
    assert Scale(1, 100, 0, 200, log=True)(10) == pytest.approx(100)


def test_smoothing_keeps_constants_and_lines_and_lowers_noise():
    assert smoothed([3.0] * 9, 2) == pytest.approx([3.0] * 9)
    assert smoothed([float(i) for i in range(9)], 2)[2:-2] == pytest.approx([2, 3, 4, 5, 6])
    assert smoothed([1.0, 100.0] * 5, 1, log=True)[4] == pytest.approx(10 ** (4 / 3))


def test_thinning_keeps_the_mean_and_the_ends_of_long_lines():
    values = [float(i) for i in range(10 * POINTS)]
    thin = thinned(values)
    assert len(thin) == POINTS
    assert sum(thin) / POINTS == pytest.approx(sum(values) / len(values))
    assert thinned([1.0, 2.0]) == [1.0, 2.0]


def points(chart, style):
    found = re.search(rf'<polyline class="{style}" points="([^"]+)"', chart)
    return [tuple(map(float, pair.split(","))) for pair in found[1].split()]


def test_lines_go_through_their_values_and_stay_inside():
    chart = line_chart([Line("loss", [0, 50, 100], [4.0, 2.0, 0.0], "c1")], name="loss")
    drawn = points(chart, "line c1")
    assert drawn[1][0] == pytest.approx((drawn[0][0] + drawn[2][0]) / 2)
    assert drawn[1][1] == pytest.approx((drawn[0][1] + drawn[2][1]) / 2)
    assert drawn[0][1] < drawn[2][1]  # large values are up
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, 0.0], [-1.0, 2.0], [1e-9, 1e9], [5.0]])
@pytest.mark.parametrize("log", [False, True])
def test_any_finite_values_give_a_well_formed_chart(values, log):
    steps = list(range(1, len(values) + 1))
    chart = line_chart([Line("<a & b>", steps, values, "c1")], name='"quoted" <name>', log=log)
    root = ElementTree.fromstring(chart)
    assert root.attrib["aria-label"] == '"quoted" <name>'
    assert "nan" not in chart


def test_reference_and_notes_are_named():
    line = Line("fid", [0, 100], [5.0, 1.0], "c1")
    chart = line_chart([line], name="FID", reference=(1.5, "teacher 1.50"), x_note=lambda step: f"{step:g} s")
    assert "teacher 1.50" in chart
    assert ">100 s<" in chart
