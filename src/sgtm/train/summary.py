"""Losses as a table for people."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from sgtm.config import Category
from sgtm.evaluate.loss import Loss, Variant

VARIANTS: tuple[Variant, ...] = ("intact", "ablated", "calibrated")
Losses = Mapping[tuple[Category, Variant], Loss]


def print_losses(methods: Mapping[str, Losses]) -> None:
    """One row a method: test losses in nats per token, by category and variant."""
    print_table({name: {key: loss.mean for key, loss in losses.items()} for name, losses in methods.items()})


def print_table(methods: Mapping[str, Mapping[tuple[Category, Variant], float]]) -> None:
    categories = dict.fromkeys(category for losses in methods.values() for category, _ in losses)
    keys = [(c, v) for c in categories for v in VARIANTS if any((c, v) in losses for losses in methods.values())]
    table = Table(title="test loss, nats per token", title_justify="left")
    table.add_column("")
    for category, variant in keys:
        table.add_column(f"{category}\n{variant}", justify="right")
    for name, losses in methods.items():
        table.add_row(name, *(f"{losses[key]:.3f}" if key in losses else "" for key in keys))
    Console(width=max(100, Console().width)).print(table)
