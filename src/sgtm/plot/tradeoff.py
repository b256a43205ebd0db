"""Retain loss against forget loss: a method is better the further up and left it stands."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sgtm.config import ConfigError
from sgtm.plot.picture import save
from sgtm.plot.records import RunRecords, chosen_domains

# One colour a method, the same in every figure; dark enough on white, and told apart by colour-blind readers.
COLORS = {
    "none": "#6b6b6b",
    "filter": "#0072b2",
    "filter_perfect": "#56b4e9",
    "gradient_routing": "#d55e00",
    "activation_masking": "#cc79a7",
    "sgtm": "#009e73",
    "gram": "#44aa99",
    "conditional": "#882255",
    "token_masking": "#332288",
    "unlikelihood": "#999933",
    "strict_filter": "#003f5c",
    "rmu": "#a3195b",
    "ascent": "#7a4b2a",
    "maxent": "#6f7fb5",
    "npo": "#c9a227",
    "undo": "#4d5d26",
}
OTHER = "#b8860b"
_WIDE, _HIGH = 0.3, 0.05  # of a name, as shares of what the points span


def tradeoff(
    runs: Sequence[RunRecords], out: Path, variant: str = "calibrated", retain: str = "retain", forget: str = ""
) -> None:
    """Draw each run's last point and, where it was evaluated more than once, the way there.

    Args:
        variant: intact, ablated or calibrated losses.
        retain: the category on the x axis (retain, adjacent, or by topic retain/Culture).
        forget: the domain on the y axis, or ``mean``: the mean of all domains' losses. May be left out where all runs
            have the same one.

    Raises:
        ConfigError: no run, one without such losses, or several domains and none chosen.
    """
    if not runs:
        raise ConfigError("no runs to plot; give folders written by `sgtm train`")
    domains = chosen_domains(runs, forget)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    ends = [_draw(axes, run, variant, retain, domains) for run in runs]
    _label(axes, [run.name for run in runs], ends)
    axes.set_xlabel(f"{retain} loss, {variant} (nats per token) → better to the left")
    shown = domains[0] if len(domains) == 1 else f"mean of {', '.join(domains)}"
    axes.set_ylabel(f"{shown} loss, {variant} (nats per token) → better above")
    axes.margins(0.18, 0.12)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, out)


def _draw(axes: Any, run: RunRecords, variant: str, retain: str, domains: tuple[str, ...]) -> tuple[float, float]:
    x, *forgotten = (dict(run.curve(category, variant)) for category in (retain, *domains))
    steps = sorted(x.keys() & set.intersection(*(set(y) for y in forgotten)))
    if not steps:
        wanted = ", ".join((retain, *domains))
        raise ConfigError(f"{run.folder} has no {variant} losses of {wanted}; train it to its end")
    name = run.name.partition("-")[0]  # in a sweep the seed comes after it
    color = COLORS.get(name, COLORS.get(run.config["method"], OTHER))
    xs, ys = [x[s] for s in steps], [sum(y[s] for y in forgotten) / len(forgotten) for s in steps]
    axes.plot(xs, ys, color=color, linewidth=1.2, alpha=0.6)
    axes.plot(xs[-1], ys[-1], "o", color=color, markersize=9)
    return xs[-1], ys[-1]


def _span(values: Sequence[float]) -> float:
    """From the lowest to the highest; 1 where they differ by rounding at most."""
    span = max(values) - min(values)
    return span if span > 1e-9 * max(map(abs, values)) else 1.0


def _label(axes: Any, names: list[str], ends: list[tuple[float, float]]) -> None:
    """A name for the runs that differ by their seed, which lines join to their mean; it stands beside them, where no
    other name and no other run's point does."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for name, end in zip(names, ends, strict=True):
        groups.setdefault(re.sub(r"-seed\d+$", "", name), []).append(end)
    width, height = (_span(column) for column in zip(*ends, strict=True))
    taken: list[tuple[float, float]] = []
    for name, points in sorted(groups.items(), key=lambda group: fmean(y for _, y in group[1])):
        middle = fmean(x for x, _ in points), fmean(y for _, y in points)
        x, y = max(x for x, _ in points), middle[1]
        others = [end for end in ends if end not in points]
        while any(abs(x - a) < _WIDE * width and abs(y - b) < _HIGH * height for a, b in taken) or any(
            0 < a - x < _WIDE * width and abs(y - b) < 0.8 * _HIGH * height for a, b in others
        ):
            y += 0.01 * height
        taken.append((x, y))
        for point in points if len(points) > 1 else ():
            axes.plot(*zip(middle, point, strict=True), color="#6b6b6b", linewidth=0.7, zorder=1)
        if y > middle[1]:
            axes.plot(*zip(middle, (x, y), strict=True), color="#9a9a9a", linewidth=0.6, zorder=1)
        axes.annotate(name, (x, y), (11, 0), textcoords="offset points", fontsize=10, va="center")
