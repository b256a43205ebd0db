"""Relearning: fine-tune a model from which something was removed, and see how soon it is back.

A curve for each learning rate: at every evaluation a record for each category, with ``learning_rate`` and
``forget_tokens`` (predicted tokens of the domain's text trained on so far; none in attacks on adjacent text alone). All
begin with the *ablated* model itself, without the bias of a calibration. ``summary.json`` says where each curve reaches
the target, and which learning rate an attacker would choose. A relearning that is killed goes on with the curves that
are not finished. One process, one device.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sgtm.config import Category, ConfigError, RelearnConfig, Stream, TrainConfig, write
from sgtm.data.mixture import PreparedData, Rows, collate
from sgtm.environment import tune_malloc
from sgtm.evaluate.loss import Loss, evaluate_loss
from sgtm.evaluate.relearn import Outcome, Point, best, reach
from sgtm.plain import to_yaml
from sgtm.records import METRICS, RELEARN, SUMMARY, read_records
from sgtm.train.opening import Opened, open_model
from sgtm.train.start import (
    Matched,
    check_fits,
    data_for,
    domain_of,
    in_precision,
    match,
    on_device,
    open_matched,
    start_model,
    test_rows,
    words,
)

_LORA_ALPHA = 2  # times the rank


@dataclass(frozen=True)
class Part:
    """Text that every step takes ``tokens`` predicted tokens of; ``lengths`` (rows,) says how many each row has."""

    category: Category
    rows: Rows
    tokens: int
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """All that the curves of one relearning have in common."""

    config: RelearnConfig
    start: Path
    matched: Matched | None
    parts: tuple[Part, ...]
    test: dict[Category, Rows]
    domain: Category
    target: float | None


def relearn(start: Path, config: RelearnConfig, out: Path, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Fine-tune ``start`` with every learning rate; returns what ``summary.json`` holds.

    Args:
        start: anything that ``open_model`` opens; its forget units are removed first.
        out: the folder to write: relearn.yaml, metrics.jsonl, summary.json. An earlier relearning with the same
            settings (but for the learning rates) goes on there.
        report: is told how far it is.

    Raises:
        ConfigError: anything wrong with model, data, settings or folder, before a step is taken.
    """
    finished = finished_curves(start, config, out)
    missing = [rate for rate in config.learning_rates if rate not in finished]
    if not missing:
        return json.loads((out / SUMMARY).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    tune_malloc()
    setting = setting_of(start, config)
    if setting.matched is not None:
        m = setting.matched
        report(f"matched: step {m.step} ({m.path}), retain loss {m.loss:.4f} for {m.wanted:.4f}")
    for number, rate in enumerate(missing):
        model = start_of(setting)
        if not number:
            _start_folder(start, config, out, set(finished))
        finished[rate] = Curve(model, rate, setting, out / METRICS, report).run()
        summary = _write_summary(setting, finished, out)
        report(f"learning rate {rate:g}: {finished[rate] if setting.target is not None else 'no target'}")
    return summary


def start_of(setting: Setting) -> PreTrainedModel:
    """A fresh model to begin a curve with, with adapters if so configured."""
    c = setting.config
    model = start_model(_open(setting.start, setting.matched), c.units, words(c.without), c.seed)
    torch.manual_seed(c.seed)  # of dropout, and of adapters' weights
    return with_lora(model, c.lora) if c.lora else model


def with_lora(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    """``model`` with LoRA adapters at all projections of its layers; nothing else is trained.

    Adapters start as zero. They reach units that are zero as well: what full fine-tuning can never wake, they can.
    """
    from peft import LoraConfig, get_peft_model

    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    settings = LoraConfig(
        r=rank,
        lora_alpha=_LORA_ALPHA * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=transposed,
    )
    return get_peft_model(model, settings)  # type: ignore[return-value, arg-type]


def rows_of_steps(lengths: NDArray[np.int64], tokens: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Rows of one step after the other, ``tokens`` predicted tokens or a little more each, without end.

    Each pass over the rows has an order of its own, and every row once.

    Args:
        lengths: (rows,) predicted tokens of each row.
    """
    order: Iterator[int] = iter(())
    while True:
        chosen: list[int] = []
        count = 0
        while count < tokens:
            row = next(order, None)
            if row is None:
                order = iter(rng.permutation(len(lengths)).tolist())
                continue
            chosen.append(row)
            count += int(lengths[row])
        yield chosen


def setting_of(start: Path, config: RelearnConfig) -> Setting:
    c, matched = config, None
    if c.match is not None:
        with in_precision(c.precision):
            matched = match(start, Path(c.match), c.data, c.evaluate.rows, c.match_tolerance, c.evaluate.batch_size)
    opened = _open(start, matched)
    data = data_for(opened, c.data, c.target)
    domain = domain_of(data, c.domain)
    test = test_rows(data, c.evaluate.rows)
    if domain not in test:
        raise ConfigError(f"the data has no test rows of {domain}; prepare it with some")
    with in_precision(c.precision):  # of the curve that is to reach it
        target = None if c.target is None else target_loss(c.target, data, test[domain], c.evaluate.batch_size)
    return Setting(c, start, matched, parts_of(data, c, domain), test, domain, target)


def target_loss(target: str, data: PreparedData, rows: Rows, batch_size: int) -> float:
    """A loss in nats per token, or that of the model at a path, with all units that it has.

    Raises:
        ConfigError: neither a positive number nor a model, or one that ``data`` does not fit.
    """
    try:
        loss = float(target)
    except ValueError:
        opened = open_model(Path(target))
        check_fits(opened, data)
        return evaluate_loss(on_device(opened.model), rows, batch_size=batch_size).mean
    if not loss > 0:
        raise ConfigError(f"target={target} is no loss; give nats per token, more than 0, or a model's folder")
    return loss


def parts_of(data: PreparedData, config: RelearnConfig, domain: Category) -> tuple[Part, ...]:
    """What a step trains on: ``mix`` of the attack's text, and retain text.

    Raises:
        ConfigError: a step wants more tokens of a category than there are.
    """
    wanted = round(config.tokens * config.mix)
    category = domain if config.on == "forget" else "adjacent"
    quotas = {category: wanted, "retain": config.tokens - wanted}
    parts = [_part(data.train.of(c), c, tokens) for c, tokens in quotas.items() if tokens]
    for part in parts:
        there = int(part.lengths.sum())
        if there < part.tokens:
            raise ConfigError(
                f"a step takes {part.tokens:,} tokens of category {part.category} and the data has {there:,}; use "
                "fewer --tokens, or another --mix"
            )
    return tuple(parts)


def _part(rows: Rows, category: Category, tokens: int) -> Part:
    lengths = rows.lengths - 1 if len(rows) else np.zeros(0, np.int64)  # a row's first token is not predicted
    return Part(category, rows, tokens, lengths)


class Curve:
    """Fine-tuning with one learning rate, measured as it goes.

    Args:
        path: the file that records are added to.
    """

    def __init__(
        self, model: PreTrainedModel, rate: float, setting: Setting, path: Path, report: Callable[[str], None]
    ) -> None:
        t, warmup = TrainConfig(), max(1, setting.config.warmup_steps)
        self.model, self.rate, self.setting, self.path, self.report = model, rate, setting, path, report
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, rate, (t.beta1, t.beta2), weight_decay=t.weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / warmup))
        self.max_norm = t.max_grad_norm
        self.seen = dict.fromkeys((part.category for part in setting.parts), 0)  # predicted tokens

    def run(self) -> Outcome:
        """Train until the target is reached, the steps are done, or the loss is no number any more."""
        c, target = self.setting.config, -math.inf if self.setting.target is None else self.setting.target
        points = [self.evaluate(0)]
        if not math.isfinite(points[0].loss):
            raise ConfigError(f"the model's loss is {points[0].loss} before any step; it diverged in its training")
        for step, rows in enumerate(_steps(self.setting), 1):
            if step > c.steps or (c.stop and points[-1].loss <= target):
                break
            self.step(rows)
            if step % (c.evaluate.every or c.steps) and step < c.steps:
                continue
            point = self.evaluate(step)
            if not math.isfinite(point.loss):
                self.report(f"learning rate {self.rate:g} diverged before step {step}")
                break
            points.append(point)
        return reach(points, target)

    def step(self, rows: Sequence[Sequence[int]]) -> None:
        """One optimizer step on some rows of each part."""
        parts = self.setting.parts
        self._accumulate([part.rows[i] for part, chosen in zip(parts, rows, strict=True) for i in chosen])
        torch.nn.utils.clip_grad_norm_(self.weights, self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        for part, chosen in zip(parts, rows, strict=True):
            self.seen[part.category] += int(part.lengths[chosen].sum())

    def _accumulate(self, examples: list[dict[str, Any]]) -> None:
        """The gradient of the step's loss, which is a mean over its predicted tokens."""
        size, device = self.setting.config.micro_batch_size, self.model.device
        total = sum(len(example["input_ids"]) - 1 for example in examples)
        self.model.train()
        for first in range(0, len(examples), size):
            batch = collate(examples[first : first + size])
            with in_precision(self.setting.config.precision):
                logits = self.model(input_ids=batch["input_ids"].to(device), use_cache=False).logits[:, :-1]
            targets = batch["labels"][:, 1:].to(device).flatten()
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="sum")
            (loss / total).backward()  # type: ignore[no-untyped-call]

    def evaluate(self, step: int) -> Point:
        """Test losses of one step, as records; its forget loss, as a point of the curve."""
        s, tokens, forget = self.setting, sum(self.seen.values()), self.seen.get(self.setting.domain, 0)
        with in_precision(self.setting.config.precision):
            losses = {
                c: evaluate_loss(self.model, r, batch_size=s.config.evaluate.batch_size) for c, r in s.test.items()
            }
        about = {
            "learning_rate": self.rate,
            "step": step,
            "tokens": tokens,
            "forget_tokens": forget,
            "flops": 6 * self.model.num_parameters() * tokens,
        }
        if all(math.isfinite(loss.mean) for loss in losses.values()):
            with self.path.open("a", encoding="utf-8") as file:
                for category, loss in losses.items():
                    file.write(json.dumps({**about, **_measured(category, loss)}) + "\n")
        shown = ", ".join(f"{category} {loss.mean:.3f}" for category, loss in losses.items())
        self.report(f"learning rate {self.rate:g}, step {step}: {shown}")
        return Point(step, tokens, forget, losses[s.domain].mean)


def _measured(category: Category, loss: Loss) -> dict[str, Any]:
    what = {"split": "test", "category": category, "variant": "intact"}
    return {**what, "loss": loss.mean, "num_tokens": loss.num_tokens}


def _steps(setting: Setting) -> Iterator[tuple[list[int], ...]]:
    """Rows of each part, step by step."""
    streams = []
    for number, part in enumerate(setting.parts):
        rng = np.random.default_rng((setting.config.seed, Stream.RELEARN, number))
        streams.append(rows_of_steps(part.lengths, part.tokens, rng))
    return zip(*streams, strict=True)


def _open(start: Path, matched: Matched | None) -> Opened:
    return open_model(start) if matched is None else open_matched(matched)


def _settings(start: Path, config: RelearnConfig) -> dict[str, Any]:
    return {"start": str(start), **asdict(config)}


def finished_curves(start: Path, config: RelearnConfig, out: Path) -> dict[float, Outcome]:
    """Learning rate -> outcome of the curves that are finished there.

    Raises:
        ConfigError: another relearning is there.
    """
    if not (out / RELEARN).is_file():
        if out.is_dir() and any(out.iterdir()):
            raise ConfigError(f"{out} holds something else; choose another --out")
        return {}
    before = yaml.safe_load((out / RELEARN).read_text(encoding="utf-8"))
    now = _settings(start, config)
    changed = [key for key in now if now[key] != before.get(key) and key != "learning_rates"]
    if changed:
        raise ConfigError(f"{out} holds a relearning with another {', '.join(changed)}; choose another --out")
    if not (out / SUMMARY).is_file():
        return {}
    summary = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    return {curve["learning_rate"]: _outcome(curve, summary["target"]) for curve in summary["curves"]}


def _start_folder(start: Path, config: RelearnConfig, out: Path, finished: set[float]) -> None:
    """Settings, and the records of finished curves alone: one that was killed begins anew."""
    out.mkdir(parents=True, exist_ok=True)
    write(out / RELEARN, to_yaml(_settings(start, config)))
    kept = [r for r in read_records(out / METRICS) if r["learning_rate"] in finished]
    write(out / METRICS, "".join(json.dumps(r) + "\n" for r in kept))


def _write_summary(setting: Setting, finished: dict[float, Outcome], out: Path) -> dict[str, Any]:
    rates = list(finished)
    m = setting.matched
    summary = {
        "start": str(setting.start),
        "domain": setting.domain,
        "target": setting.target,
        "matched": None if m is None else {**asdict(m), "path": str(m.path)},
        "best": rates[best(finished.values())],
        "curves": [_curve_record(rate, outcome) for rate, outcome in finished.items()],
    }
    write(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def _curve_record(rate: float, outcome: Outcome) -> dict[str, Any]:
    return {
        "learning_rate": rate,
        "reached": outcome.at is not None,
        "at": None if outcome.at is None else asdict(outcome.at),
        "closest": asdict(outcome.closest),
        "steps": outcome.steps,
    }


def _outcome(curve: dict[str, Any], target: float | None) -> Outcome:
    at = None if curve["at"] is None else Point(**curve["at"])
    return Outcome(-math.inf if target is None else target, at, Point(**curve["closest"]), curve["steps"])
