"""The compute penalty: how much less compute an ordinary model would need for the loss that a run has.

Losses of models without a filter follow l = a C^-b, fitted for each category over models of several sizes, where C is
the compute that a model was trained with (FLOPs, 6 x parameters x tokens). A loss l is that of an ordinary model of
compute C(l) = (a / l)^(1 / b), and the penalty of a run of compute C is 1 - C(l) / C: on the domain it should be near
1, on everything else near 0 (arXiv:2512.05648, section 5).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from sgtm.config import ConfigError, write
from sgtm.plot.picture import save
from sgtm.plot.records import RunRecords, read_run, series
from sgtm.plot.tradeoff import COLORS, OTHER
from sgtm.records import METRICS

_COVERAGE = (2.5, 97.5)  # percent
_LARGEST = np.log(np.finfo(float).max)
_FARTHEST = 1e4  # times a run's compute: equivalents beyond are told as this


@dataclass(frozen=True)
class Law:
    """l = a C^-b.

    Args:
        worst, best: the losses between which it was fitted; beyond them it is a guess.
    """

    a: float
    b: float
    worst: float
    best: float

    def loss(self, compute: float) -> float:
        return float(self.a * compute**-self.b)

    def compute(self, loss: float) -> float:
        """FLOPs of an ordinary model of this ``loss``; infinite where losses hardly fall with compute."""
        power = np.log(self.a / loss) / self.b
        return float(np.exp(power)) if power < _LARGEST else float("inf")


@dataclass(frozen=True)
class Penalty:
    """What one method pays on one category.

    Args:
        loss: nats per token, the mean over its runs.
        compute: FLOPs that the runs took.
        equivalent: FLOPs of an ordinary model of that loss.
        interval: 95 %, of ``penalty``; percentile bootstrap over the seeds of runs and of ordinary models. None for a
            run of one seed: nobody knows how far another would be off.
        extrapolated: the loss lies outside those that the law was fitted on.
    """

    method: str
    category: str
    loss: float
    compute: float
    equivalent: float
    penalty: float
    interval: tuple[float, float] | None
    extrapolated: bool


def fit(compute: Sequence[float], losses: Sequence[float]) -> Law:
    """The law of least squares in log l over log C.

    Raises:
        ConfigError: less than two computes, or losses that do not fall with it.
    """
    if len(set(compute)) < 2:
        raise ConfigError(
            f"a law needs models without a filter of several sizes, and these have {len(set(compute))} compute; give "
            "runs of at least two, better four"
        )
    slope, intercept = np.polyfit(np.log(compute), np.log(losses), 1)
    if slope >= 0:
        raise ConfigError(f"losses do not fall with compute (exponent {-slope:.3g}); train the models to their ends")
    return Law(float(np.exp(intercept)), float(-slope), max(losses), min(losses))


def penalties(
    ordinary: Sequence[RunRecords],
    runs: Sequence[RunRecords],
    categories: Sequence[str],
    variant: str = "calibrated",
    draws: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Law], list[Penalty]]:
    """The law of each category, and what each method pays on it.

    Args:
        ordinary: runs without a filter, of several sizes, and seeds.
        runs: those that are judged; runs that differ by their seed alone are one method.
        draws: of the bootstrap.

    Raises:
        ConfigError: a run without such losses at its end, or ordinary models that no law can be fitted to.
    """
    laws, found = {}, []
    rng = np.random.default_rng(seed)
    sizes = list(series(ordinary, ()).values())
    for category in categories:
        points = [[(_compute(run), _loss(run, category, variant)) for run in size] for size in sizes]
        laws[category] = _law(points)
        resampled = [_try_law([_drawn(size, rng) for size in points]) for _ in range(draws)]
        for method, members in series(runs, ()).items():
            losses = [_loss(run, category, variant) for run in members]
            found.append(_penalty(method, category, losses, _compute(members[0]), laws[category], resampled, rng))
    return laws, found


def _penalty(
    method: str,
    category: str,
    losses: list[float],
    compute: float,
    law: Law,
    resampled: list[Law | None],
    rng: np.random.Generator,
) -> Penalty:
    def of(law: Law, loss: float) -> float:
        return min(law.compute(loss), _FARTHEST * compute)

    loss, interval = float(np.mean(losses)), None
    drawn = [of(other, float(np.mean(_drawn(losses, rng)))) for other in resampled if other is not None]
    if drawn and len(losses) > 1:
        high, low = (1 - float(x) / compute for x in np.percentile(drawn, _COVERAGE))
        interval = low, high
    equivalent = of(law, loss)
    outside = not law.best <= loss <= law.worst
    return Penalty(method, category, loss, compute, equivalent, 1 - equivalent / compute, interval, outside)


def _law(points: Sequence[Sequence[tuple[float, float]]]) -> Law:
    flat = [point for size in points for point in size]
    return fit([c for c, _ in flat], [loss for _, loss in flat])


def _try_law(points: Sequence[Sequence[tuple[float, float]]]) -> Law | None:
    try:
        return _law(points)
    except ConfigError:  # a draw whose losses do not fall
        return None


def _drawn(values: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    return [values[i] for i in rng.integers(len(values), size=len(values))]


def _loss(run: RunRecords, category: str, variant: str) -> float:
    loss = run.final(category, variant)
    if loss is None:
        known = sorted({r["category"] for r in run.records if r["split"] == "test"})
        raise ConfigError(f"{run.folder} has no {variant} loss of {category} at its last step (categories: {known})")
    return loss


def _compute(run: RunRecords) -> float:
    """FLOPs that the run's model took, to three digits: runs of one size differ by a few tokens."""
    return float(f"{_flops(run):.3g}")


def _flops(run: RunRecords) -> float:
    """Of a model that was unlearned with those of the run that it was before."""
    most = max((r.get("flops") or 0 for r in run.records), default=0)
    if not isinstance(most, int | float) or most <= 0:
        raise ConfigError(f"{run.folder} has no record of the FLOPs it took; leave it out, or train it anew")
    if (start := run.config.get("start")) is None:
        return most
    folder = Path(str(start))
    folder = folder.parent if folder.name == "model" else folder
    if not (folder / METRICS).is_file():
        raise ConfigError(
            f"{run.folder} was unlearned from {start}, where no run tells the FLOPs that its training took; call this "
            "from the folder that path starts in, or leave it out"
        )
    return most + _flops(read_run(folder))


def categories_of(runs: Sequence[RunRecords]) -> list[str]:
    """The categories that all runs have, in the order of the first; parts by topic left out."""
    common = set.intersection(*({r["category"] for r in run.records if r["split"] == "test"} for run in runs))
    return [c for c in dict.fromkeys(r["category"] for r in runs[0].records) if c in common and "/" not in c]


def table(laws: dict[str, Law], found: Sequence[Penalty]) -> Table:
    """A row for each method and category."""
    shown = Table(title="compute penalty, 95 % bootstrap interval", title_justify="left")
    for name in ("method", "category", "loss", "compute", "as an ordinary model of", "penalty"):
        shown.add_column(name, justify="left" if name in ("method", "category") else "right")
    for p in found:
        mark = " *" if p.extrapolated else ""
        between = "" if p.interval is None else " ({:.1f}, {:.1f})".format(*(100 * end for end in p.interval))
        shown.add_row(
            p.method,
            p.category,
            f"{p.loss:.3f}",
            f"{p.compute:.3g}",
            f"{p.equivalent:.3g}{mark}",
            f"{100 * p.penalty:.1f} %{between}",
        )
    laws_told = "; ".join(f"{c}: {law.a:.4g} C^-{law.b:.4g}" for c, law in laws.items())
    shown.caption = f"{laws_told}\n* outside the losses that the law was fitted on: extrapolated"
    return shown


def write_penalties(laws: dict[str, Law], found: Sequence[Penalty], out: Path) -> None:
    """Both as JSON."""
    about = {"laws": {c: asdict(law) for c, law in laws.items()}, "penalties": [asdict(p) for p in found]}
    write(out, json.dumps(about, indent=1) + "\n")


def penalty(ordinary: Sequence[RunRecords], runs: Sequence[RunRecords], out: Path, variant: str = "calibrated") -> None:
    """Draw each category's law with the ordinary models on it, and the runs beside it.

    A run stands at its own compute; the dashed line goes to the ordinary model of its loss.

    Raises:
        ConfigError: see ``penalties``.
    """
    categories = categories_of([*ordinary, *runs])
    laws, found = penalties(ordinary, runs, categories, variant, draws=0)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, sides = plt.subplots(
        1, len(categories), figsize=(4.2 * len(categories), 4.2), layout="constrained", squeeze=False
    )
    for axes, category in zip(sides[0], categories, strict=True):
        of_category = [p for p in found if p.category == category]
        _draw(axes, laws[category], [(_compute(r), _loss(r, category, variant)) for r in ordinary], of_category)
        axes.set_title(category, loc="left", fontsize=11)
        axes.set_ylabel(f"loss, {variant} (nats per token)")
    save(figure, out)


def _draw(axes: Any, law: Law, points: list[tuple[float, float]], found: list[Penalty]) -> None:
    from matplotlib.ticker import LogLocator

    computes = [c for c, _ in points]
    ends = [*computes, *(p.equivalent for p in found), *(p.compute for p in found)]
    line = np.geomspace(min(ends) / 1.2, max(ends) * 1.2, 100)
    fitted = (line >= min(computes)) & (line <= max(computes))
    axes.plot(line, [law.loss(c) for c in line], ":", color=COLORS["none"], linewidth=1)
    axes.plot(line[fitted], [law.loss(c) for c in line[fitted]], color=COLORS["none"], linewidth=1.6)
    axes.plot(*zip(*points, strict=True), "o", color=COLORS["none"], markersize=5, label="no filter")
    for p in found:
        color = COLORS.get(p.method, OTHER)
        axes.plot([p.compute, p.equivalent], [p.loss, p.loss], "--", color=color, linewidth=1)
        axes.plot(p.compute, p.loss, "s", color=color, markersize=7, label=f"{p.method} ({100 * p.penalty:.0f} %)")
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))  # a decade or less is usual: all nine would overlap
    axes.set_xlabel("compute (FLOPs)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
