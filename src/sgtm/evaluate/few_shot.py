"""Examples in the context: does a model that is shown removed text predict more of it?

A quarter of the context holds the text that is scored: the beginning of a test row, of which the first token is not
predicted, as it would depend on what stands before. In front of it stand k shots, beginnings of training rows, each
ended by end-of-text and of the same length for every k, so that the largest k fills the context. So the same tokens are
scored whatever k is. Shots of retain text are the control: what any context is good for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from sgtm.config import ConfigError, Stream
from sgtm.data.labels import Codes
from sgtm.data.mixture import Rows
from sgtm.evaluate.loss import Loss, evaluate_loss
from sgtm.model.loading import context_of

_SCORED = 4  # one part in


@dataclass(frozen=True)
class Shots:
    """Puts shots in front of a row; a ``Treatment`` of ``Rows``.

    Args:
        rows: what shots are drawn from: for each document of its own, and the first k of the same draw for every k.
        most: shots that are drawn.
        length: tokens of a shot, at most, its end-of-text included.
        scored: tokens of the row that stay.
        end: the end-of-text token.
    """

    rows: Rows
    count: int
    most: int
    length: int
    scored: int
    end: int
    seed: int

    def __call__(self, input_ids: NDArray[Any], labels: Codes, document: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, Stream.SHOTS, document))
        drawn = rng.choice(len(self.rows), self.most, replace=False)[: self.count]
        row = np.asarray(input_ids)[: self.scored]
        ids = np.concatenate([*(self._shot(int(i)) for i in drawn), row]).astype(np.int64)
        targets = ids.copy()
        targets[: len(ids) - len(row) + 1] = -100
        return {"input_ids": ids, "labels": targets}

    def _shot(self, index: int) -> NDArray[np.int64]:
        ids = np.asarray(self.rows.data[index]["input_ids"], np.int64)[: self.length - 1]
        return ids if len(ids) and ids[-1] == self.end else np.append(ids, self.end)


def few_shot_losses(
    model: PreTrainedModel,
    test: Rows,
    shots: Rows,
    counts: Sequence[int],
    end: int,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[int, Loss]:
    """Number of shots -> loss (nats per token) on the beginnings of ``test``, the same tokens for every number.

    Raises:
        ConfigError: the context has no room for so many shots, or there are not as many rows.
    """
    context, most = context_of(model), max(counts)
    scored = context // _SCORED
    length = (context - scored) // max(1, most)
    if length < 3 or scored < 2:
        raise ConfigError(f"shots={most} leave {length} tokens for each in a context of {context}; use fewer --shots")
    if len(shots) < most:
        raise ConfigError(f"shots={most} and only {len(shots)} training rows to draw from; use fewer --shots")
    plain = replace(test, labels=None, token_labels=None)
    return {
        k: evaluate_loss(
            model, replace(plain, treat=Shots(shots, k, most, length, scored, end, seed)), None, None, batch_size
        )
        for k in counts
    }
