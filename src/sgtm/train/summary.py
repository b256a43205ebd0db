"""Losses as a table for people."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from sgtm.config import Category
from sgtm.evaluate.gradients import median_interval
from sgtm.evaluate.loss import Loss, Variant
from sgtm.train.references import Plan

VARIANTS: tuple[Variant, ...] = ("intact", "ablated", "calibrated")
Losses = Mapping[tuple[Category, Variant], Loss]


def print_losses(methods: Mapping[str, Losses]) -> None:
    """Test losses in nats per token, by method, category and variant."""
    print_table({name: {key: loss.mean for key, loss in losses.items()} for name, losses in methods.items()})


def print_table(methods: Mapping[str, Mapping[tuple[Category, Variant], float]]) -> None:
    """One row a method; with more than two categories, one for each category of it."""
    categories = dict.fromkeys(category for losses in methods.values() for category, _ in losses)
    table = Table(title="test loss, nats per token", title_justify="left")
    table.add_column("")
    if len(categories) > 2:
        _add_rows_of_categories(table, methods, categories)
    else:
        _add_rows(table, methods, categories)
    Console(width=max(100, Console().width)).print(table)


def print_matrix(matrix: Mapping[tuple[str, ...], Mapping[Category, Loss]]) -> None:
    """One row a set of removed domains: test losses of every category, and how far they are from the intact model's."""
    table = Table(title="test loss without ..., nats per token (change)", title_justify="left")
    table.add_column("without")
    intact = matrix[()]
    for category in intact:
        table.add_column(category, justify="right")
    for removed, losses in matrix.items():
        changes = (f" ({losses[c].mean - intact[c].mean:+.3f})" if removed else "" for c in intact)
        cells = (f"{losses[c].mean:.3f}{change}" for c, change in zip(intact, changes, strict=True))
        table.add_row(", ".join(removed) or "nothing", *cells)
    Console(width=max(100, Console().width)).print(table)


def print_gradients(records: Iterable[Mapping[str, Any]]) -> None:
    """Medians over examples, with 95 % bootstrap intervals, of one step's relative gradient norms and cosines."""
    norms: dict[tuple[str, ...], list[float | None]] = {}
    cosines: dict[tuple[str, ...], list[float | None]] = {}
    for r in records:
        norms.setdefault((r["category"], r["part"]), []).append(r["relative_norm"])
        for direction, cosine in r["cosines"].items():
            cosines.setdefault((r["category"], direction, r["part"]), []).append(cosine)
    _print_medians("|gradient| / |parameters| of single examples, median (95 %)", ("examples",), norms, "{:.3g}")
    _print_medians("cosine with the mean gradient of", ("examples", "direction"), cosines, "{:+.3f}")


def _print_medians(
    title: str, header: tuple[str, ...], values: Mapping[tuple[str, ...], list[float | None]], form: str
) -> None:
    """One column a part (the last word of a key), one row for each of the words before."""
    parts = dict.fromkeys(key[-1] for key in values)
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name)
    for part in parts:
        table.add_column(part, justify="right")
    for row in dict.fromkeys(key[:-1] for key in values):
        table.add_row(*row, *(_median(values[*row, part], form) for part in parts))
    Console(width=max(140, Console().width)).print(table)


def _median(values: list[float | None], form: str) -> str:
    defined = [v for v in values if v is not None]
    if not defined:
        return "undefined"
    median, low, high = (form.format(v) for v in median_interval(defined))
    return f"{median} ({low}, {high})"


def print_plan(plan: Plan) -> None:
    """The ordinary models of a leakage measurement: which there are, and which are still to be trained."""
    table = Table(title="ordinary models", title_justify="left")
    for header in ("folder", "undiscovered", "seed", "steps", "retain tokens", "forget tokens", ""):
        table.add_column(header, justify="left" if header in ("folder", "") else "right", overflow="fold")
    for m in plan.models:
        forget = sum(m.seen.undiscovered(domain) for domain in m.seen.domains)
        state = "there" if m.is_finished else "to be trained"
        numbers = (
            f"{m.share:.4g}",
            str(m.config.seed),
            f"{m.config.train.steps:,}",
            f"{m.seen.retain:,}",
            f"{forget:,}",
        )
        table.add_row(str(m.folder), *numbers, state)
    Console(width=max(120, Console().width)).print(table)
    missing = plan.missing
    print(
        f"{len(missing)} of {len(plan.models)} to be trained, on {sum(m.seen.total for m in missing):,} tokens in all"
    )


def _add_rows(table: Table, methods: Mapping[str, Mapping[Any, float]], categories: Iterable[Category]) -> None:
    keys = [(c, v) for c in categories for v in VARIANTS if any((c, v) in losses for losses in methods.values())]
    for category, variant in keys:
        table.add_column(f"{category}\n{variant}", justify="right")
    for name, losses in methods.items():
        table.add_row(name, *(_number(losses, key) for key in keys))


def _add_rows_of_categories(
    table: Table, methods: Mapping[str, Mapping[Any, float]], categories: Iterable[Category]
) -> None:
    table.add_column("")
    for variant in VARIANTS:
        table.add_column(variant, justify="right")
    for name, losses in methods.items():
        for category in categories:
            table.add_row(name, category, *(_number(losses, (category, v)) for v in VARIANTS))


def _number(losses: Mapping[Any, float], key: tuple[Category, Variant]) -> str:
    return f"{losses[key]:.3f}" if key in losses else ""
