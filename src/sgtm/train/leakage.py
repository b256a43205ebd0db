"""Leakage of trained runs, as records: ``leakage.jsonl``, which tables and figures read."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean as mean
from typing import Any

from sgtm.config import Category, ConfigError
from sgtm.evaluate.leakage import Interpolation, by_construction, leakage
from sgtm.train.references import Plan, Trained


def measure(plan: Plan, interpolation: Interpolation = "linear", num_bootstrap: int = 1000) -> list[dict[str, Any]]:
    """A record for each domain of each set of runs that differ by their seed alone: by size, method, share.

    Raises:
        ConfigError: an ordinary model is not trained yet, or two runs are the same but for their folder.
    """
    records = [
        _record(group, plan, domain, interpolation, num_bootstrap)
        for group in _by_seed(plan.runs)
        for domain in group[0].config.partition.names
    ]
    return sorted(records, key=lambda r: (r["parameters"], r["method"], r["domain"], r["undiscovered"]))


def write_records(records: Sequence[dict[str, Any]], out: Path) -> None:
    """One object a line; an earlier file is replaced."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _by_seed(runs: Sequence[Trained]) -> Iterator[list[Trained]]:
    """Runs that differ by their seed alone."""
    groups: dict[str, dict[int, Trained]] = {}
    for run in runs:
        values = asdict(run.config)
        seed = values.pop("seed")
        group = groups.setdefault(json.dumps(values, sort_keys=True), {})
        if seed in group:
            raise ConfigError(f"{group[seed].folder} and {run.folder} have one configuration and seed; leave one out")
        group[seed] = run
    yield from ([group[seed] for seed in sorted(group)] for group in groups.values())


def _record(
    group: Sequence[Trained], plan: Plan, domain: Category, interpolation: Interpolation, num_bootstrap: int
) -> dict[str, Any]:
    """What was measured of runs that differ by their seed alone; all that a figure or a table needs."""
    first, runs = group[0], [run.point(domain) for run in group]
    models = [] if first.is_ordinary else _of_common_shares([plan.grids[run.folder] for run in group])
    grids = [[model.point(domain) for model in of_seed] for of_seed in models]
    found = leakage(runs, grids, interpolation, num_bootstrap) if grids else by_construction(runs)
    return {
        "method": first.config.method,
        "undiscovered": first.share,
        "parameters": first.num_parameters,
        "domain": domain,
        "seeds": [run.config.seed for run in group],
        "loss": mean([run.loss for run in runs]),
        "retain_tokens": mean([run.seen.retain for run in group]),
        "undiscovered_tokens": mean([run.tokens for run in runs]),
        "labelled_tokens": mean([run.seen.labelled(domain) for run in group]),
        **asdict(found),
        "by_construction": not grids,
        "interpolation": interpolation,
        "num_bootstrap": num_bootstrap,
        "grid": [_grid_record(column, domain) for column in zip(*models, strict=True)],
        "runs": [str(run.folder) for run in group],
    }


def _grid_record(models: Sequence[Trained], domain: Category) -> dict[str, Any]:
    """One share of a grid: its ordinary models, one a seed."""
    points = [model.point(domain) for model in models]
    return {
        "undiscovered": models[0].share,
        "tokens": mean([point.tokens for point in points]),
        "loss": mean([point.loss for point in points]),
        "retain_tokens": mean([model.seen.retain for model in models]),
        "runs": [str(model.folder) for model in models],
    }


def _of_common_shares(grids: Sequence[Sequence[Trained]]) -> list[list[Trained]]:
    """Each seed's ordinary models, of the shares that every seed has."""
    common = set.intersection(*({model.share for model in grid} for grid in grids))
    return [[model for model in grid if model.share in common] for grid in grids]
