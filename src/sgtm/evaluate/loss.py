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
from sgtm.evaluate.share import WHOLE, Share
from sgtm.model.chunked_loss import can_part, entries_at_a_time, headless
from sgtm.model.masking import SGTM

Variant = Literal["intact", "ablated", "calibrated"]
_MAX_LOGITS = 2**27  # entries of one forward pass: half a gigabyte in fp32


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
    share: Share = WHOLE,
) -> Loss:
    """Next-token loss of ``model`` on ``rows``, token-weighted; end-of-text counts, padding does not.

    Args:
        sgtm: if given, the *ablated* model is evaluated, by its retain pass: no weight is changed.
        bias: (vocab,) added to the logits (calibration).
        batch_size: rows of one forward pass, fewer where the logits would be large.
        without: the domains that the ablated model is without; all by default.
        share: of the rows that this process takes; the loss is that of all of them.

    Raises:
        ValueError: no row has a token to predict.
    """
    return evaluate_losses(model, rows, sgtm, [bias], batch_size, without, share)[0]


@torch.no_grad()
def evaluate_losses(
    model: PreTrainedModel,
    rows: Rows,
    sgtm: SGTM | None,
    biases: Sequence[Tensor | None],
    batch_size: int = 64,
    without: Sequence[str] = (),
    share: Share = WHOLE,
) -> list[Loss]:
    """``evaluate_loss`` with each of ``biases``, in one pass of the trunk.

    Where the logits are the head's output on the last hidden state they are made for some positions at a time, and not
    at all where nothing is to be predicted.
    """
    totals, count = torch.zeros(len(biases), dtype=torch.float64), 0
    in_parts = isinstance(model, PreTrainedModel) and can_part(model)
    with evaluating(model, sgtm, without):
        for input_ids, labels in batches(model, rows, batch_size, share):
            told = labels[:, 1:] != -100
            with headless(model) if in_parts else nullcontext():
                states = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
            head: Any = model.get_output_embeddings() if in_parts else None
            totals += _sums_of_losses(states, head, labels[:, 1:], told, biases)
            count += int(told.sum())
    device = next(model.parameters()).device
    *sums, num_tokens = share.sum([*totals.tolist(), count], device)
    if not num_tokens:
        raise ValueError(f"{len(rows)} rows have no token to predict; rows need at least two tokens")
    return [Loss(total / num_tokens, int(num_tokens)) for total in sums]


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
    share: Share = WHOLE,
) -> dict[tuple[Category, Variant], Loss]:
    """Losses of every category for the intact and ablated model and, with a ``bias``, the calibrated one.

    ``without`` names the domains that the ablated model is without; all by default.

    A model without forget units (``sgtm=None``) is its own ablated model, unless it is given rows in another way
    (``for_removed``: conditional training).
    """
    losses: dict[tuple[Category, Variant], Loss] = {}
    for category, of_category in rows.items():
        intact = evaluate_loss(model, of_category, batch_size=batch_size, share=share)
        losses[category, "intact"] = losses[category, "ablated"] = intact
        given = of_category if for_removed is None else for_removed(of_category)
        variants: list[Variant] = []
        if sgtm is not None or given is not of_category:
            variants.append("ablated")
        if bias is not None:
            variants.append("calibrated")
        if variants:
            biases = [bias if variant == "calibrated" else None for variant in variants]
            found = evaluate_losses(model, given, sgtm, biases, batch_size, without, share)
            losses |= {(category, variant): loss for variant, loss in zip(variants, found, strict=True)}
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


def batches(
    model: PreTrainedModel, rows: Rows, batch_size: int, share: Share = WHOLE
) -> Iterator[tuple[Tensor, Tensor]]:
    """(input_ids, labels), (batch, seq) each, on the model's device; rows of like length stand together."""
    for _, input_ids, labels in numbered_batches(model, rows, batch_size, share):
        yield input_ids, labels


def numbered_batches(
    model: PreTrainedModel, rows: Rows, batch_size: int, share: Share = WHOLE
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
    """As ``batches``, and before them (batch,) which rows these are.

    Every ``share`` has as many batches, as a sharded model needs; where one has no row of a batch it is given one
    without a label.
    """
    parameter = next(model.parameters())
    lengths = np.array([len(rows.data[i]["input_ids"]) for i in range(len(rows))])
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = rows_that_fit(model, int(lengths[order[start]]), batch_size) * share.num
        found = share.of(order[start : start + size])
        batch = collate([_read(rows[int(i)]) for i in (found if len(found) else order[start : start + 1])])
        if not len(found):
            batch["labels"].fill_(-100)
        yield found, batch["input_ids"].to(parameter.device), batch["labels"].to(parameter.device)
        start += size


def rows_that_fit(model: PreTrainedModel, length: int, batch_size: int) -> int:
    """``batch_size``, or as many rows of ``length`` tokens as have logits of a size that memory holds."""
    head: Any = model.get_output_embeddings()
    return min(batch_size, max(1, _MAX_LOGITS // (length * len(head.weight))))


def _read(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what concerns training alone."""
    return {key: row[key] for key in ("input_ids", "labels") if key in row}


def _sums_of_losses(
    states: Tensor, head: Any, targets: Tensor, told: Tensor, biases: Sequence[Tensor | None]
) -> Tensor:
    """For each bias the sum of -log softmax(logits + bias)[target] in fp32, some positions at a time; on the CPU.

    Args:
        states: (batch, seq, vocab), or (batch, seq, hidden) and the ``head`` that reads them.
        targets, told: (batch, seq), and where there is one.
    """
    totals = torch.zeros(len(biases), dtype=torch.float64, device=states.device)
    size = max(1, entries_at_a_time(states.device) // (states.shape[-1] if head is None else len(head.weight)))
    rows = len(states) if head is not None else max(1, size // max(1, states.shape[1]))  # whole logits stay in place
    parts = zip(states.split(rows), targets.split(rows), told.split(rows), strict=True)
    for x, y, some in parts:
        for h, target in zip(x[some].split(size), y[some].split(size), strict=True):
            z = (h if head is None else head(h)).float()  # (positions, vocab)
            for i, bias in enumerate(biases):
                totals[i] += F.cross_entropy(z if bias is None else z + bias, target, reduction="sum")
    return totals.cpu()
