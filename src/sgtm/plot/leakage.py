"""Leakage as a table, and as figures against the undiscovered share, in tokens and by model size."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from sgtm.config import ConfigError, check_shape
from sgtm.plot.colors import paler
from sgtm.plot.picture import save
from sgtm.plot.tradeoff import COLORS, OTHER
from sgtm.records import LEAKAGE, read_records

Record = dict[str, Any]
_MARKERS = "osD^vPX"
_APART = 5.0  # points
_SIGN = {"below": "< ", "exact": "", "above": "> "}
_OUTSIDE = {"below": "v", "above": "^"}
_ORDINARY: dict[str, Any] = {"color": COLORS["filter"], "linewidth": 1.2}
_FILTER = _ORDINARY | {"label": "filter, by construction"}
_ESTIMATE = {"value": float, "bound": ("below", "exact", "above")}
_RECORD = {
    **dict.fromkeys(("method", "domain"), str),
    **dict.fromkeys(("undiscovered", "parameters", "loss", "undiscovered_tokens"), float),
    **dict.fromkeys(("by_construction", "is_monotone"), bool),
    "seeds": [int],
    "runs": [str],
    "tokens": _ESTIMATE,
    "ratio": (_ESTIMATE, None),
    **dict.fromkeys(("tokens_interval", "ratio_interval"), ([_ESTIMATE, _ESTIMATE], None)),
    "grid": [{"tokens": float, "loss": float, "runs": [str]}],
}


@dataclass(frozen=True)
class _Line:
    name: str
    color: str
    marker: str
    shift: float  # to the right, in points, so that intervals do not hide one another
    records: list[Record]


def read_leakage(paths: Sequence[Path]) -> list[Record]:
    """The records of ``paths``: a ``leakage.jsonl``, a folder that holds one, or a run's folder beside one.

    Raises:
        ConfigError: no path, or one without leakage records.
    """
    if not paths:
        raise ConfigError("nothing to plot; give folders that `sgtm leakage` measured")
    records = {(r["domain"], *r["runs"]): r for path in paths for r in _records_of(path)}
    return list(records.values())


def leakage_table(records: Iterable[Record]) -> Table:
    """A row a record: ratio and token-equivalent, with the 95 % interval of a bootstrap over seeds."""
    records = list(records)
    table = Table(title="leakage", title_justify="left", caption=" ".join(_notes(records)), caption_justify="left")
    for header in ("method", "undiscovered", "size", "seeds", "forget loss", "undiscovered tokens"):
        table.add_column(header, justify="left" if header == "method" else "right")
    table.add_column("token-equivalent", justify="right")
    table.add_column("leakage", justify="right")
    one_domain = len({r["domain"] for r in records}) == 1
    for r in records:
        table.add_row(
            r["method"] if one_domain else f"{r['method']}, {r['domain']}",
            f"{100 * r['undiscovered']:g} %",
            _size(r["parameters"]),
            str(len(r["seeds"])),
            f"{r['loss']:.3f}",
            f"{r['undiscovered_tokens']:,.0f}",
            _with_interval(r["tokens"], r["tokens_interval"], ",.0f"),
            "undefined" if r["ratio"] is None else _with_interval(r["ratio"], r["ratio_interval"], ".3g"),
        )
    return table


def leakage(records: Sequence[Record], out: Path) -> None:
    """Draw leakage against the undiscovered share, token-equivalents against undiscovered tokens and, with several
    sizes of models, leakage against the number of parameters.

    Raises:
        ConfigError: no record of a method with forget units, or two that the figure could not tell apart.
    """
    measured = [r for r in records if not r["by_construction"]]
    if not measured:
        raise ConfigError("filters leak 1 by construction; there is no other method's leakage to plot")
    _check_distinct(measured)
    from matplotlib.figure import Figure

    panels = [_against_share, _in_tokens, *([_against_size] if len({r["parameters"] for r in measured}) > 1 else [])]
    figure = Figure(figsize=(5.4 * len(panels), 5.2), layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(panels)), panels, strict=True):
        draw(axes, measured)
        _finish(axes)
    save(figure, out)


def readings(records: Sequence[Record], out: Path) -> None:
    """Draw what the token-equivalents are read off: each grid's losses against its forget tokens, and the runs on it.

    Raises:
        ConfigError: no record of a method with forget units.
    """
    measured = [r for r in records if r["grid"]]
    if not measured:
        raise ConfigError("no grid of ordinary models to plot; give runs of a method with forget units")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    smallest = min(g["tokens"] for r in measured for g in r["grid"] if g["tokens"])
    axes.set_xscale("symlog", linthresh=smallest)
    axes.set(xlabel="forget tokens of an ordinary model", ylabel="forget loss, not calibrated (nats per token)")
    grids = {(r["domain"], *(run for g in r["grid"] for run in g["runs"])): r["grid"] for r in measured}
    for grid in grids.values():
        axes.plot([g["tokens"] for g in grid], [g["loss"] for g in grid], "-o", markersize=4, **_ORDINARY)
    for method in dict.fromkeys(r["method"] for r in measured):
        points = [(r["tokens"]["value"], r["loss"], r["undiscovered"]) for r in measured if r["method"] == method]
        xs, ys, _ = zip(*points, strict=True)
        axes.plot(xs, ys, "D", color=COLORS.get(method, OTHER), label=f"{method}, with % undiscovered")
        for x, y, share in points:
            axes.annotate(f"{100 * share:g}", (x, y), (6, 4), textcoords="offset points", fontsize=8)
    _finish(axes)
    save(figure, out)


def _finish(axes: Any) -> None:
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _records_of(path: Path) -> list[Record]:
    for file, run in ((path, None), (path / LEAKAGE, None), (path.parent / LEAKAGE, path.name)):
        if file.is_file():
            known = [r for r in read_records(file) if "by_construction" in r]
            for r in known:
                check_shape(r, _RECORD, file, "measure anew with `sgtm leakage`")
            if found := [r for r in known if run is None or run in (Path(folder).name for folder in r["runs"])]:
                return found
    raise ConfigError(f"{path} has no leakage records; measure its runs with `sgtm leakage RUNS...`")


def _check_distinct(records: Sequence[Record]) -> None:
    seen: dict[tuple[Any, ...], Record] = {}
    for r in records:
        key = tuple(r[name] for name in ("method", "parameters", "domain", "undiscovered"))
        other = seen.setdefault(key, r)
        if other is not r:
            raise ConfigError(
                f"{other['runs'][0]} and {r['runs'][0]} have one method, size and share but other settings; plot them "
                "one at a time"
            )


def _against_share(axes: Any, records: Sequence[Record]) -> None:
    axes.set(xscale="log", yscale="log", xlabel="undiscovered forget data (%)", ylabel="leakage")
    axes.axhline(1, **_FILTER)
    for line in _lines([r for r in records if r["ratio"]], "parameters"):
        _draw(axes, line, [100 * r["undiscovered"] for r in line.records], "ratio")


def _in_tokens(axes: Any, records: Sequence[Record]) -> None:
    """The token-equivalent is there for runs without undiscovered tokens too: they stand on the left edge."""
    seen = [r["undiscovered_tokens"] for r in records if r["undiscovered_tokens"]] or [1.0]
    axes.set(yscale="log", xlabel="undiscovered forget tokens", ylabel="as forget tokens of an ordinary model")
    start = min(seen) / 4  # so that the diagonal is there for a single share too
    axes.set_xscale("symlog", linthresh=start)
    diagonal = [start * (max(seen) / start) ** (i / 50) for i in range(51)]
    axes.plot(diagonal, diagonal, **_FILTER)
    for line in _lines(records, "parameters"):
        _draw(axes, line, [r["undiscovered_tokens"] for r in line.records], "tokens")


def _against_size(axes: Any, records: Sequence[Record]) -> None:
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="leakage")
    axes.axhline(1, **_FILTER)
    for line in _lines([r for r in records if r["ratio"]], "undiscovered"):
        _draw(axes, line, [r["parameters"] for r in line.records], "ratio")


def _lines(records: Sequence[Record], key: str) -> Iterator[_Line]:
    """Records of one method, domain and value of ``key``; a line's name says what differs between lines."""
    values, domains = sorted({r[key] for r in records}), {r["domain"] for r in records}
    for method, domain, value in sorted({(r["method"], r["domain"], r[key]) for r in records}):
        found = [r for r in records if (r["method"], r["domain"], r[key]) == (method, domain, value)]
        text = _size(value) if key == "parameters" else f"{100 * value:g} % undiscovered"
        words = [method, *([domain] if len(domains) > 1 else []), *([text] if len(values) > 1 else [])]
        place = values.index(value)
        found.sort(key=lambda r: (r["undiscovered"], r["parameters"]))
        yield _Line(
            name=", ".join(words),
            color=paler(COLORS.get(method, OTHER), 0.8 * place / len(values)),
            marker=_MARKERS[place % len(_MARKERS)],
            shift=_APART * (place - (len(values) - 1) / 2),
            records=found,
        )


def _draw(axes: Any, line: _Line, xs: Sequence[float], what: str) -> None:
    """Points and their intervals; what lies outside the grid is a hollow triangle and not joined."""
    from matplotlib.transforms import offset_copy

    points = [(x, r[what], r[f"{what}_interval"]) for x, r in zip(xs, line.records, strict=True)]
    inside = [(x, e["value"]) for x, e, _ in points if e["bound"] == "exact"]
    beside = offset_copy(axes.transData, axes.figure, x=line.shift, units="points")
    if inside:
        axes.plot(*zip(*inside, strict=True), marker=line.marker, color=line.color, label=line.name, transform=beside)
    bars = [(x, low["value"], high["value"]) for x, _, interval in points if interval for low, high in [interval]]
    if bars:
        axes.vlines(*zip(*bars, strict=True), color=line.color, linewidth=1.2, transform=beside)
    axes.update_datalim([*inside, *((x, y) for x, *ends in bars for y in ends)])  # which what stands beside does not
    axes.autoscale_view()
    for x, estimate, _ in points:
        if estimate["bound"] != "exact":
            _draw_outside(axes, line, x, estimate, None if inside else line.name)


def _draw_outside(axes: Any, line: _Line, x: float, estimate: Record, label: str | None) -> None:
    """An arrowhead at the grid's end; at the axis' where that end is no forget token at all."""
    style = {"marker": _OUTSIDE[estimate["bound"]], "color": line.color, "markerfacecolor": "white", "label": label}
    if estimate["value"] > 0:
        axes.plot(x, estimate["value"], linestyle="none", **style)
    else:
        axes.plot(x, 0.02, linestyle="none", transform=axes.get_xaxis_transform(), **style)


def _notes(records: Sequence[Record]) -> Iterator[str]:
    """What a reader of the table has to know, where it applies."""
    if any(r["by_construction"] for r in records):
        yield "Filters (and no filter) are ordinary models: 1 by construction."
    if any(len(r["seeds"]) == 1 and not r["by_construction"] for r in records):
        yield "One seed gives no interval."
    if any(e["bound"] != "exact" for r in records for e in (r["tokens"], *(r["tokens_interval"] or []))):
        yield "<, ≤ and >: outside the grid of ordinary models; extend it with --shares."
    if not all(r["is_monotone"] for r in records):
        yield "The loss does not fall all along some grid: the first crossing is taken."


def _with_interval(estimate: Record, interval: Sequence[Record] | None, form: str) -> str:
    text = _text(estimate, form)
    return text if interval is None else f"{text} [{_text(interval[0], form)}, {_text(interval[1], form)}]"


def _text(estimate: Record, form: str) -> str:
    sign = "≤ " if estimate["bound"] == "below" and not estimate["value"] else _SIGN[estimate["bound"]]
    return f"{sign}{estimate['value']:{form}}"


def _size(parameters: float) -> str:
    return f"{parameters / 1e6:.3g}M"
