"""Loss against the share of forget data that nobody labelled: a method is better the less its forget loss falls."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from sgtm.config import ConfigError
from sgtm.interval import mean_interval
from sgtm.plot.picture import save
from sgtm.plot.records import RunRecords, chosen_domains, series
from sgtm.plot.tradeoff import COLORS

ALONG = ("labels.undiscovered", "labels.tpr")  # a share may be given as either
_MORE = ("#b8860b", "#117733", "#aa4466", "#6699cc")  # where a method has more than one line
Lines = dict[str, dict[float, list[float]]]  # losses, one a seed, by series and share


def undiscovered(runs: Sequence[RunRecords], out: Path, variant: str = "calibrated", forget: str = "") -> None:
    """Draw forget and retain loss against the undiscovered share: the mean over seeds and its 95 % t interval.

    Shares stand side by side at equal distances, so that 0 has a place like any other. Runs that have not ended are
    left out; a share that a series lacks interrupts its line.

    Args:
        variant: intact, ablated or calibrated losses.
        forget: the domain on the left where there are several, or ``mean``: the mean of all domains' losses.

    Raises:
        ConfigError: no run has such losses at its end, or several domains and none chosen.
    """
    domains, groups = chosen_domains(runs, forget), series(runs, ALONG)
    lines = [losses_by_share(groups, categories, variant) for categories in (domains, ("retain",))]
    names = (domains[0] if len(domains) == 1 else f"mean {', '.join(domains)}", "retain")
    shares = sorted({share for of in lines[0].values() for share in of})
    if not shares:
        raise ConfigError(f"none of the {len(runs)} runs has {variant} losses at its last step; train to the end")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, sides = plt.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")
    for axes, of_side, what, better in zip(sides, lines, names, ("above", "below"), strict=True):
        others = cycle(_MORE)
        for name, losses in of_side.items():
            _draw(axes, name, losses, shares, COLORS.get(name) or next(others))
        _dress(axes, shares)
        axes.set_ylabel(f"{what} loss, {variant} (nats per token) → better {better}")
    sides[0].legend(frameon=False, title="mean, 95 % t interval", alignment="left")
    save(figure, out)


def losses_by_share(groups: dict[str, list[RunRecords]], categories: Sequence[str], variant: str) -> Lines:
    """The final losses of each series by undiscovered share, one a seed."""
    lines: Lines = {}
    for name, runs in groups.items():
        for run in runs:
            if (loss := run.final_mean(categories, variant)) is not None:
                lines.setdefault(name, {}).setdefault(round(1 - run.rates[0], 12), []).append(loss)
    return lines


def _draw(axes: Any, name: str, losses: dict[float, list[float]], shares: list[float], color: str) -> None:
    found = [mean_interval(losses[share]) if share in losses else (float("nan"), None) for share in shares]
    means = [mean for mean, _ in found]
    counts = sorted({len(values) for values in losses.values()})
    seeds = f"{counts[0]} seed{'s' * (counts[0] > 1)}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    places, halves = np.arange(len(shares)), np.array([np.nan if half is None else half for _, half in found])
    axes.plot(places, means, "o-", color=color, markersize=5, linewidth=1.6, label=f"{name} ({seeds})")
    axes.errorbar(places, means, halves, fmt="none", color=color, alpha=0.5, linewidth=0.9)  # where no band is
    axes.fill_between(places, np.array(means) - halves, np.array(means) + halves, color=color, alpha=0.13, linewidth=0)


def _dress(axes: Any, shares: list[float]) -> None:
    means = np.concatenate([line.get_ydata() for line in axes.get_lines() if len(line.get_xdata()) == len(shares)])
    room = 0.4 * float(np.nanmax(means) - np.nanmin(means)) or 0.1
    low, high = axes.get_ylim()  # the interval of two seeds would dwarf all lines; it runs out of the frame instead
    axes.set_ylim(max(low, np.nanmin(means) - room), min(high, np.nanmax(means) + room))
    axes.set_xticks(range(len(shares)), [f"{100 * share:.4g}" for share in shares])
    axes.set_xlabel("undiscovered share of the forget data (%; not to scale)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
