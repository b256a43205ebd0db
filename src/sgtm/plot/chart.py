"""Charts as inline SVG: lines, points with names, bars. Colours follow the page; numbers are in it too.

Every figure has a title and a description for screen readers, tooltips on its points, a legend in text, and its numbers
in a table that opens below it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sgtm.plot.colors import PALETTE, color_class
from sgtm.plot.page import Html, details, new_id, table, tag

Point = tuple[float, float]
Dash = Literal["", "dashed", "dotted"]
__all__ = [
    "PALETTE",
    "Bar",
    "Dash",
    "Dot",
    "Line",
    "Mean",
    "bar_chart",
    "forest_chart",
    "line_chart",
    "scatter_chart",
    "short",
    "signed",
]

_WIDTH, _HEIGHT = 440, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 30, 44
_TICKS = 5  # about
_LONGEST = 20  # letters of a name beside its point
_LETTER = 8.0  # width of a letter of the labels


@dataclass(frozen=True)
class Line:
    """One curve: its points (x, y) and, if any, a band (x, low, high) or error bars (x, low, high)."""

    name: str
    points: Sequence[Point]
    color: str = PALETTE[0]
    dash: Dash = ""
    marked: bool = True
    thin: bool = False
    band: Sequence[tuple[float, float, float]] = ()
    errors: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Dot:
    """One named point of a scatter chart, the way there, and half of its intervals."""

    name: str
    x: float
    y: float
    color: str = PALETTE[0]
    trail: Sequence[Point] = ()
    half_x: float | None = None
    half_y: float | None = None


@dataclass(frozen=True)
class Bar:
    """One named bar of parts (name, size, colour)."""

    name: str
    parts: Sequence[tuple[str, float, str]]


@dataclass(frozen=True)
class Mean:
    """One mean of a forest chart: whose, half of its interval (None: of one value), and the values."""

    name: str
    value: float
    half: float | None = None
    values: Sequence[float] = ()
    color: str = PALETTE[0]


@dataclass(frozen=True)
class Axes:
    """The frame: what it shows of x and y, and where on the page that is.

    Args:
        x, y: (lowest, highest) that is shown.
        log_x: x stands to a logarithmic scale.
        x_ticks: (x, label) in place of round numbers.
    """

    x: Point
    y: Point
    log_x: bool = False
    x_ticks: Sequence[tuple[float, str]] = ()
    right: float = _RIGHT

    def at(self, x: float, y: float) -> Point:
        """Place of (x, y) in the picture."""
        low, high, value = (math.log10(v) for v in (*self.x, x)) if self.log_x else (*self.x, x)
        width, height = _WIDTH - _LEFT - self.right, _HEIGHT - _TOP - _BOTTOM
        return (
            _LEFT + width * (value - low) / (high - low),
            _TOP + height * (1 - (y - self.y[0]) / (self.y[1] - self.y[0])),
        )


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    targets: Sequence[tuple[str, float]] = (),
    log_x: bool = False,
    x_ticks: Sequence[tuple[float, str]] = (),
    y_from_means: bool = False,
) -> Html:
    """Lines over one another.

    Args:
        targets: (name, y) of horizontal lines.
        log_x: x to a logarithmic scale; all x must be positive.
        x_ticks: (x, label) in place of round numbers.
        y_from_means: wide intervals run out of the frame instead of dwarfing the lines.
    """
    lines = [replace(line, points=_finite(line.points)) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return Html("")
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [y for _, y in targets]
    if not y_from_means:
        ys += [y for line in lines for _, *ends in (*line.band, *line.errors) for y in ends]
    axes = Axes(_range(xs, 0.0), _range(ys, 0.07 if not y_from_means else 0.3), log_x, x_ticks)
    clip = new_id("clip")
    marks = [_target(axes, name, y) for name, y in targets]
    marks += [piece for line in lines for piece in _line(axes, line, x_label, y_label)]
    body = [_frame(axes, x_label, y_label), _clip(clip, axes), tag("g", *marks, clip_path=f"url(#{clip})")]
    numbers = [(line.name, short(x), f"{y:.4g}") for line in lines for x, y in line.points]
    return _figure(
        title,
        _described(lines, x_label, y_label),
        body,
        _legend([(line.name, line.color, line.dash, line.marked) for line in lines]),
        table(["line", x_label, y_label], numbers),
    )


def scatter_chart(title: str, dots: Sequence[Dot], x_label: str, y_label: str) -> Html:
    """Points with their names beside them, the way there, and intervals as crosses."""
    dots = [dot for dot in dots if math.isfinite(dot.x) and math.isfinite(dot.y)]
    if not dots:
        return Html("")
    xs, ys = zip(*((x, y) for dot in dots for x, y in (*dot.trail, (dot.x, dot.y))), strict=True)
    longest = max(len(dot.name) for dot in dots)
    named = longest <= _LONGEST  # longer names stand in a legend
    has_intervals = any(dot.half_x or dot.half_y for dot in dots)
    room = 0.35 if has_intervals else 0.08  # wide intervals run out of the frame instead of dwarfing all else
    axes = Axes(_range(xs, room), _range(ys, room), right=_LETTER * longest + 22 if named else _RIGHT)
    places = _apart([axes.at(dot.x, dot.y)[1] for dot in dots])
    clip = new_id("clip")
    marks = [_dot(axes, dot, x_label, y_label) for dot in dots]
    labels = [_label(axes, dot, place) for dot, place in zip(dots, places, strict=True)] if named else []
    numbers = [(d.name, _with_half(d.x, d.half_x), _with_half(d.y, d.half_y)) for d in dots]
    about = "; ".join(f"{d.name}: {d.x:.4g}, {d.y:.4g}" for d in dots)
    body = [_frame(axes, x_label, y_label), _clip(clip, axes), tag("g", *marks, clip_path=f"url(#{clip})"), *labels]
    legend = "" if named else tag("ul", *(_key(dot.name, dot.color) for dot in dots), class_="legend")
    return _figure(title, f"{y_label} over {x_label}. {about}", body, legend, table(["", x_label, y_label], numbers))


def bar_chart(title: str, bars: Sequence[Bar], unit: str, form: Callable[[float], str] | None = None) -> Html:
    """Bars from left to right, each cut into its parts, on one scale."""
    form = form or short
    total = max((sum(size for _, size, _ in bar.parts) for bar in bars), default=0.0)
    if not total:
        return Html("")
    left = min(_LETTER * max(len(bar.name) for bar in bars) + 12, 150)
    step, height = 26, 18
    scale = (_WIDTH - left - 64) / total
    pieces: list[Html] = []
    for i, bar in enumerate(bars):
        pieces += _bar(bar, left, i * step + 4, height, scale, form)
    names = {name: color for bar in bars for name, _, color in bar.parts}
    rows = [(bar.name, name, form(size)) for bar in bars for name, size, _ in bar.parts]
    about = "; ".join(f"{bar.name}: " + ", ".join(f"{n} {form(size)}" for n, size, _ in bar.parts) for bar in bars)
    legend = tag("ul", *(_key(name, color) for name, color in names.items()), class_="legend") if len(names) > 1 else ""
    return _figure(
        title, f"{unit}. {about}", pieces, legend, table(["", "part", unit], rows, text_columns=2), len(bars) * step + 4
    )


def forest_chart(
    title: str, rows: Sequence[tuple[str, Sequence[Mean]]], label: str, targets: Sequence[float] = ()
) -> Html:
    """Means with their intervals, one below the other, under the name of each row; intervals end at the frame.

    Args:
        rows: (name, means) from top to bottom.
        targets: values where a vertical line stands.
    """
    rows = [(name, means) for name, means in rows if means]
    if not rows:
        return Html("")
    shown = [v for _, means in rows for mean in means for v in (mean.value, *mean.values)]
    axes = Axes(_range([*shown, *targets, 0.0], 0.06), (0.0, 1.0))
    heights = [24 + 15 * len(means) for _, means in rows]
    bottom = sum(heights) + 6.0
    marks = [
        piece
        for i, (name, means) in enumerate(rows)
        for piece in _forest_row(axes, name, means, sum(heights[:i]) + 14.0, label)
    ]
    body = [_forest_frame(axes, label, targets, bottom), *marks]
    means = {mean.name: mean.color for _, found in rows for mean in found}
    legend = tag("ul", *(_key(name, color) for name, color in means.items()), class_="legend")
    numbers = [(name, mean.name, _with_half(mean.value, mean.half)) for name, found in rows for mean in found]
    about = "; ".join(f"{name}, {of}: {value}" for name, of, value in numbers)
    table_of = table(["", "of", label], numbers, text_columns=2)
    return _figure(title, f"{label}. {about}", body, legend, table_of, bottom + 40)


def _forest_row(axes: Axes, name: str, means: Sequence[Mean], top: float, label: str) -> Iterator[Html]:
    yield tag("text", name, x=4, y=_p(top), class_="strong")
    low, high = axes.x
    for i, mean in enumerate(means):
        y = top + 14 + 15 * i
        half = mean.half or 0.0
        ends = [axes.at(min(max(mean.value + s * half, low), high), 0.0)[0] for s in (-1, 1)]
        inner = [tag("line", x1=_p(ends[0]), x2=_p(ends[1]), y1=_p(y), y2=_p(y), class_="error")]
        for value in mean.values if len(mean.values) > 1 else ():
            at = axes.at(value, 0.0)[0]
            inner.append(tag("line", x1=_p(at), x2=_p(at), y1=_p(y - 4), y2=_p(y + 4), class_="error"))
        about = tag("title", f"{name}, {mean.name}: {label} {_with_half(mean.value, mean.half)}")
        inner.append(tag("circle", about, cx=_p(axes.at(mean.value, 0.0)[0]), cy=_p(y), r=4.5, class_="mark"))
        yield tag("g", *inner, class_=color_class(mean.color))


def _forest_frame(axes: Axes, label: str, targets: Sequence[float], bottom: float) -> Html:
    pieces = []
    for value, kind in [*((v, "rule") for v in ticks(*axes.x)), *((v, "target") for v in (0.0, *targets))]:
        at = axes.at(value, 0.0)[0]
        pieces.append(tag("line", x1=_p(at), x2=_p(at), y1=4, y2=_p(bottom), class_=kind))
        if kind == "rule":
            pieces.append(tag("text", short(value), x=_p(at), y=_p(bottom + 16), text_anchor="middle"))
    middle = (axes.at(axes.x[0], 0.0)[0] + axes.at(axes.x[1], 0.0)[0]) / 2
    pieces.append(tag("text", label, x=_p(middle), y=_p(bottom + 34), text_anchor="middle", class_="strong"))
    return tag("g", *pieces, aria_hidden="true")


def short(value: float) -> str:
    """A number in few characters: 1,500; 25k; 3.1M."""
    size = abs(value)
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            factor = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}[unit]
            return f"{value / factor:.4g}{unit}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def signed(difference: float) -> str:
    """A difference of losses with its sign; what rounds to nothing has none."""
    text = f"{difference:+.3f}"
    return text if float(text) else "0.000"


def ticks(low: float, high: float, number: int = _TICKS) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``number`` of them."""
    rough = (high - low) / max(1, number)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    whole = [10.0**p for p in powers if low * 0.999 <= 10.0**p <= high * 1.001]
    finer = [m * 10.0**p for p in powers for m in (1, 2, 5) if low * 0.999 <= m * 10.0**p <= high * 1.001]
    return whole if len(whole) > 2 else finer


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _range(values: Sequence[float], room: float) -> Point:
    """From the lowest to the highest value, with a share of ``room`` on both sides."""
    found = [v for v in values if math.isfinite(v)]
    low, high = min(found), max(found)
    if low == high:
        pad = abs(low) * 0.05 or 1.0
        return low - pad, high + pad
    return low - room * (high - low), high + room * (high - low)


def _frame(axes: Axes, x_label: str, y_label: str) -> Html:
    """Rules with their numbers, the two axes, and what they are of."""
    left, bottom = axes.at(axes.x[0], axes.y[0])
    right, _ = axes.at(axes.x[1], axes.y[1])
    pieces = [tag("text", y_label, x=4, y=14, class_="strong")]
    for y in ticks(*axes.y):
        _, at = axes.at(axes.x[0], y)
        pieces.append(tag("line", x1=_p(left), x2=_p(right), y1=_p(at), y2=_p(at), class_="rule"))
        pieces.append(tag("text", short(y), x=_p(left - 7), y=_p(at + 4), text_anchor="end"))
    for x, label in axes.x_ticks or [(x, short(x)) for x in (_log_ticks if axes.log_x else ticks)(*axes.x)]:
        at, _ = axes.at(x, axes.y[0])
        pieces.append(tag("line", x1=_p(at), x2=_p(at), y1=_p(bottom), y2=_p(bottom + 4), class_="axis"))
        pieces.append(tag("text", label, x=_p(at), y=_p(bottom + 18), text_anchor="middle"))
    pieces.append(tag("line", x1=_p(left), x2=_p(right), y1=_p(bottom), y2=_p(bottom), class_="axis"))
    middle = (left + right) / 2
    pieces.append(tag("text", x_label, x=_p(middle), y=_p(bottom + 37), text_anchor="middle", class_="strong"))
    return tag("g", *pieces, aria_hidden="true")


def _clip(name: str, axes: Axes) -> Html:
    (left, bottom), (right, top) = axes.at(axes.x[0], axes.y[0]), axes.at(axes.x[1], axes.y[1])
    room = 6  # for markers at the edge
    area = tag(
        "rect",
        x=_p(left - room),
        y=_p(top - room),
        width=_p(right - left + 2 * room),
        height=_p(bottom - top + 2 * room),
    )
    return tag("clipPath", area, id=name)


def _line(axes: Axes, line: Line, x_label: str, y_label: str) -> Iterator[Html]:
    inner: list[Html] = []
    if line.band:
        edge = [axes.at(x, high) for x, _, high in line.band] + [axes.at(x, low) for x, low, _ in reversed(line.band)]
        inner.append(tag("path", d=f"{_path(edge)}Z", class_="band"))
    for x, low, high in line.errors:
        (at, first), (_, last) = axes.at(x, low), axes.at(x, high)
        inner.append(tag("line", x1=_p(at), x2=_p(at), y1=_p(first), y2=_p(last), class_="error"))
    kind = " ".join(word for word in ("curve", line.dash, "thin" * line.thin) if word)
    inner.append(tag("path", tag("title", line.name), d=_path([axes.at(*point) for point in line.points]), class_=kind))
    if line.marked or len(line.points) == 1:
        inner += [
            _marker(axes, point, f"{line.name}: {y_label} {point[1]:.4g} at {x_label} {short(point[0])}")
            for point in line.points
        ]
    yield tag("g", *inner, class_=color_class(line.color))


def _marker(axes: Axes, point: Point, text: str, radius: float = 3.2) -> Html:
    x, y = axes.at(*point)
    return tag("circle", tag("title", text), cx=_p(x), cy=_p(y), r=radius, class_="mark")


def _target(axes: Axes, name: str, y: float) -> Html:
    (left, at), (right, _) = axes.at(axes.x[0], y), axes.at(axes.x[1], y)
    rule = tag("line", x1=_p(left), x2=_p(right), y1=_p(at), y2=_p(at), class_="target")
    return tag("g", rule, tag("text", name, x=_p(right), y=_p(at - 5), text_anchor="end"))


def _label(axes: Axes, dot: Dot, at: float) -> Html:
    x, _ = axes.at(dot.x, dot.y)
    return tag("text", dot.name, x=_p(x + 11), y=_p(at + 4), class_="strong")


def _dot(axes: Axes, dot: Dot, x_label: str, y_label: str) -> Html:
    inner = []
    if len(dot.trail) > 1:
        inner.append(tag("path", d=_path([axes.at(*point) for point in dot.trail]), class_="curve thin"))
    for half, horizontal in ((dot.half_x, True), (dot.half_y, False)):
        if half:
            ends = [axes.at(dot.x + s * half * horizontal, dot.y + s * half * (not horizontal)) for s in (-1, 1)]
            inner.append(tag("path", d=_path(ends), class_="error"))
    about = f"{dot.name}: {x_label} {_with_half(dot.x, dot.half_x)}, {y_label} {_with_half(dot.y, dot.half_y)}"
    inner.append(_marker(axes, (dot.x, dot.y), about, 5.5))
    return tag("g", *inner, class_=color_class(dot.color))


def _apart(places: Sequence[float], least: float = 14) -> list[float]:
    """The same heights, pushed down, and up at the axis, where two would stand less than ``least`` apart."""
    moved, last = dict[int, float](), -math.inf
    for i in sorted(range(len(places)), key=lambda i: places[i]):
        last = moved[i] = max(places[i], last + least)
    highest = _HEIGHT - _BOTTOM - 6.0  # above the axis
    for i in sorted(moved, key=lambda i: -moved[i]):
        highest = moved[i] = min(moved[i], highest)
        highest -= least
    return [moved[i] for i in range(len(places))]


def _bar(bar: Bar, left: float, top: float, height: float, scale: float, form: Callable[[float], str]) -> list[Html]:
    middle = top + height / 2 + 4
    pieces, x = [tag("text", bar.name, x=_p(left - 8), y=_p(middle), text_anchor="end", class_="strong")], left
    for name, size, color in bar.parts:
        about = tag("title", f"{bar.name}, {name}: {form(size)}")
        mark = tag("rect", about, x=_p(x), y=_p(top), width=_p(size * scale), height=height, class_="mark")
        pieces.append(tag("g", mark, class_=color_class(color)))
        x += size * scale
    total = sum(size for _, size, _ in bar.parts)
    return [*pieces, tag("text", form(total), x=_p(x + 7), y=_p(middle))]


def _legend(entries: Sequence[tuple[str, str, str, bool]]) -> Html:
    """(name, colour, dash, whether it has markers) of each line."""
    return tag("ul", *(_entry(*entry) for entry in entries), class_="legend")


def _entry(name: str, color: str, dash: str, marked: bool) -> Html:
    parts = [tag("path", d="M1 6H25", class_=f"curve {dash}".strip())]
    parts += [tag("circle", cx=13, cy=6, r=3.2, class_="mark")] * marked
    swatch = tag("svg", tag("g", *parts, class_=color_class(color)), viewBox="0 0 26 12", aria_hidden="true")
    return tag("li", swatch, tag("span", name))


def _key(name: str, color: str) -> Html:
    square = tag("g", tag("rect", x=0, y=0, width=12, height=12, class_="mark"), class_=color_class(color))
    return tag("li", tag("svg", square, viewBox="0 0 12 12", aria_hidden="true"), tag("span", name))


def _figure(
    title: str, about: str, body: Sequence[Html], legend: Html | str, numbers: Html, height: float = _HEIGHT
) -> Html:
    name, description = new_id("title"), new_id("about")
    picture = tag(
        "svg",
        tag("title", title, id=name),
        tag("desc", about, id=description),
        *body,
        class_="plot",
        viewBox=f"0 0 {_WIDTH} {_p(height)}",
        role="img",
        aria_labelledby=f"{name} {description}",
    )
    caption = tag("figcaption", tag("strong", title))
    return tag("figure", caption, picture, legend, details("numbers", numbers))


def _described(lines: Sequence[Line], x_label: str, y_label: str) -> str:
    def of(line: Line) -> str:
        (x, y), (last_x, last_y) = line.points[0], line.points[-1]
        return f"{line.name}: {y:.4g} at {short(x)}, {last_y:.4g} at {short(last_x)}"

    return f"{y_label} over {x_label}. " + "; ".join(map(of, lines))


def _with_half(value: float, half: float | None) -> str:
    return f"{value:.3f}" if half is None else f"{value:.3f} ± {half:.3f}"


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_p(x)} {_p(y)}" for x, y in points)


def _p(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
