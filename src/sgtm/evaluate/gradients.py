"""Gradients of single examples: how hard they push which parameters, and in which direction.

For an example i (one row of T_i predicted tokens with summed token loss l_i) and a part P of the parameters::

    g_i      = grad l_i / T_i                                  in default mode: nothing is masked
    norm     = ||g_i,P||         relative norm = ||g_i,P|| / ||theta_P||
    u_d      = sum_j grad^(m) l_j / sum_j T_j                  over rows j that are labelled d
    cosine_d = <g_i,P , u_d,P> / (||g_i,P|| ||u_d,P||)

P is ``retain``, a domain (``forget`` where there is one), ``joint``, or ``all``, over all four sites (arXiv:2512.05648,
gradient norms). Default mode is how an *unlabeled* document is trained, so g_i of a forget row is what an undiscovered
one adds to a step. u_d is what rows labelled d add: grad^(m) is masked as a batch of their mode is. It is zero in parts
that such batches do not reach, and the cosine is None there; the direction "d unmasked" (m = default) reaches all.
Steps go along -g and -u, so a positive cosine lowers the other's loss too (to first order, before the optimizer
rescales). u_d is a mean over some rows: its noise makes every cosine smaller, so compare equal numbers of rows.
Examples and rows of directions must be different documents, or the cosine is in part that of a gradient with itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from sgtm.config import Label, modes
from sgtm.data.mixture import Rows, collate, rows_in_mode
from sgtm.evaluate.loss import evaluating
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition

ALL = "all"
UNMASKED = " unmasked"  # domain names have no spaces
_MAX_LOGITS = 2**26  # entries of one forward and backward pass: a gigabyte with its gradient and a softmax in fp32
_BATCH = 32
Gradient = Mapping[str, Tensor]  # parameter's name -> tensor of its shape


class Batch(NamedTuple):
    """``input_ids`` and ``labels`` (batch, seq), -100 where nothing is predicted, and what ``SGTM.batch`` takes."""

    input_ids: Tensor
    labels: Tensor
    mode: str | Tensor = "default"

    @property
    def num_tokens(self) -> int:
        """Predicted tokens."""
        return int((self.labels[:, 1:] != -100).sum())


@dataclass(frozen=True)
class PartGradient:
    """One example's gradient on one part; None where a quotient has a zero below."""

    norm: float
    relative_norm: float | None
    cosines: dict[str, float | None]


def mean_gradient(model: PreTrainedModel, batches: Iterable[Batch], sgtm: SGTM | None = None) -> Gradient:
    """Gradient of the loss in nats per token over all ``batches``, each masked as its mode says; dropout is off.

    Clears the gradients that the model holds.

    Args:
        sgtm: without it nothing is masked.

    Raises:
        ValueError: no batch has a token to predict.
    """
    model.zero_grad()
    num_tokens = 0
    with evaluating(model, None):
        for batch in batches:
            with nullcontext() if sgtm is None else sgtm.batch(batch.mode):
                _sum_of_losses(model, batch).backward()
            num_tokens += batch.num_tokens
    if not num_tokens:
        raise ValueError("no batch has a token to predict; rows need at least two tokens")
    gradient = {n: torch.zeros_like(p) if p.grad is None else p.grad / num_tokens for n, p in model.named_parameters()}
    model.zero_grad()
    return gradient


def example_gradients(
    model: PreTrainedModel, partition: Partition, examples: Iterable[Batch], directions: Mapping[str, Gradient]
) -> Iterator[dict[str, PartGradient]]:
    """For each example (a batch of one row): part -> its gradient there. One backward pass an example.

    Args:
        partition: of ``model``; or what it would be, where the model was trained without one.
        directions: name -> u_d, see above.
    """
    pieces = _Pieces(partition)
    theta = {name: p.detach() for name, p in model.named_parameters()}
    weights, lengths = pieces.norms(theta), {name: pieces.norms(u) for name, u in directions.items()}
    for example in examples:
        gradient = mean_gradient(model, [example])
        norms = pieces.norms(gradient)
        dots = {name: pieces.dots(gradient, u) for name, u in directions.items()}
        yield {
            part: PartGradient(
                norm,
                _quotient(norm, weights[part]),
                {name: _quotient(dots[name][part], norm * lengths[name][part]) for name in directions},
            )
            for part, norm in norms.items()
        }


def update_directions(
    model: PreTrainedModel, sgtm: SGTM | None, labelled: Rows, limit: int, seed: int = 0
) -> dict[str, Gradient]:
    """u_d of each domain and of retain, masked as the model is trained, and unmasked; none for a label without rows.

    Args:
        sgtm: the model's masking; None for a model that trains everything in default mode.
        labelled: training rows with modes (``training_rows``).
        limit: rows of each label, at most.
    """
    directions: dict[str, Gradient] = {}
    for label in (*labelled.domains, "retain"):
        rows = _rows_of(labelled, label, limit, seed)
        if not len(rows):
            continue
        unmasked = mean_gradient(model, label_batches(model, rows, label))
        masked = unmasked if sgtm is None else mean_gradient(model, label_batches(model, rows, label), sgtm)
        directions |= {label: masked, label + UNMASKED: unmasked}
    return directions


def example_batches(model: PreTrainedModel, rows: Rows) -> Iterator[Batch]:
    """Each row by itself, in order, without its mode; rows of a single token are left out: they predict nothing."""
    for row in rows.data:
        ids = torch.as_tensor(row["input_ids"], device=model.device)[None]
        if ids.shape[1] > 1:
            yield Batch(ids, ids)


def label_batches(model: PreTrainedModel, rows: Rows, label: Label) -> Iterator[Batch]:
    """Batches of ``rows`` in the mode of ``label``; of labelled tokens only those with this label are predicted."""
    head: Any = model.get_output_embeddings()
    code = modes(rows.domains).index(label)
    size = max(1, min(_BATCH, _MAX_LOGITS // (rows.longest * head.weight.shape[0])))
    for start in range(0, len(rows), size):
        batch = collate([rows[i] for i in range(start, min(start + size, len(rows)))])
        ids, labels, mode = (batch[name].to(model.device) for name in ("input_ids", "labels", "mode"))
        if mode.ndim == 1:
            yield Batch(ids, labels, label)
            continue
        labels[:, 1:][mode[:, :-1] != code] = -100  # a position has the mode of the token that it predicts
        yield Batch(ids, labels, mode)


def median_interval(
    values: Sequence[float], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Median of ``values`` and its percentile bootstrap interval, which is one over examples and not over seeds."""
    array: NDArray[np.float64] = np.asarray(values, np.float64)
    drawn = np.random.default_rng(seed).choice(array, (resamples, len(array)))
    low, high = np.quantile(np.median(drawn, 1), ((1 - level) / 2, (1 + level) / 2))
    return float(np.median(array)), float(low), float(high)


class _Pieces:
    """All parameters, cut by owner: norms and scalar products of each part and of all."""

    def __init__(self, partition: Partition) -> None:
        self.owners = tuple(partition.num_parameters())
        self.pieces = [(s.domain or "retain", s.name, s.of) for s in (*partition.retain, *partition.forget)]
        self.pieces += [("joint", name, _whole) for name in partition.joint]

    def dots(self, a: Gradient, b: Gradient) -> dict[str, float]:
        """<a_P, b_P> of each part, summed in fp64."""
        products = [torch.sum(part(a[name]) * part(b[name]), dtype=torch.float64) for _, name, part in self.pieces]
        sums = dict.fromkeys(self.owners, 0.0)
        for (owner, _, _), product in zip(self.pieces, torch.stack(products).tolist(), strict=True):
            sums[owner] += product
        return sums | {ALL: sum(sums.values())}

    def norms(self, a: Gradient) -> dict[str, float]:
        return {part: square**0.5 for part, square in self.dots(a, a).items()}


def _rows_of(labelled: Rows, label: Label, limit: int, seed: int) -> Rows:
    """Rows labelled ``label``, or with tokens so labelled: all of them, or ``limit`` drawn without replacement."""
    found = rows_in_mode(labelled, modes(labelled.domains).index(label))
    if limit < len(found):
        found = np.sort(np.random.default_rng(seed).choice(found, limit, replace=False))
    return labelled.select(found)


def _sum_of_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.float().flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _quotient(above: float, below: float) -> float | None:
    return above / below if below else None
