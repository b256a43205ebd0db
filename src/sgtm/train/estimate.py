"""What a sweep would take: parameters, tokens and FLOPs of each run, which are checked on the way."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from sgtm.config import ConfigError, RunConfig
from sgtm.data.conditional import Control
from sgtm.data.mixture import PreparedData, Rows, step_draw_chances
from sgtm.model.loading import context_of
from sgtm.train.run import (
    Method,
    check_context,
    data_of,
    evaluation_rows,
    labelled_rows,
    method_of,
    new_model,
    training_arguments,
)
from sgtm.train.states import duration, is_complete
from sgtm.train.sweep import Point


@dataclass(frozen=True)
class Cost:
    """What one run takes.

    Args:
        parameters: N, all of them.
        tokens: D, predicted tokens; the mean length of the rows that the method trains on, times rows and steps.
        assumed: what was not there to be measured.
    """

    parameters: int
    tokens: int
    assumed: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """6 N D"""
        return 6 * self.parameters * self.tokens


class Estimator:
    """Costs of runs, and whether they can be run; data and models that runs share are looked at once."""

    def __init__(self, needs_data: bool) -> None:
        self.needs_data = needs_data
        self.data: dict[str, PreparedData | ConfigError] = {}
        self.models: dict[str, PreTrainedModel] = {}
        self.per_row: dict[str, float] = {}

    def __call__(self, point: Point) -> Cost:
        """The cost of a run.

        Raises:
            ConfigError: configuration, labels or data that a run would be refused for when it starts; without its data
                only if ``needs_data``.
        """
        config = point.config
        try:
            method = method_of(config)
            training_arguments(config, point.folder)
            data = self._data(config)
            found = data if isinstance(data, PreparedData) else None
            model = self._model(config, found)
            if found is None:
                return _without_data(config, model, str(data))
            check_context(model, found)
            evaluation_rows(config, found)
            per_row = self._tokens_per_row(config, method, found)
        except ConfigError as error:
            raise ConfigError(f"{point.name}: {error}") from error
        return Cost(model.num_parameters(), round(config.train.steps * config.train.batch_size * per_row))

    def _data(self, config: RunConfig) -> PreparedData | ConfigError:
        key = _key(config.data, config.partition.names, method_of(config).use == "condition")
        if key not in self.data:
            try:
                self.data[key] = data_of(config)
            except ConfigError as error:
                if self.needs_data:
                    raise
                self.data[key] = error
        return self.data[key]

    def _tokens_per_row(self, config: RunConfig, method: Method, data: PreparedData) -> float:
        """Seeds draw different rows of nearly the same length."""
        t = config.train
        key = _key(config.data, config.partition.names, config.labels, method.use, t.mixing, t.batch_size)
        if key not in self.per_row:
            self.per_row[key] = tokens_per_row(config, method, data.train, data.control)
        return self.per_row[key]

    def _model(self, config: RunConfig, data: PreparedData | None) -> PreTrainedModel:
        """The model without its weights."""
        key = _key(config.model, config.partition, config.method, config.data)
        if key not in self.models:
            with torch.device("meta" if config.model.from_pretrained is None else "cpu"):
                self.models[key], _ = new_model(config, data)
        return self.models[key]


def tokens_per_row(config: RunConfig, method: Method, rows: Rows, control: Control | None = None) -> float:
    """Predicted tokens of the mean row that a method trains on: a filter drops what is labelled forget.

    Raises:
        ConfigError: see ``labelled_rows``.
    """
    labelled, _, _ = labelled_rows(config, method, rows, control)
    kept = np.ones(len(labelled))
    if config.train.mixing == "step_draw":
        kept -= step_draw_chances(labelled, config.labels, method.use)[labelled.categories, -1]
    return float(np.average(labelled.lengths - 1, weights=kept))


def check(points: Sequence[Point]) -> list[Cost]:
    """Costs of runs, all of which can be run.

    Raises:
        ConfigError: the first run that would be refused when it starts.
    """
    estimator = Estimator(needs_data=True)
    return [estimator(point) for point in points]


def print_costs(points: Sequence[Point], tokens_per_second: float | None = None) -> None:
    """A row for each group of runs that differ by their seed alone, and the total of what is left to run.

    Args:
        tokens_per_second: of one run.
    """
    estimator = Estimator(needs_data=False)
    complete = [point for point in points if is_complete(point.folder)]
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.name.rpartition("-seed")[0] or point.name, []).append(point)
    costs = {name: estimator(members[0]) for name, members in groups.items()}
    table = Table(title_justify="left")
    for name in ("runs", "number", "complete", "parameters", "tokens a run", "FLOPs a run"):
        table.add_column(name, justify="left" if name == "runs" else "right")
    for name, members in groups.items():
        cost, done = costs[name], sum(point in complete for point in members)
        cells = (str(len(members)), str(done or ""), f"{cost.parameters:,}", f"{cost.tokens:,}", f"{cost.flops:.3g}")
        table.add_row(name, *cells)
    Console(width=max(100, Console().width)).print(table)
    left = [(costs[name], sum(point not in complete for point in members)) for name, members in groups.items()]
    _print_total(left, tokens_per_second)


def _print_total(costs: Sequence[tuple[Cost, int]], tokens_per_second: float | None) -> None:
    tokens, flops = (sum(getattr(cost, name) * n for cost, n in costs) for name in ("tokens", "flops"))
    runs = sum(n for _, n in costs)
    print(f"{runs} runs to do: {tokens:,} tokens, {flops:.3g} FLOPs (6 x parameters x tokens)")
    if tokens_per_second:
        hours = duration(tokens / tokens_per_second)
        print(f"at {tokens_per_second:,.0f} tokens/s: {hours or '0 s'} one after another, evaluations not counted")
    for assumed in dict.fromkeys(text for cost, _ in costs for text in cost.assumed):
        print(f"assumed: {assumed}")


def _without_data(config: RunConfig, model: PreTrainedModel, why: str) -> Cost:
    """The most that a run can take."""
    context = context_of(model)
    size = f"a vocabulary of {model.config.vocab_size:,}" if "vocab_size" not in config.model.config else ""
    rows = f"every row as long as the model's context, {context} tokens"
    assumed = f"{' and '.join(filter(None, (rows, size)))} ({why})"
    tokens = config.train.steps * config.train.batch_size * (context - 1)
    return Cost(model.num_parameters(), tokens, (assumed,))


def _key(*parts: Any) -> str:
    plain = [asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
    return json.dumps(plain, sort_keys=True)
