"""Means with intervals, one below the other."""

import re

from sgtm.plot.chart import Mean, forest_chart

ROWS = [("quantise", [Mean("sgtm", 0.5, 0.1, (0.45, 0.55)), Mean("filter", 0.0)]), ("prune", [Mean("sgtm", 1.0, 40.0)])]


def circles(chart):
    return [float(x) for x in re.findall(r'<circle[^>]* cx="([\d.-]+)"', chart)]


def test_means_stand_in_their_order_and_wide_intervals_end_at_the_frame():
    chart = forest_chart("title", ROWS, "share", [1.0])
    half, zero, one = circles(chart)
    assert zero < half < one
    assert abs((zero + one) / 2 - half) < 0.2  # rounded to a tenth
    assert all(0 <= float(x) <= 440 for x in re.findall(r' x[12]="([\d.-]+)"', chart))


def test_numbers_and_whose_they_are_can_be_read():
    chart = forest_chart("title", ROWS, "share")
    assert "0.500 ± 0.100" in chart
    assert "<li>" in chart
    assert "quantise, sgtm: 0.500" in chart


def test_nothing_to_draw_is_nothing():
    assert forest_chart("title", [("empty", [])], "share") == ""
