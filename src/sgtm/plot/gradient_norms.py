"""How hard single examples push which parameters (above), and in which direction (below); see ``sgtm gradients``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgtm.config import ConfigError, check_shape
from sgtm.plot.picture import save
from sgtm.records import GRADIENTS, read_records

# Of categories and of directions alike: retain is blue, domains take the others in turn.
_RETAIN, _ADJACENT, _DOMAINS = "#0072b2", "#009e73", ("#d55e00", "#cc79a7", "#b8860b", "#6b6b6b")
_DROPPED = 0.01  # of the values, the largest
_NOT_DOMAINS = ("retain", "joint", "all")
_UNMASKED = " unmasked"
Values = NDArray[np.float64]
_RECORD = {"step": int, "category": str, "part": str, "relative_norm": (float, None), "cosines": dict}


@dataclass(frozen=True)
class GradientRecords:
    """One run's gradients: a record an example, part and step."""

    name: str
    records: list[dict[str, Any]]

    @property
    def steps(self) -> list[int]:
        return sorted({r["step"] for r in self.records})

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, in the partition's order."""
        return tuple(dict.fromkeys(r["part"] for r in self.records if r["part"] not in _NOT_DOMAINS))

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(r["category"] for r in self.records))

    def norms(self, category: str, part: str) -> Values:
        """(examples,) relative gradient norms at the last step."""
        last = self.steps[-1]
        return _defined(r["relative_norm"] for r in self._of((category,), part) if r["step"] == last)

    def cosines(self, categories: Sequence[str], part: str, direction: str, step: int) -> Values:
        """(examples,) cosines with ``direction``; "own" is that of the example's category. Empty where undefined."""
        found = (r for r in self._of(categories, part) if r["step"] == step)
        return _defined(r["cosines"].get(direction.replace("own", r["category"], 1)) for r in found)

    def _of(self, categories: Sequence[str], part: str) -> Iterator[dict[str, Any]]:
        return (r for r in self.records if r["category"] in categories and r["part"] == part)


def read_gradients(path: Path) -> GradientRecords:
    """Read the gradients of the run in the folder ``path``, or in the file of records ``path``.

    Raises:
        ConfigError: no records there.
    """
    file = path / GRADIENTS if path.is_dir() else path
    records = read_records(file, _RECORD)
    if not records:
        raise ConfigError(f"{path} has no records of gradients; write them with `sgtm gradients RUN`")
    for record in records:
        check_shape(list(record["cosines"].values()), [(float, None)], f"{file}: cosines", "write the file anew")
    return GradientRecords(path.name if path.is_dir() else path.stem, records)


def gradient_norms(runs: Sequence[GradientRecords], out: Path) -> None:
    """Draw two rows for each run, one column for each domain's parameters, the retain parameters, and all.

    Above: densities of |gradient| / |parameters| at the last step by category of the examples, without the largest
    hundredth of each, medians dashed. Below: cosines of *unlabeled* examples of the removed domains (in a domain's
    column: of this one) with the mean gradients of labelled ones: median and middle half over the steps, or for each
    direction where there is one step alone.

    Raises:
        ConfigError: no run, or runs of different domains.
    """
    if not runs:
        raise ConfigError("no runs to plot; give folders in which `sgtm gradients` has written")
    if len({run.domains for run in runs}) > 1:
        shown = "; ".join(f"{run.name}: {', '.join(run.domains)}" for run in runs)
        raise ConfigError(f"the runs have different domains ({shown}); plot those apart")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    parts = (*runs[0].domains, "retain", "all")
    size = (3.4 * len(parts) + 2.2, 5.6 * len(runs))
    figure, grid = plt.subplots(2 * len(runs), len(parts), figsize=size, squeeze=False, layout="constrained")
    for above, below in zip(grid[::2], grid[1::2], strict=True):
        for upper, lower in zip(above, below, strict=True):
            upper.sharex(grid[0, 0])
            lower.sharey(below[0])
    for run, above, below in zip(runs, grid[::2], grid[1::2], strict=True):
        _draw_run(run, parts, above, below)
        above[0].set_ylabel(f"{run.name}, step {run.steps[-1]}\ndensity (per factor of 10)")
        below[0].set_ylabel(f"{run.name}\ncosine with unlabeled {_forget_of(run)}")
    for axes, part in zip(grid[0], parts, strict=True):
        axes.set_title("all parameters" if part == "all" else f"{part} parameters")
    _label_decades(grid[0, 0].xaxis)
    for axes in grid.flat:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, out)


def _draw_run(run: GradientRecords, parts: Sequence[str], above: Any, below: Any) -> None:
    for part, upper, lower in zip(parts, above, below, strict=True):
        for category in run.categories:
            _draw_density(upper, run.norms(category, part), category, _color(run, category))
        upper.set_xscale("log")
        upper.set_xlabel("|gradient| / |parameters| of one example")
        _draw_cosines(lower, run, part)
        lower.axhline(0, color="black", linewidth=0.8)
    for axes, title in ((above[-1], "examples"), (below[-1], "mean gradient of")):
        axes.legend(title=title, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _draw_density(axes: Any, values: Values, category: str, color: str) -> None:
    logs = np.log10(values[values > 0])
    if not len(logs):
        return
    axes.axvline(10 ** np.median(logs), color=color, linestyle="--", linewidth=1.2)
    x, density = _density(logs[logs <= np.quantile(logs, 1 - _DROPPED)])
    axes.plot(10**x, density, color=color, label=category)
    axes.fill_between(10**x, density, color=color, alpha=0.15, linewidth=0)


def _density(values: Values) -> tuple[Values, Values]:
    """A Gaussian kernel estimate with Silverman's bandwidth, at 200 points."""
    low, high = np.quantile(values, (0.25, 0.75))
    spread = min(values.std(), (high - low) / 1.34) or values.std() or 0.01
    width = 0.9 * spread * len(values) ** -0.2
    x = np.linspace(values.min() - 3 * width, values.max() + 3 * width, 200)
    kernels = np.exp(-0.5 * ((x[:, None] - values) / width) ** 2)
    return x, kernels.sum(1) / (len(values) * width * np.sqrt(2 * np.pi))


def _draw_cosines(axes: Any, run: GradientRecords, part: str) -> None:
    own = (part,) if part in run.domains else run.domains
    forget = _forget_of(run)
    for place, (direction, name, style) in enumerate(
        (
            ("own", f"labelled {forget}", "-"),
            ("own" + _UNMASKED, f"labelled {forget}, unmasked", ":"),
            ("retain", "labelled retain", "-"),
            ("retain" + _UNMASKED, "labelled retain, unmasked", ":"),
        )
    ):
        color = _RETAIN if direction.startswith("retain") else _color(run, own[0])
        found = {step: run.cosines(own, part, direction, step) for step in run.steps}
        found = {step: values for step, values in found.items() if len(values)}
        if found:
            _draw_quartiles(axes, found, place, {"color": color, "linestyle": style, "label": name})
    axes.set_xlabel("step")
    if len(run.steps) == 1:
        axes.set_xlabel(f"direction, at step {run.steps[0]}")
        axes.set(xticks=[], xlim=(-0.7, 3.7))


def _draw_quartiles(axes: Any, found: dict[int, Values], place: int, style: dict[str, Any]) -> None:
    """Median and middle half over the steps; at ``place`` where there is one step."""
    low, median, high = np.array([np.quantile(v, (0.25, 0.5, 0.75)) for v in found.values()]).T
    if len(found) == 1:
        filled = style["color"] if style["linestyle"] == "-" else "white"
        axes.errorbar(place, median, [median - low, high - median], marker="o", markerfacecolor=filled, **style)
        return
    axes.plot(list(found), median, marker="o", markersize=3, **style)
    axes.fill_between(list(found), low, high, color=style["color"], alpha=0.1, linewidth=0)


def _label_decades(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _forget_of(run: GradientRecords) -> str:
    return run.domains[0] if len(run.domains) == 1 else "the domain"


def _color(run: GradientRecords, category: str) -> str:
    if category in run.domains:
        return _DOMAINS[run.domains.index(category) % len(_DOMAINS)]
    return {"retain": _RETAIN}.get(category, _ADJACENT)


def _defined(values: Iterator[float | None]) -> Values:
    return np.array([v for v in values if v is not None], np.float64)
