"""Retain loss against forget loss: a method is better the further up and left it stands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgtm.config import ConfigError
from sgtm.plot.records import RunRecords

# One colour a method, the same in every figure; dark enough on white, and told apart by colour-blind readers.
COLORS = {
    "none": "#6b6b6b",
    "filter": "#0072b2",
    "filter_perfect": "#56b4e9",
    "gradient_routing": "#d55e00",
    "activation_masking": "#cc79a7",
    "sgtm": "#009e73",
}
_OTHER = "#b8860b"


def tradeoff(runs: Sequence[RunRecords], out: Path, variant: str = "calibrated", retain: str = "retain") -> None:
    """Draw each run's last point and, where it was evaluated more than once, the way there.

    Args:
        variant: intact, ablated or calibrated losses.
        retain: the category on the x axis (retain or adjacent).

    Raises:
        ConfigError: no run, or one without such losses.
    """
    if not runs:
        raise ConfigError("no runs to plot; give folders written by `sgtm train`")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    ends = [_draw(axes, run, variant, retain) for run in runs]
    _label(axes, [run.name for run in runs], ends)
    axes.set_xlabel(f"{retain} loss, {variant} (nats per token) → better to the left")
    axes.set_ylabel(f"forget loss, {variant} (nats per token) → better above")
    axes.margins(0.18, 0.12)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=160)
    plt.close(figure)


def _draw(axes: Any, run: RunRecords, variant: str, retain: str) -> tuple[float, float]:
    x, y = (dict(run.curve(category, variant)) for category in (retain, "forget"))
    steps = sorted(x.keys() & y.keys())
    if not steps:
        raise ConfigError(f"{run.folder} has no {variant} losses of {retain} and forget; train it to its end")
    name = run.name.partition("-")[0]  # in a sweep the seed comes after it
    color = COLORS.get(name, COLORS.get(run.config["method"], _OTHER))
    xs, ys = [x[s] for s in steps], [y[s] for s in steps]
    axes.plot(xs, ys, color=color, linewidth=1.2, alpha=0.6)
    axes.plot(xs[-1], ys[-1], "o", color=color, markersize=9)
    return xs[-1], ys[-1]


def _label(axes: Any, names: list[str], ends: list[tuple[float, float]]) -> None:
    """Names beside the points, pushed apart where points stand close together."""
    span = max(y for _, y in ends) - min(y for _, y in ends) or 1.0
    taken: list[tuple[float, float]] = []
    for (x, y), name in sorted(zip(ends, names, strict=True), key=lambda item: item[0][1]):
        place = y
        while any(abs(place - other) < 0.05 * span for _, other in taken):
            place += 0.01 * span
        taken.append((x, place))
        axes.annotate(name, (x, place), (11, 0), textcoords="offset points", fontsize=10, va="center")
