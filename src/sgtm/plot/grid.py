"""Loss over the labeller's true and false positive rates, of one method or of the difference between two."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from sgtm.config import ConfigError, nearest
from sgtm.interval import mean_interval
from sgtm.plot.picture import save
from sgtm.plot.records import RunRecords, series

_ALONG = ("labels.undiscovered", "labels.tpr", "labels.fpr")
Rates = tuple[float, float]  # true, false positive rate
Cells = dict[Rates, dict[int, float]]  # losses by seed


def grid(
    runs: Sequence[RunRecords],
    out: Path,
    method: str = "sgtm",
    against: str | None = None,
    category: str = "forget",
    variant: str = "calibrated",
) -> None:
    """Draw the loss of ``method`` at each pair of rates, or how far it is above that of ``against``.

    A cell has the mean over seeds, for a difference over the seeds that both have, and half its 95 % t interval. Cells
    without a finished run stay empty.

    Args:
        category: losses on this category.
        variant: intact, ablated or calibrated losses.

    Raises:
        ConfigError: a method with no finished run, or in several settings.
    """
    groups = series(runs, _ALONG)
    cells = _cells(groups, method, category, variant)
    what = f"{category} loss of {method}, {variant} (nats per token)"
    if against is not None:
        cells = _differences(cells, _cells(groups, against, category, variant))
        what = f"{category} loss, {variant}: {method} above {against} (nats per token)"
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.6, 4.8), layout="constrained")
    _draw(figure, axes, cells, what, is_difference=against is not None)
    save(figure, out)


def _cells(groups: dict[str, list[RunRecords]], method: str, category: str, variant: str) -> Cells:
    names = [name for name, runs in groups.items() if method in (name, runs[0].config["method"])]
    if not names:
        raise ConfigError(f"no run of method {method!r}{nearest(method, groups)} (there are: {', '.join(groups)})")
    name = method if method in groups else names[0]
    if len(names) > 1 and name != method:
        found = shorten("; ".join(names), 200, placeholder=" ...")
        raise ConfigError(f"{method} comes in {len(names)} settings ({found}); give the runs of one, or its whole name")
    cells: Cells = {}
    for run in groups[name]:
        if (loss := run.final(category, variant)) is not None:
            cells.setdefault(run.rates, {})[run.config["seed"]] = loss
    known = (*groups[name][0].domains, "adjacent", "retain")
    if category not in known:
        raise ConfigError(
            f"{category!r} is no category of these runs{nearest(category, known)} (known: {', '.join(known)}); "
            "choose one with --category"
        )
    if not cells:
        raise ConfigError(f"no run of {method} has {variant} losses of {category} at its last step; train to the end")
    return cells


def _differences(cells: Cells, others: Cells) -> Cells:
    shared = {rates: losses.keys() & others.get(rates, {}).keys() for rates, losses in cells.items()}
    found = {r: {seed: cells[r][seed] - others[r][seed] for seed in seeds} for r, seeds in shared.items() if seeds}
    if not found:
        raise ConfigError("the two methods have no finished run of the same rates and seed; train both on one grid")
    return found


def _draw(figure: Any, axes: Any, cells: Cells, what: str, is_difference: bool) -> None:
    rows, columns = (sorted({rates[i] for rates in cells}) for i in (0, 1))
    values = np.full((len(rows), len(columns)), np.nan)
    for (tpr, fpr), losses in cells.items():
        values[rows.index(tpr), columns.index(fpr)] = np.mean(list(losses.values()))
    largest = float(np.nanmax(np.abs(values))) or 1.0
    colors = {"cmap": "RdBu", "vmin": -largest, "vmax": largest} if is_difference else {"cmap": "viridis"}
    axes.set_facecolor("#eeeeee")
    image = axes.imshow(values, origin="lower", aspect="auto", **colors)
    for (tpr, fpr), losses in cells.items():
        y, x = rows.index(tpr), columns.index(fpr)
        color = "black" if np.mean(image.to_rgba(values[y, x])[:3]) > 0.5 else "white"
        axes.text(x, y, _text(losses, is_difference), color=color, ha="center", va="center")
    axes.set_xticks(range(len(columns)), [f"{rate:g}" for rate in columns])
    axes.set_yticks(range(len(rows)), [f"{rate:g}" for rate in rows])
    axes.set_xlabel("false positive rate (share of the retain data labelled forget)")
    axes.set_ylabel("true positive rate (share of the forget data)")
    figure.colorbar(image, ax=axes).set_label(what)


def _text(losses: dict[int, float], is_difference: bool) -> str:
    mean, half = mean_interval(list(losses.values()))
    number = f"{mean:+.2f}" if is_difference else f"{mean:.2f}"
    return f"{number}\n(1 seed)" if half is None else f"{number}\n±{half:.2f}"
