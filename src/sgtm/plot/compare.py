"""``sgtm compare``: what runs were set to, what they lost, and how far they are from the first one."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

from rich.table import Table
from rich.text import Text

from sgtm.config import ConfigError
from sgtm.plot.chart import PALETTE, Line, line_chart, short, signed
from sgtm.plot.page import Html, grid, missing, page, paragraph, rich_table, section, without_secrets
from sgtm.plot.records import run_folders
from sgtm.plot.run_folder import VARIANTS, RunFolder, read_run_folder
from sgtm.records import METRICS

_ABSENT = "–"
_EVERY = "sgtm train ... --evaluate.every STEPS"


def read_compared(folders: Sequence[Path]) -> dict[str, RunFolder]:
    """The runs by name; where two have one name, by as much of their path as tells them apart.

    Args:
        folders: of runs, or of sweeps for all runs in them.

    Raises:
        ConfigError: fewer than two different runs, or no run at one of the ``folders``.
    """
    given = [run for f in folders for run in (() if (f / METRICS).is_file() else run_folders(f)) or [f]]
    places = list(dict.fromkeys(folder.resolve() for folder in given))
    if len(places) < 2:
        raise ConfigError(f"{', '.join(map(str, folders)) or 'nothing'}: a comparison needs two different runs or more")
    found = [read_run_folder(folder) for folder in places]
    return dict(zip(_names(places), found, strict=True))


def _names(places: Sequence[Path]) -> list[str]:
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different names")


def settings_table(runs: dict[str, RunFolder]) -> Table:
    """One row a setting that is not the same in all runs."""
    settings = {name: dict(without_secrets(run.run.settings)) for name, run in runs.items()}
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    differ = [key for key in keys if len({values.get(key) for values in settings.values()}) > 1]
    return _table(
        "settings that differ", runs, ([key, *(v.get(key, _ABSENT) for v in settings.values())] for key in differ)
    )


def losses_table(runs: dict[str, RunFolder]) -> Table:
    """One row a category and variant: each run's last test loss and, in brackets, how far it is from the first's."""
    categories = dict.fromkeys(category for run in runs.values() for category in run.categories)
    rows: list[list[str]] = []
    for category in categories:
        for variant in VARIANTS:
            losses = [run.last(category, variant) for run in runs.values()]
            if any(loss is not None for loss in losses):
                rows.append([f"{category}, {variant}", *_differences(losses)])
    steps = {run.step for run in runs.values()}
    at = f"at step {steps.pop():,}" if len(steps) == 1 else "at the last step of each"
    return _table(f"test loss {at}, nats per token (difference to the first)", runs, rows, numbers=True)


def costs_table(runs: dict[str, RunFolder]) -> Table:
    """What each run took."""
    found = list(runs.values())
    rows = [
        ["steps", *(f"{run.step:,}" for run in found)],
        ["tokens", *(short(max((r["tokens"] for r in run.run.records), default=0)) for run in found)],
        ["parameters", *(_ABSENT if run.num_parameters is None else short(run.num_parameters) for run in found)],
        ["tokens per second", *(_ABSENT if not (v := run.tokens_per_second) else f"{v:,.0f}" for run in found)],
    ]
    versions = dict.fromkeys(key for run in found for key in run.about.get("environment", {}))
    for key in versions:
        values = [str(run.about.get("environment", {}).get(key, _ABSENT)) for run in found]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return _table("what they took", runs, rows, numbers=True)


def compare_page(runs: dict[str, RunFolder]) -> str:
    """The tables, and every curve over those of the other runs."""
    settings = settings_table(runs)
    shown = rich_table(settings) if settings.row_count else paragraph("All settings are the same.")
    charts = [*_charts(runs)]
    sections = [
        section("Losses", rich_table(losses_table(runs))),
        section("Curves", grid(*charts) if charts else missing("Test losses were recorded once", _EVERY)),
        section("Configuration", shown),
        section("Cost", rich_table(costs_table(runs))),
    ]
    return page(" · ".join(runs), f"sgtm compare, {len(runs)} runs", sections)


def _charts(runs: dict[str, RunFolder]) -> Iterator[Html]:
    categories = dict.fromkeys(category for run in runs.values() for category in run.categories)
    for category in categories:
        for variant in VARIANTS:
            lines = [
                Line(name, [(float(x), y) for x, y in run.run.curve(category, variant)], color)
                for (name, run), color in zip(runs.items(), cycle(PALETTE), strict=False)
            ]
            if max(len(line.points) for line in lines) < 2:  # the table has it
                continue
            if chart := line_chart(f"{category}, {variant}", lines, "step", "test loss (nats per token)"):
                yield chart


def _differences(losses: Sequence[float | None]) -> Iterator[str]:
    first = losses[0]
    for i, loss in enumerate(losses):
        if loss is None:
            yield _ABSENT
        elif i == 0 or first is None:
            yield f"{loss:.3f}"
        else:
            yield f"{loss:.3f} ({signed(loss - first)})"


def _table(
    title: str, runs: dict[str, RunFolder], rows: Iterator[list[str]] | list[list[str]], numbers: bool = False
) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in runs:
        table.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
