"""Relearning as a table, and as curves of the forget loss over steps and forget tokens."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from sgtm.config import ConfigError, check_shape, read_json, read_yaml
from sgtm.interval import mean_interval
from sgtm.plot.picture import save
from sgtm.plot.records import without_seed
from sgtm.plot.tradeoff import COLORS
from sgtm.records import METRICS, RELEARN, SUMMARY, read_records

_MORE = (
    "#b8860b",
    "#117733",
    "#aa4466",
    "#6699cc",
    "#333333",
    "#ee8866",
)  # starts that are no method, and further lines
_AT = {"step": float, "tokens": float, "forget_tokens": float, "loss": float}
_CURVE = {"learning_rate": float, "reached": bool, "at": (_AT, None), "steps": int, "closest": {"loss": float}}
_SUMMARY = {"best": float, "domain": str, "target": (float, None), "curves": [_CURVE]}
_RECORD = _AT | {"learning_rate": float, "category": str}
_PAPER_NAMES = {"weak": "filter", "strict": "strict_filter"}  # of runs, in configs/sweeps/wiki
_APART = ("seed", "learning_rates")  # settings that make no line of its own


@dataclass(frozen=True)
class Relearning:
    """One folder that ``sgtm relearn`` wrote; its best curve reached the target first, or came nearest."""

    folder: Path
    settings: dict[str, Any]
    summary: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any]:
        """What became of the curve of the attacker's best learning rate."""
        found: dict[str, Any]
        found = next(c for c in self.summary["curves"] if c["learning_rate"] == self.summary["best"])
        return found

    @property
    def name(self) -> str:
        """Of what it began with, without its seed."""
        return without_seed(Path(self.settings["start"]).name)

    @property
    def color(self) -> str | None:
        """That of the method which made the start, as in all figures."""
        name = self.name.partition("-")[0]
        return COLORS.get(_PAPER_NAMES.get(name, name))

    def curve(self, along: str) -> list[tuple[float, float]]:
        """(steps or tokens, forget loss in nats per token) of the best learning rate."""
        rate, domain = self.summary["best"], self.summary["domain"]
        return [(r[along], r["loss"]) for r in self.records if r["learning_rate"] == rate and r["category"] == domain]


Lines = dict[str, list[Relearning]]  # by name: relearnings that differ by their seeds alone


def read_relearnings(paths: Iterable[Path]) -> list[Relearning]:
    """The relearnings of ``paths``: folders that ``sgtm relearn`` wrote, or folders that hold such folders.

    Raises:
        ConfigError: none there, or one without a finished curve.
    """
    found = [_read(folder) for path in paths for folder in _folders(path)]
    if not found:
        raise ConfigError("nothing to plot; give folders that `sgtm relearn` wrote")
    return found


def relearning_table(relearnings: Sequence[Relearning]) -> Table:
    """A row a line of the figure: the attacker's best, mean over seeds with half the 95 % t interval."""
    table = Table(title="relearning: steps and forget tokens to the target's forget loss", title_justify="left")
    for header in ("start", "seeds", "target", "start loss", "learning rate", "steps", "forget tokens", "not reached"):
        table.add_column(header, justify="left" if header in ("start", "not reached") else "right")
    for name, found in lines_of(relearnings).items():
        reached = [r.best["at"] for r in found if r.best["reached"]]
        table.add_row(
            name,
            str(len(found)),
            "none" if found[0].summary["target"] is None else f"{fmean(r.summary['target'] for r in found):.3f}",
            f"{fmean(r.curve('step')[0][1] for r in found):.3f}",
            ", ".join(f"{rate:g}" for rate in sorted({r.summary["best"] for r in found})),
            _mean([at["step"] for at in reached], ",.1f"),
            _mean([at["forget_tokens"] for at in reached], ",.0f"),
            _not_reached(found),
        )
    return table


def lines_of(relearnings: Sequence[Relearning]) -> Lines:
    """Relearnings that differ by their seeds alone; named by their start and whatever else tells them from others."""
    settings = [_comparable(r) for r in relearnings]
    lines: Lines = {}
    for one, own in zip(relearnings, settings, strict=True):
        same = [other for r, other in zip(relearnings, settings, strict=True) if r.name == one.name]
        differs = [key for key in own if any(other.get(key) != own[key] for other in same)]
        lines.setdefault(", ".join([one.name, *(f"{key} {own[key]}" for key in differs)]), []).append(one)
    return lines


def relearning(relearnings: Sequence[Relearning], out: Path) -> None:
    """Draw the forget loss against steps and against forget tokens (all tokens, where an attack has none): each start's
    best learning rate, mean and range over seeds, each seed faintly. A circle is where the target is reached; a cross
    ends a curve that has not reached it.

    Raises:
        ConfigError: nothing to draw.
    """
    if not relearnings:
        raise ConfigError("nothing to plot; give folders that `sgtm relearn` wrote")
    from matplotlib.figure import Figure

    lines, others = lines_of(relearnings), cycle(_MORE)
    used = {name: sum(found[0].color == first[0].color for first in lines.values()) for name, found in lines.items()}
    colors = {n: (found[0].color if used[n] == 1 else None) or next(others) for n, found in lines.items()}
    all_see = all(r.settings["on"] == "forget" for r in relearnings)
    second = ("forget_tokens", "forget tokens") if all_see else ("tokens", "tokens, of all text")
    figure = Figure(figsize=(11.5, 5.2), layout="constrained")
    sides = figure.subplots(1, 2, sharey=True)
    for axes, (along, label) in zip(sides, (("step", "fine-tuning steps"), second), strict=True):
        for name, found in lines.items():
            _draw(axes, name, found, along, colors[name])
        for target in {round(r.summary["target"], 4) for r in relearnings if r.summary["target"] is not None}:
            axes.axhline(target, color=COLORS["none"], linestyle="--", linewidth=1.1)
        axes.set_xlabel(label)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    sides[0].set_ylabel("forget loss (nats per token)")
    handles, labels = sides[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    figure.suptitle("dashed: the target;  o reached,  x not reached", fontsize=10)
    save(figure, out)


def _draw(axes: Any, name: str, found: Sequence[Relearning], along: str, color: str) -> None:
    curves = [dict(r.curve("step")) for r in found]
    places = [dict(zip(dict(r.curve("step")), (x for x, _ in r.curve(along)), strict=True)) for r in found]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))  # that every seed has
    xs = [fmean(place[step] for place in places) for step in steps]
    columns = [[curve[step] for curve in curves] for step in steps]
    axes.plot(xs, [fmean(c) for c in columns], color=color, linewidth=1.8, label=f"{name} ({_outcome(found)})")
    if len(found) > 1:
        axes.fill_between(
            xs, [min(c) for c in columns], [max(c) for c in columns], color=color, alpha=0.15, linewidth=0
        )
    for r in found:
        curve = r.curve(along)
        axes.plot(*zip(*curve, strict=True), color=color, linewidth=0.7, alpha=0.45)
        at, last = r.best["at"], curve[-1]
        if at is not None:
            axes.plot(at[along], at["loss"], "o", color=color, markersize=6)
        elif r.summary["target"] is not None:
            axes.plot(*last, "x", color=color, markersize=8, markeredgewidth=2)


def _outcome(found: Sequence[Relearning]) -> str:
    """For the legend."""
    rates = ", ".join(f"{rate:g}" for rate in sorted({r.summary["best"] for r in found}))
    seeds = f"{len(found)} seed{'s' * (len(found) > 1)}, lr {rates}"
    reached = [r.best["at"]["step"] for r in found if r.best["reached"]]
    parts = [f"{fmean(reached):,.0f} steps"] if reached else []
    missed = _not_reached(found)
    return "; ".join([seeds, *parts, *([f"not reached {missed}"] if missed else [])])


def _not_reached(found: Sequence[Relearning]) -> str:
    missed = [r for r in found if not r.best["reached"] and r.summary["target"] is not None]
    if not missed:
        return ""
    steps = min(r.best["steps"] for r in missed)
    loss = min(r.best["closest"]["loss"] for r in missed)
    of = f"{len(missed)} of {len(found)} " if len(found) > 1 else ""
    return f"{of}within {steps:,} steps (closest loss {loss:.3f})"


def _mean(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    mean, half = mean_interval(values)
    return f"{mean:{form}}" if half is None else f"{mean:{form}} ± {half:{form}}"


def _folders(path: Path) -> Iterator[Path]:
    if (path / RELEARN).is_file():
        yield path
        return
    found = sorted(file.parent for file in path.glob(f"*/{RELEARN}"))
    if not found:
        raise ConfigError(f"{path} has no {RELEARN}; give folders that `sgtm relearn` wrote, or one that holds such")
    yield from found


def _read(folder: Path) -> Relearning:
    if not (folder / SUMMARY).is_file():
        raise ConfigError(
            f"{folder} has no finished curve; run `sgtm relearn` again, which goes on with what is missing"
        )
    settings = read_yaml(folder / RELEARN)
    check_shape(settings, {"start": str, "on": str}, folder / RELEARN, "run `sgtm relearn` anew")
    summary = read_json(folder / SUMMARY, "run `sgtm relearn` anew", _SUMMARY)
    found = Relearning(folder, settings, summary, read_records(folder / METRICS, _RECORD))
    if summary["best"] not in [c["learning_rate"] for c in summary["curves"]] or not found.curve("step"):
        raise ConfigError(f"{folder} has no curve of the best learning rate {summary['best']}; measure it anew")
    return found


def _comparable(r: Relearning) -> dict[str, str]:
    """Settings by which lines differ: without seeds, also in the names of folders."""
    return {
        key: without_seed(value) if isinstance(value, str) else json.dumps(value)
        for key, value in r.settings.items()
        if key not in _APART
    }
