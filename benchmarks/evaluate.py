"""Evaluation and calibration against the straightforward way, with the same model, rows and losses.

    python benchmarks/evaluate.py [--model 8M] [--rows 64] [--rounds 3]

The straightforward way evaluates the intact, the ablated and the calibrated model one after the other: a copy of the
model whose forget units are set to zero, rows in the order in which they come, padded to the longest of a batch of 8,
all logits of a batch in fp32, transformers' own attention. It calibrates by training the bias behind that copy, a batch
of each category a step, its trunk with gradients (as a plain loop has it) or frozen; of its 200 steps a few are run,
and the time of all is that of 200. Ours is `evaluate_categories` and `fit_bias`, the latter also with a pass of the
head in every step (reuse=1), whose calibrated losses it is to have. Lengths are log-normal, 220 tokens on average, at
most the context.
"""

import argparse
import copy
import dataclasses
import statistics
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from side_by_side import Timing, clock, in_turns, interval, report, speeds
from step import config_of
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from sgtm import SGTM, Partition
from sgtm.config import CalibrateConfig
from sgtm.data.mixture import Rows
from sgtm.environment import tune_malloc
from sgtm.evaluate.calibrate import fit_bias
from sgtm.evaluate.loss import evaluate_categories, evaluate_losses
from sgtm.model.attention import use_attention

CATEGORIES = ("forget", "retain")
BATCH, STEPS, SOME_STEPS = 8, 200, 2
MEAN_TOKENS, SIGMA = 220, 0.5


def make_rows(number: int, vocab: int, context: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, number).astype(int).clip(8, context)
    ids = [(vocab * rng.power(0.3, size=n)).astype(int).tolist() for n in lengths]
    return Rows(Dataset.from_dict({"input_ids": ids}), np.zeros(number, np.int8), np.arange(number))


def plain_batches(rows: Rows) -> list[tuple[Tensor, Tensor]]:
    """(ids, labels) (8, longest) each, in the order of the rows."""
    found = []
    for start in range(0, len(rows), BATCH):
        some = [torch.tensor(rows.data[i]["input_ids"]) for i in range(start, min(start + BATCH, len(rows)))]
        ids = nn.utils.rnn.pad_sequence(some, batch_first=True)
        labels = nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=-100)
        found.append((ids, labels))
    return found


def ablated(model: PreTrainedModel) -> PreTrainedModel:
    copied = copy.deepcopy(model)
    Partition.of(copied, heads=1, neurons=32).ablate()
    return copied


def plain_loss(model: PreTrainedModel, rows: Rows, bias: Tensor | None = None) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, labels in plain_batches(rows):
            logits = model(input_ids=ids).logits.float()
            if bias is not None:
                logits = logits + bias
            total += F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").item()
            count += int((labels[:, 1:] != -100).sum())
    return total / count


def plain_evaluation(model: PreTrainedModel, rows: dict[str, Rows], bias: Tensor) -> float:
    """The sum of all losses."""
    total = 0.0
    for of_category in rows.values():
        total += plain_loss(model, of_category)
        total += plain_loss(ablated(model), of_category)
        total += plain_loss(ablated(model), of_category, bias)
    return total


def plain_calibration(
    copied: PreTrainedModel, batches: dict[str, list[tuple[Tensor, Tensor]]], tokens: int, freeze: bool
) -> float:
    """Some steps; what comes before them is not counted."""
    copied.requires_grad_(not freeze)
    bias = nn.Parameter(torch.randn(copied.config.vocab_size) * 0.1)
    optimizer = torch.optim.AdamW([bias], lr=1e-2, weight_decay=0.0)
    for step in range(SOME_STEPS):
        for name, weight in (("forget", 1.0), ("retain", 100.0)):
            ids, labels = batches[name][step % len(batches[name])]
            size = max(1, round(tokens / ids.shape[1]))
            logits = copied(input_ids=ids[:size]).logits.float() + bias
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:size, 1:].flatten())
            (weight * loss).backward()
        optimizer.step()
        copied.zero_grad()
        optimizer.zero_grad()
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="8M")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rows", type=int, default=64, help="of each category, for evaluation")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calibration-rounds", type=int, default=1, help="0: evaluation alone")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/evaluate.json"))
    settings = parser.parse_args()
    tune_malloc()
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_config(config_of(settings.model, settings.context)).eval()
    ours = copy.deepcopy(stock)
    use_attention(ours)
    sgtm = SGTM(Partition.of(ours, heads=1, neurons=32))
    vocab, config = stock.config.vocab_size, CalibrateConfig(steps=STEPS)
    rows = {name: make_rows(settings.rows, vocab, settings.context, i) for i, name in enumerate(CATEGORIES)}
    to_fit = {name: make_rows(config.rows, vocab, settings.context, 7 + i) for i, name in enumerate(CATEGORIES)}
    removed, batches = ablated(stock), {name: plain_batches(found) for name, found in to_fit.items()}
    bias = torch.randn(vocab, generator=torch.Generator().manual_seed(0)) * 0.1

    def our_evaluation() -> float:
        losses = evaluate_categories(ours, rows, sgtm, bias, 64)  # type: ignore[arg-type]
        return sum(loss.mean for loss in losses.values())

    evaluation = in_turns(
        {"straightforward": lambda: plain_evaluation(stock, rows, bias), "ours": our_evaluation}, settings.rounds, 0
    )
    fitted: dict[int, Tensor] = {}

    def our_calibration(reuse: int) -> float:
        fitted[reuse] = fit_bias(ours, to_fit, dataclasses.replace(config, reuse=reuse), sgtm)  # type: ignore[arg-type]
        return 0.0

    calibration = in_turns(
        {
            "straightforward": lambda: plain_calibration(removed, batches, config.tokens, freeze=False),
            "straightforward, trunk frozen": lambda: plain_calibration(removed, batches, config.tokens, freeze=True),
            "ours, reuse=1": lambda: our_calibration(1),
            "ours": lambda: our_calibration(config.reuse),
        },
        settings.calibration_rounds,
        0,
    )
    whole = {  # of all steps
        name: [
            Timing(*(x * (1 if name.startswith("ours") else STEPS / SOME_STEPS) for x in vars(t).values()))
            for t in found
        ]
        for name, found in calibration.items()
    }
    apart = max(abs(a.loss - b.loss) for a, b in zip(evaluation["ours"], evaluation["straightforward"], strict=True))
    table = []
    for work, found in (("evaluation", evaluation), (f"calibration, {STEPS} steps", whole)):
        for name, timings in found.items():
            if not timings:
                continue
            middle = statistics.median(getattr(t, clock()) for t in timings)
            ratio = "" if name == "straightforward" else interval(speeds(timings, found["straightforward"], clock()))
            table.append([work, name, f"{middle:,.1f}", ratio])
    said = f"{settings.model}, {settings.rows} rows a category; sums of the six losses differ by {apart:.1e}"
    for name in rows if fitted else ():
        every, reused = evaluate_losses(ours, rows[name], sgtm, [fitted[1], fitted[config.reuse]])
        said += f"; {name} loss, calibrated: {every.mean:.4f} with reuse=1, {reused.mean:.4f}"
    report(
        said,
        ("", "way", f"seconds ({clock()} time)", "times faster"),
        table,
        {"evaluation": evaluation, "calibration": calibration},
        settings.out,
    )


if __name__ == "__main__":
    main()
