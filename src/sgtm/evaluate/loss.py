"""Losses in nats per token: sums over tokens, never means of means."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from sgtm.config import Category
from sgtm.data.mixture import Rows, collate
from sgtm.model.masking import SGTM

Variant = Literal["intact", "ablated", "calibrated"]
_MAX_LOGITS = 2**27  # entries of one forward pass: half a gigabyte in fp32
_CHUNK = 2**24  # entries that are in fp32 at a time


@dataclass(frozen=True)
class Loss:
    """``mean`` = sum of token losses / ``num_tokens``."""

    mean: float
    num_tokens: int


@torch.no_grad()
def evaluate_loss(
    model: PreTrainedModel,
    rows: Rows,
    sgtm: SGTM | None = None,
    bias: Tensor | None = None,
    batch_size: int = 64,
    without: Sequence[str] = (),
) -> Loss:
    """Next-token loss of ``model`` on ``rows``, token-weighted; end-of-text counts, padding does not.

    Args:
        sgtm: if given, the *ablated* model is evaluated, by its retain pass: no weight is changed.
        bias: (vocab,) added to the logits (calibration).
        batch_size: rows of one forward pass, fewer where the logits would be large.
        without: the domains that the ablated model is without; all by default.

    Raises:
        ValueError: no row has a token to predict.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    with evaluating(model, sgtm, without):
        for input_ids, labels in batches(model, rows, batch_size):
            logits = model(input_ids=input_ids, use_cache=False).logits
            total += _sum_of_losses(logits, labels, bias)
            count += int((labels[:, 1:] != -100).sum())
    if not count:
        raise ValueError(f"{len(rows)} rows have no token to predict; rows need at least two tokens")
    return Loss(float(total) / count, count)


@contextmanager
def evaluating(model: PreTrainedModel, sgtm: SGTM | None, without: Sequence[str] = ()) -> Iterator[None]:
    """``model`` without dropout and, given ``sgtm``, ablated of the domains ``without``; afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        with sgtm.without(*without) if sgtm is not None else nullcontext():
            yield
    finally:
        model.train(was_training)


def evaluate_categories(
    model: PreTrainedModel,
    rows: dict[Category, Rows],
    sgtm: SGTM | None,
    bias: Tensor | None,
    batch_size: int,
    without: Sequence[str] = (),
    for_removed: Callable[[Rows], Rows] | None = None,
) -> dict[tuple[Category, Variant], Loss]:
    """Losses of every category for the intact and ablated model and, with a ``bias``, the calibrated one.

    ``without`` names the domains that the ablated model is without; all by default.

    A model without forget units (``sgtm=None``) is its own ablated model, unless it is given rows in another way
    (``for_removed``: conditional training).
    """
    losses: dict[tuple[Category, Variant], Loss] = {}
    for category, of_category in rows.items():
        intact = evaluate_loss(model, of_category, batch_size=batch_size)
        losses[category, "intact"] = losses[category, "ablated"] = intact
        given = of_category if for_removed is None else for_removed(of_category)
        if sgtm is not None or given is not of_category:
            losses[category, "ablated"] = evaluate_loss(model, given, sgtm, None, batch_size, without)
        if bias is not None:
            losses[category, "calibrated"] = evaluate_loss(model, given, sgtm, bias, batch_size, without)
    return losses


def of_categories(losses: Mapping[tuple[str, Variant], Loss]) -> dict[tuple[Category, Variant], Loss]:
    """Losses of whole categories from those of their parts (``retain/Culture``): means over all their tokens."""
    parts: dict[tuple[Category, Variant], list[Loss]] = {}
    for (name, variant), loss in losses.items():
        parts.setdefault((name.partition("/")[0], variant), []).append(loss)
    numbers = {key: sum(loss.num_tokens for loss in found) for key, found in parts.items()}
    return {
        key: Loss(sum(loss.mean * loss.num_tokens for loss in found) / numbers[key], numbers[key])
        for key, found in parts.items()
    }


def ablation_matrix(
    sgtm: SGTM, rows: dict[Category, Rows], batch_size: int = 64
) -> dict[tuple[str, ...], dict[Category, Loss]]:
    """Removed domains -> losses of every category: none removed, each one, and all."""
    domains = tuple(sgtm.partition.domains)
    removed = dict.fromkeys([(), *((d,) for d in domains), domains])
    model = sgtm.partition.model
    return {
        names: {
            category: evaluate_loss(model, found, sgtm if names else None, None, batch_size, names)
            for category, found in rows.items()
        }
        for names in removed
    }


def batches(model: PreTrainedModel, rows: Rows, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(input_ids, labels), (batch, seq) each, on the model's device; rows of like length stand together."""
    for _, input_ids, labels in numbered_batches(model, rows, batch_size):
        yield input_ids, labels


def numbered_batches(
    model: PreTrainedModel, rows: Rows, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
    """As ``batches``, and before them (batch,) which rows these are."""
    parameter = next(model.parameters())
    lengths = np.array([len(rows.data[i]["input_ids"]) for i in range(len(rows))])
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = rows_that_fit(model, int(lengths[order[start]]), batch_size)
        found = order[start : start + size]
        batch = collate([_read(rows[int(i)]) for i in found])
        yield found, batch["input_ids"].to(parameter.device), batch["labels"].to(parameter.device)
        start += size


def rows_that_fit(model: PreTrainedModel, length: int, batch_size: int) -> int:
    """``batch_size``, or as many rows of ``length`` tokens as have logits of a size that memory holds."""
    head: Any = model.get_output_embeddings()
    vocab_size = int(head.weight.shape[0])
    return min(batch_size, max(1, _MAX_LOGITS // (length * vocab_size)))


def _read(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what concerns training alone."""
    return {key: row[key] for key in ("input_ids", "labels") if key in row}


def _sum_of_losses(logits: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
    """Sum over tokens of -log softmax(logits + bias)[label], in fp32 a few rows at a time; () on the CPU."""
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    rows = max(1, _CHUNK // (logits.shape[1] * logits.shape[2]))
    for z, y in zip(logits[:, :-1].split(rows), labels[:, 1:].split(rows), strict=True):
        z = z.float() if bias is None else z.float() + bias
        total += F.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum")
    return total.cpu()
