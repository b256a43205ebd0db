"""Charts stand to scale, in colours that can be seen."""

import math
import re
from itertools import pairwise

import pytest

from sgtm.plot.chart import Bar, Dot, Line, bar_chart, line_chart, scatter_chart, short, signed, ticks
from sgtm.plot.colors import DARK, LIGHT, PALETTE, color_class, contrast, legible
from sgtm.plot.tradeoff import COLORS


def circles(chart: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)]


def test_points_stand_to_scale():
    places = circles(line_chart("t", [Line("a", [(0, 1), (10, 2), (20, 5)])], "step", "loss"))
    (x0, y0), (x1, y1), (x2, y2) = places[:3]
    assert (x1 - x0) == pytest.approx(x2 - x1, abs=0.2)
    assert (y1 - y2) == pytest.approx(3 * (y0 - y1), abs=0.4)
    assert y2 < y0  # more is further up


def test_a_logarithmic_axis():
    (x0, _), (x1, _), (x2, _), *_ = circles(
        line_chart("t", [Line("a", [(1, 1), (10, 1), (100, 2)])], "x", "y", log_x=True)
    )
    assert (x1 - x0) == pytest.approx(x2 - x1, abs=0.2)


def test_what_is_no_number_is_left_out():
    assert line_chart("t", [Line("a", [(1, math.nan)])], "x", "y") == ""
    assert "nan" not in line_chart("t", [Line("a", [(1, math.nan), (2, 3.0)])], "x", "y")
    assert scatter_chart("t", [Dot("a", math.inf, 1)], "x", "y") == ""
    assert bar_chart("t", [Bar("a", [("p", 0, PALETTE[0])])], "n") == ""


def test_a_figure_says_what_it_shows():
    chart = line_chart("Test loss", [Line("intact", [(20, 4.9), (60, 4.4)])], "step", "nats per token", [("goal", 4.2)])
    name, about = re.search(r'aria-labelledby="(\S+) (\S+)"', chart).groups()
    assert f'<title id="{name}">Test loss</title>' in chart
    assert re.search(rf'<desc id="{about}">nats per token over step. intact: 4.9 at 20, 4.4 at 60</desc>', chart)
    assert ">goal</text>" in chart
    assert chart.count('<td class="number">') == 4  # both points, in the table of numbers


def test_wide_intervals_do_not_dwarf_the_points():
    near, far = [Dot("a", 1, 1), Dot("b", 2, 2)], [Dot("a", 1, 1, half_y=50.0), Dot("b", 2, 2)]
    heights = [
        abs(ys[0] - ys[1]) for ys in ([y for _, y in circles(scatter_chart("t", d, "x", "y"))] for d in (near, far))
    ]
    assert heights[1] > 0.5 * heights[0]


def test_names_of_points_stand_apart_and_above_the_axis():
    chart = scatter_chart("t", [Dot(f"run {i}", 1 + i, 1.0 + (i == 4)) for i in range(5)], "x", "y")
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)" class="strong">run', chart))
    assert all(b - a >= 13.9 for a, b in pairwise(heights))
    assert max(heights) < 290 - 44


def test_long_names_stand_in_a_legend():
    chart = scatter_chart("t", [Dot("sgtm, undiscovered 0.1, forget_lr_scale 2", 1, 1)], "x", "y")
    assert chart.count('class="legend"') == 1
    assert '"strong">sgtm' not in chart


def test_parts_of_bars_stand_to_scale():
    chart = bar_chart("t", [Bar("a", [("p", 30, PALETTE[0]), ("q", 10, PALETTE[1])])], "n")
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="18"', chart)]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (4.37, 4.39), (0, 12345), (-3, 7), (1e-5, 2e-5), (0, 1e12)])
def test_ticks_are_round_and_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 * high for tick in found)
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps))
    assert f"{steps[0]:.3e}"[:3] in ("1.0", "2.0", "2.5", "5.0")


def test_numbers_are_short():
    assert [short(x) for x in (0, 7, 1500, 48_384, 439_296, 2.5e9, 0.125)] == [
        "0", "7", "1,500", "48.38k", "439.3k", "2.5G", "0.125"
    ]  # fmt: skip
    assert [signed(x) for x in (0.5, -0.25, -0.0001)] == ["+0.500", "-0.250", "0.000"]


@pytest.mark.parametrize("color", sorted({*COLORS.values(), *PALETTE}))
@pytest.mark.parametrize("ground", [LIGHT, DARK])
def test_colours_stand_out_in_both_schemes(color, ground):
    assert contrast(legible(color, ground), ground) >= 3


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_only_colours_of_the_page_can_be_used():
    with pytest.raises(ValueError, match="no colour of a page"):
        color_class('red"><script>')
