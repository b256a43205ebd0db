"""Conditional training: text is learned given a control token for its label (Korbak et al. 2023, arXiv:2302.08582).

Each segment x of a row is learned as p(x | c), where c is ``<|good|>`` if x is labelled retain, ``<|bad|>`` if it is
labelled for a domain, and nothing if it is unlabeled. Afterwards the model is asked for ``<|good|>`` text alone. The
paper scores every segment and takes the sides of a threshold; where the labeller says something of every document
(labels.tpr and retain_fraction 1) this is the same. As there, a hundredth of the segments goes without its token.

A segment is a stretch of one document with one label: it begins at a row's start, after an end-of-text, or where the
tokens' label changes; so a packed row has a control token for each of its documents. Control tokens are read and never
predicted, and a row's first token is not either: the loss is a mean over the same tokens as with any other method.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import AddedToken, PreTrainedTokenizerBase

from sgtm.config import Stream, labels

GOOD, BAD = "<|good|>", "<|bad|>"
_DROPPED = 0.01  # segments without their control token, as in the paper
_NONE, _NO_TARGET = -1, -100


def with_control_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of ``tokenizer`` that knows the two control tokens; other texts get the same ids as before."""
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens([AddedToken(token, special=True, normalized=False) for token in (GOOD, BAD)], special_tokens=True)
    return grown


@dataclass(frozen=True)
class Control:
    """Puts control tokens into rows.

    Args:
        tokens: the control token of each label, by its code; -1 is none.
        end: end-of-text.
        dropped: share of the segments that go without.
    """

    tokens: tuple[int, ...]
    end: int
    dropped: float = _DROPPED
    seed: int = 0

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, domains: tuple[str, ...], seed: int) -> "Control":
        """The control tokens of a tokenizer from ``with_control_tokens``, for training."""
        found: Any = tokenizer.convert_tokens_to_ids([GOOD, BAD])
        good, bad = found
        meant = {"retain": good, "unlabeled": _NONE}
        return cls(tuple(meant.get(label, bad) for label in labels(domains)), tokenizer.eos_token_id, _DROPPED, seed)

    @property
    def good(self) -> "Control":
        """``<|good|>`` in front of every document, whatever it is: the removed model."""
        return replace(self, tokens=(self.tokens[-2],) * len(self.tokens), dropped=0.0)

    def __call__(self, ids: NDArray[Any], codes: NDArray[Any], document: int) -> dict[str, Any]:
        """A row's ``input_ids`` with control tokens, and its ``labels``, -100 at these and at the first token.

        Args:
            ids: (tokens,).
            codes: (tokens,) label codes.
            document: the row's document, which alone decides, with the seed, what is dropped.
        """
        places = np.flatnonzero(_starts(ids, codes, self.end))
        control = np.asarray(self.tokens)[codes[places]]
        draws = np.random.default_rng((self.seed, Stream.CONTROL, document)).random(len(places))
        given = (control != _NONE) & (draws >= self.dropped)
        places, control = places[given], control[given]
        targets = np.append(_NO_TARGET, ids[1:])
        return {"input_ids": np.insert(ids, places, control), "labels": np.insert(targets, places, _NO_TARGET)}

    def longest(self, data: Dataset) -> int:
        """Tokens of the longest row of a split, if every segment gets its control token."""
        return max(self._lengths(data))

    def _lengths(self, data: Dataset) -> Iterator[int]:
        """The longest row of each chunk on disk."""
        table = data.data.table
        has_labels = "token_labels" in table.column_names
        for i, chunk in enumerate(table["input_ids"].chunks):
            ids = chunk.flatten().to_numpy()
            codes = table["token_labels"].chunk(i).flatten().to_numpy() if has_labels else np.zeros(len(ids), np.int8)
            starts = _starts(ids, codes, self.end)
            rows = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()
            starts[rows[:-1]] = True
            yield int((np.diff(rows) + np.add.reduceat(starts, rows[:-1], dtype=np.int64)).max())


def _starts(ids: NDArray[Any], codes: NDArray[Any], end: int) -> NDArray[np.bool_]:
    """Where segments begin."""
    begins = np.ones(len(ids), bool)
    begins[1:] = (ids[:-1] == end) | (codes[1:] != codes[:-1])
    return begins
