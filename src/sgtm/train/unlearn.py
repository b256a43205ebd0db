"""Unlearning: suppress a capability of a finished model (the methods are in ``sgtm.train.unlearning``).

The folder that is written has unlearn.yaml (the settings, and the model begun from), metrics.jsonl and model/, a
Hugging Face checkpoint; all commands that take a model take it. One process, one device, minutes: a killed one begins
anew.
"""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from sgtm.config import Category, ConfigError, RunError, Stream, UnlearnConfig, nearest, write
from sgtm.data.mixture import PreparedData, Rows, collate
from sgtm.environment import tune_malloc
from sgtm.evaluate.calibrate import fit_bias
from sgtm.evaluate.loss import Loss, Variant, evaluate_categories
from sgtm.plain import to_yaml
from sgtm.records import METRICS, UNLEARN
from sgtm.train.opening import open_model
from sgtm.train.relearn import rows_of_steps
from sgtm.train.run import save_model
from sgtm.train.start import data_for, in_precision, on_device, test_rows
from sgtm.train.unlearning import Batch, Phase, phases_of
from sgtm.train.unlearning.rmu import layer_of, updated

Losses = dict[tuple[Category, Variant], Loss]
_MAX_NORM = 1.0


def unlearn(start: Path, config: UnlearnConfig, out: Path, report: Callable[[str], None] = print) -> Losses:
    """Unlearn domains of the model at ``start`` and write it to ``out``; returns its test losses.

    Args:
        start: anything that ``open_model`` opens, with all its units.
        report: is told what is updated and how far it is.

    Raises:
        ConfigError: anything wrong with model, data, settings or folder, before a step is taken.
        RunError: the loss is no number any more; nothing but the records is written then.
    """
    _check_folder(out)
    opened = open_model(start)
    data = data_for(opened, config.data)
    config = replace(config, domains=_known(config.domains, data.train.domains) or list(data.train.domains))
    if config.method == "rmu" or (config.method == "undo" and config.undo.first == "rmu"):
        config = replace(config, layer=layer_of(opened.model, config.layer))
    chosen = choose_parameters(opened.model, globs_of(opened.model, config))
    report(f"{config.method} updates {len(chosen)} of the model's parameters: {_some(list(chosen))}")
    training = _Unlearning(on_device(opened.model), config, data, out, report)
    _start_folder(start, config, out)
    losses = training.run(chosen)
    save_model(opened.model, opened.tokenizer or data.tokenizer, out / "model")
    return losses


def globs_of(model: PreTrainedModel, config: UnlearnConfig) -> list[str]:
    """The globs of parameters that the configuration stands for."""
    if config.parameters:
        return config.parameters
    return ["*"] if config.layer is None else updated(model, config.layer)


def choose_parameters(model: nn.Module, globs: list[str]) -> dict[str, nn.Parameter]:
    """The parameters whose names match one of ``globs``.

    Raises:
        ConfigError: a glob that matches none (the nearest name is given).
    """
    named = dict(model.named_parameters())
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in named):
            raise ConfigError(
                f"parameters: {glob!r} matches none of the model's{nearest(glob, named)} ({_some(list(named))})"
            )
    return {name: p for name, p in named.items() if any(fnmatchcase(name, glob) for glob in globs)}


class _Unlearning:
    """A model while it is being changed."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: UnlearnConfig,
        data: PreparedData,
        out: Path,
        report: Callable[[str], None],
    ) -> None:
        tune_malloc()
        self.model, self.config, self.path, self.report = model, config, out / METRICS, report
        self.test = test_rows(data, config.evaluate.rows)
        self.forget = [_some_rows(data, [domain]) for domain in config.domains]
        self.retain = _some_rows(data, config.retain)
        limit, seed = config.calibrate.rows, config.seed
        self.for_bias = {c: data.train.of(c, limit, seed) for c in data.train.present}
        self.step = self.tokens = 0
        self.losses: Losses = {}

    def run(self, chosen: Mapping[str, nn.Parameter]) -> Losses:
        """All phases; returns the losses at the end, a calibration included."""
        self.model.eval()  # no dropout
        self.evaluate()
        phases = phases_of(self.config)
        for phase in phases:
            self._run(phase, chosen if phase.chooses else dict(self.model.named_parameters()))
        with in_precision(self.config.precision):
            bias = fit_bias(self.model, self.for_bias, self.config.calibrate, None, self.config.seed)
        self.evaluate(bias)
        return self.losses

    def _run(self, phase: Phase, chosen: Mapping[str, nn.Parameter]) -> None:
        objective = phase.make(self.model, self._frozen, self.config)
        if phase.begin is not None:
            phase.begin(self.model, self.config)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in chosen)
        optimizer = torch.optim.AdamW(chosen.values(), phase.learning_rate)
        batches = self._batches()
        for i in tqdm(range(phase.steps), self.config.method, leave=False):
            forget, retain, domain = next(batches)
            with in_precision(self.config.precision):
                loss = objective(forget, retain, domain)
            loss.backward()  # type: ignore[no-untyped-call]
            if not math.isfinite(value := float(loss.detach())):
                raise RunError(f"the loss is {value} at step {self.step}; use a lower --learning-rate")
            torch.nn.utils.clip_grad_norm_(chosen.values(), _MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
            self.step += 1
            self.tokens += sum(int((b.labels[:, 1:] != -100).sum()) for b in (forget, retain))
            if self.config.evaluate.every and self.step % self.config.evaluate.every == 0 and i + 1 < phase.steps:
                self.evaluate()
        self.model.requires_grad_(True)

    def _frozen(self) -> PreTrainedModel:
        """A copy of the model as it is now."""
        return copy.deepcopy(self.model).requires_grad_(False)

    def _batches(self) -> Iterator[tuple[Batch, Batch, int]]:
        """Rows of the domains, in turns, beside retained ones; each set in random order, and every row once a pass."""
        size, seed = self.config.batch_size, self.config.seed
        streams = [
            rows_of_steps(np.ones(len(rows), np.int64), size, np.random.default_rng((seed, Stream.UNLEARN, i)))
            for i, rows in enumerate((*self.forget, self.retain))
        ]
        *forget, retain = streams
        while True:
            for domain, (rows, stream) in enumerate(zip(self.forget, forget, strict=True)):
                yield self._batch(rows, next(stream)), self._batch(self.retain, next(retain)), domain

    def _batch(self, rows: Rows, chosen: list[int]) -> Batch:
        batch = collate([{"input_ids": rows[i]["input_ids"]} for i in chosen])
        return Batch(batch["input_ids"].to(self.model.device), batch["labels"].to(self.model.device))

    def evaluate(self, bias: torch.Tensor | None = None) -> None:
        """Record the test losses of every category."""
        with in_precision(self.config.precision):
            self.losses = evaluate_categories(self.model, self.test, None, bias, self.config.evaluate.batch_size)
        flops = 6 * self.model.num_parameters() * self.tokens
        with self.path.open("a", encoding="utf-8") as file:
            for (category, variant), loss in self.losses.items():
                about = {"step": self.step, "tokens": self.tokens, "flops": flops, "split": "test"}
                what = {"category": category, "variant": variant, "loss": loss.mean, "num_tokens": loss.num_tokens}
                file.write(json.dumps({**about, **what}) + "\n")
        shown = ", ".join(f"{c} {loss.mean:.3f}" for (c, variant), loss in self.losses.items() if variant == "intact")
        self.report(f"step {self.step}: {shown}")


def _some_rows(data: PreparedData, categories: list[Category]) -> Rows:
    """Training rows of the categories.

    Raises:
        ConfigError: there are none.
    """
    known = data.train.present
    for category in categories:
        if category not in known:
            raise ConfigError(
                f"the data has no training rows of {category!r}{nearest(category, known)} (it has {known})"
            )
    codes = [(*data.train.domains, "adjacent", "retain").index(category) for category in categories]
    return data.train.select(np.flatnonzero(np.isin(data.train.categories, codes)))


def _known(asked: list[str], domains: tuple[str, ...]) -> list[str]:
    for name in asked:
        if name not in domains:
            raise ConfigError(f"{name!r} is no domain{nearest(name, domains)} (domains: {', '.join(domains)})")
    return asked


def _some(names: list[str], number: int = 8) -> str:
    return ", ".join(names[:number]) + (f" and {len(names) - number} more" if len(names) > number else "")


def _check_folder(out: Path) -> None:
    if (out / "model").exists() or (out.is_dir() and any(out.iterdir()) and not (out / UNLEARN).is_file()):
        raise ConfigError(f"{out} exists already; remove it or choose another --out")


def _start_folder(start: Path, config: UnlearnConfig, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"start": str(start), **asdict(config)}
    write(out / UNLEARN, to_yaml(settings))
    (out / METRICS).unlink(missing_ok=True)
