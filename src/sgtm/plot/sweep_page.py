"""A sweep's page: its runs, their losses as means over seeds, and the figures that compare settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from sgtm.config import ConfigError
from sgtm.interval import mean_interval
from sgtm.plot.chart import PALETTE, Dot, Line, line_chart, scatter_chart
from sgtm.plot.page import Html, details, grid, missing, page, pairs, section, table, tiles, without_secrets
from sgtm.plot.records import RunRecords, read_run, read_runs, run_folders, series
from sgtm.plot.tradeoff import COLORS
from sgtm.plot.undiscovered import ALONG, losses_by_share
from sgtm.records import METRICS, RESULTS

_VARIANTS = ("calibrated", "ablated", "intact")
_NOTE = "Mean over seeds ± half the 95 % t interval; one seed has none. Only runs that have ended count."


@dataclass(frozen=True)
class Cell:
    """The losses of runs that differ by their seed alone."""

    mean: float
    half: float | None
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"


def read_sweep_folder(folder: Path) -> list[RunRecords]:
    """The runs in a sweep's folder, or in its results where the folders are gone.

    Raises:
        ConfigError: neither.
    """
    runs = [read_run(f) for f in run_folders(folder)]
    if runs:
        return runs
    if (folder / RESULTS).is_file():
        return read_runs([folder])
    raise ConfigError(
        f"{folder} holds neither a run ({METRICS}) nor runs in folders of it; give a folder that `sgtm train`, "
        "`sgtm unlearn` or `sgtm sweep` wrote"
    )


def sweep_page(folder: Path, runs: Sequence[RunRecords]) -> str:
    """The whole page of runs."""
    groups = series(runs, ())
    sections = [
        _overview(runs, groups),
        _losses(runs, groups),
        _tradeoffs(runs, groups),
        _shares(folder, runs),
        _runs(runs),
        _common(runs),
    ]
    return page(folder.resolve().name, f"sgtm sweep, {len(runs)} runs", sections)


def _overview(runs: Sequence[RunRecords], groups: dict[str, list[RunRecords]]) -> Html:
    ended = sum(_has_ended(run) for run in runs)
    seeds = {run.config.get("seed") for run in runs}
    return section(
        "Overview", tiles({"runs": len(runs), "of these ended": ended, "settings": len(groups), "seeds": len(seeds)})
    )


def _losses(runs: Sequence[RunRecords], groups: dict[str, list[RunRecords]]) -> Html:
    parts: list[Html] = []
    for variant in _VARIANTS:
        rows = _rows(runs, groups, variant)
        if rows:
            shown = table(["settings", "seeds", *_categories(runs)], rows, f"test loss, {variant}, nats per token")
            parts.append(shown if not parts else details(f"{variant} losses", shown))
    if not parts:
        return section("Losses", missing("No run has ended", "sgtm sweep SWEEP.yaml"))
    return section("Losses", *parts, intro=_NOTE)


def _rows(runs: Sequence[RunRecords], groups: dict[str, list[RunRecords]], variant: str) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, of_group in groups.items():
        cells = [_cell(of_group, [category], variant) for category in _categories(runs)]
        if any(cells):
            rows.append([name, max(c.seeds for c in cells if c), *("" if c is None else c for c in cells)])
    return rows


def _cell(runs: Sequence[RunRecords], categories: Sequence[str], variant: str) -> Cell | None:
    found = [loss for run in runs if (loss := run.final_mean(categories, variant)) is not None]
    return Cell(*mean_interval(found), len(found)) if found else None


def _categories(runs: Sequence[RunRecords]) -> list[str]:
    found = dict.fromkeys(r["category"] for run in runs for r in run.records if r["split"] == "test")
    domains = {domain for run in runs for domain in run.domains}
    whole = [c for c in found if "/" not in c]
    return sorted(whole, key=lambda c: (c in domains, c != "retain", whole.index(c)))


def _tradeoffs(runs: Sequence[RunRecords], groups: dict[str, list[RunRecords]]) -> Html:
    charts = [chart for domain in _domains(runs) if (chart := _tradeoff(groups, domain))]
    if not charts:
        return section("Trade-off", missing("No run has calibrated losses at its end", "sgtm sweep SWEEP.yaml"))
    return section("Trade-off", grid(*charts), intro=f"Better is up and to the left. {_NOTE}")


def _domains(runs: Sequence[RunRecords]) -> list[str]:
    return list(dict.fromkeys(domain for run in runs for domain in run.domains))


def _tradeoff(groups: dict[str, list[RunRecords]], domain: str) -> Html:
    colors, dots = _colors(groups), []
    for name, runs in groups.items():
        kept, lost = _cell(runs, ["retain"], "calibrated"), _cell(runs, [domain], "calibrated")
        if kept and lost:
            dots.append(Dot(name, kept.mean, lost.mean, colors[name], (), kept.half, lost.half))
    return scatter_chart(
        f"Removal of {domain}", dots, "retain loss (nats per token)", f"{domain} loss (nats per token)"
    )


def _colors(groups: dict[str, list[RunRecords]]) -> dict[str, str]:
    """A method's own colour; one of its own for each further line of a method."""
    others, found = cycle(PALETTE), dict[str, str]()
    for name, runs in groups.items():
        own = COLORS.get(runs[0].config["method"])
        found[name] = (
            own
            if own and own not in found.values()
            else next(c for c in others if c not in found.values() or len(found) >= len(PALETTE))
        )
    return found


def _shares(folder: Path, runs: Sequence[RunRecords]) -> Html:
    """Losses against the undiscovered share, where the runs differ by it."""
    try:
        groups = series(runs, ALONG)
        shares = sorted({round(1 - run.rates[0], 12) for run in runs})
    except ConfigError:  # labellers given by precision
        shares = []
    title = "Undiscovered forget data"
    if len(shares) < 2:
        return section(
            title,
            missing(
                "The runs do not differ by their undiscovered share",
                "sgtm sweep FILE, its grid with labels.undiscovered",
            ),
        )
    ticks = [(float(i), f"{100 * share:.4g}") for i, share in enumerate(shares)]
    colors = _colors(groups)
    charts = []
    for what, categories in {**{d: [d] for d in _domains(runs)}, "retain": ["retain"]}.items():
        lines = [
            _line(name, of, shares, colors[name])
            for name, of in losses_by_share(groups, categories, "calibrated").items()
        ]
        charts.append(
            line_chart(
                f"{what.capitalize()} loss, calibrated",
                lines,
                "undiscovered share of forget data (%), not to scale",
                "loss (nats per token)",
                x_ticks=ticks,
                y_from_means=True,
            )
        )
    return section(title, grid(*(chart for chart in charts if chart)), intro=_NOTE)


def _line(name: str, losses: dict[float, list[float]], shares: Sequence[float], color: str) -> Line:
    found = [(float(i), *mean_interval(losses[share])) for i, share in enumerate(shares) if share in losses]
    errors = [(x, mean - half, mean + half) for x, mean, half in found if half is not None]
    return Line(name, [(x, mean) for x, mean, _ in found], color, errors=errors)


def _runs(runs: Sequence[RunRecords]) -> Html:
    rows = []
    for run in runs:
        step = max((r["step"] for r in run.records), default=0)
        losses = [run.final(category, "calibrated") for category in _categories(runs)]
        steps = f"{step:,} of {run.config['train']['steps']:,}"
        rows.append(
            [
                run.name,
                "ended" if _has_ended(run) else "not ended",
                steps,
                *("" if x is None else f"{x:.3f}" for x in losses),
            ]
        )
    header = ["run", "state", "steps", *(f"{c}, calibrated" for c in _categories(runs))]
    return section("Runs", table(header, rows, text_columns=2))


def _common(runs: Sequence[RunRecords]) -> Html:
    """The settings that all runs share."""
    flat = [run.settings for run in runs]
    shared = {key: value for key, value in flat[0].items() if all(other.get(key) == value for other in flat)}
    return section("Common settings", details("all that are the same", pairs(without_secrets(shared))))


def _has_ended(run: RunRecords) -> bool:
    last: int = max((r["step"] for r in run.records if r["split"] == "test"), default=0)
    return last >= int(run.config["train"]["steps"])
