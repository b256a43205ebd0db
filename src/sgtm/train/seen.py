"""Which tokens a run trained on, replayed from its configuration and data: seed and epoch alone order the rows.

Tokens are *predicted* tokens (all but a row's first), as in ``metrics.jsonl``, and count as often as they were seen: a
row that came in three epochs counts three times.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgtm.config import Category, ConfigError, RunConfig, categories, modes
from sgtm.data.mixture import Rows
from sgtm.train.run import labelled_rows, method_of

Counts = NDArray[np.int64]
_NO_TARGET = -100


@dataclass(frozen=True)
class Seen:
    """Predicted tokens that a run trained on.

    Args:
        counts: (categories, modes) tokens of each category that were trained on in each mode.
        domains: what the codes stand for (see ``sgtm.config``).
    """

    counts: Counts
    domains: tuple[str, ...]

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def retain(self) -> int:
        """Tokens of no domain, in default or retain mode: a false positive teaches the ablated model nothing."""
        return int(_retain(self.counts, len(self.domains)))

    def undiscovered(self, domain: Category) -> int:
        """Tokens of ``domain`` in default or retain mode: nobody labelled them, and no gradient was masked.

        (GRAM's auxiliary spread also lets labelled ones update everything; these are not counted here.)
        """
        return int(self.counts[self.domains.index(domain), : -len(self.domains)].sum())

    def labelled(self, domain: Category) -> int:
        """Tokens of ``domain`` that were trained on as a domain's: masked, made unlikely, or after a control token for
        it (a filter drops them)."""
        return int(self.counts[self.domains.index(domain), -len(self.domains) :].sum())


def seen_tokens(config: RunConfig, rows: Rows) -> Seen:
    """What the run ``config`` sees in all its steps.

    Args:
        rows: the whole training split.
    """
    total, left = np.zeros((len(categories(rows.domains)), len(modes(rows.domains))), np.int64), config.train.steps
    for epoch in _epochs(config, rows):
        total += epoch[:left].sum(0)
        left -= len(epoch)
        if left <= 0:
            break
    return Seen(total, rows.domains)


def steps_to_see(config: RunConfig, rows: Rows, retain_tokens: int) -> tuple[int, Seen]:
    """The steps (at least one) after which the run ``config`` has seen nearest to ``retain_tokens`` retain tokens.

    Raises:
        ConfigError: it never sees a retain token.
    """
    steps, num_domains = 0, len(rows.domains)
    reached = np.zeros((1, len(categories(rows.domains)), len(modes(rows.domains))), np.int64)
    for epoch in _epochs(config, rows):
        reached = np.concatenate([reached[-1:], reached[-1] + epoch.cumsum(0)])  # before the epoch, after each step
        retain = _retain(reached, num_domains)
        if retain[-1] >= retain_tokens:
            nearest = max(int(np.abs(retain - retain_tokens).argmin()), 1 - min(steps, 1))
            return steps + nearest, Seen(reached[nearest], rows.domains)
        if retain[-1] == retain[0]:
            raise ConfigError(
                "no retain token is ever trained on, so no ordinary model can match the run's retain data"
            )
        steps += len(epoch)
    raise AssertionError("epochs never end")


def _epochs(config: RunConfig, rows: Rows) -> Iterator[Counts]:
    """(steps, categories, modes) predicted tokens of each step, epoch after epoch without end."""
    method = method_of(config)
    if method.use == "condition":  # control tokens are no targets: it sees everything, what is labelled after a token
        labelled, sampler, _ = labelled_rows(config, replace(method, use="everything"), rows)
        predicted = _predicted_tokens(labelled_rows(config, replace(method, use="modes"), rows)[0])
    else:
        labelled, sampler, _ = labelled_rows(config, method, rows)
        predicted = _predicted_tokens(labelled)
    assert sampler is not None, "a stream has no order of its own"
    for epoch in count():
        sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        order, tokens = _in_order(list(sampler), predicted)
        step = np.arange(len(order)) // config.train.batch_size
        counts = np.zeros((step[-1] + 1, len(categories(rows.domains)), predicted.shape[1]), np.int64)
        np.add.at(counts, (step, labelled.categories[order]), tokens)
        yield counts


def _in_order(drawn: list[Any], predicted: Counts) -> tuple[NDArray[np.int64], Counts]:
    """(seen,) rows that a sampler drew, and their (seen, modes) tokens, in the modes that it drew, if it did."""
    order = np.array(drawn)
    if order.ndim == 1:
        return order, predicted[order]
    order, mode = order.T
    return order, predicted[order].sum(1, keepdims=True) * np.eye(predicted.shape[1], dtype=np.int64)[mode]


def _predicted_tokens(rows: Rows) -> Counts:
    """(rows, modes) tokens of each row that are predicted in each mode."""
    num_modes = len(modes(rows.domains))
    if rows.token_labels is not None or rows.treat is not None:
        return np.stack([_of_treated_row(rows[i], num_modes) for i in range(len(rows))])
    codes = np.zeros(len(rows), np.int8) if rows.modes is None else rows.modes
    return np.maximum(rows.lengths - 1, 0)[:, None] * np.eye(num_modes, dtype=np.int64)[codes]


def _of_treated_row(row: dict[str, Any], num_modes: int) -> Counts:
    """(modes,) predicted tokens of a row whose tokens have labels; a position has the mode of the token it predicts.

    What is labelled is no target of a filter of tokens; what is made unlikely counts as labelled.
    """
    ids = row["input_ids"]
    mode = np.broadcast_to(row["mode"], ids.shape)[:-1]
    mode = np.where(row.get("unlikely", np.zeros(ids.shape, bool))[1:], num_modes - 1, mode)
    mode = np.where(row.get("labels", ids)[1:] != _NO_TARGET, mode, num_modes)
    return np.bincount(mode, minlength=num_modes + 1)[:num_modes].astype(np.int64)


def _retain(counts: Counts, num_domains: int) -> Counts:
    """(...) retain tokens of (..., categories, modes) tokens."""
    retain: Counts = counts[..., num_domains:, :-num_domains].sum((-2, -1))
    return retain
