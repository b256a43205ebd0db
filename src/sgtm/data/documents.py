"""Documents, put together again from the rows of prepared data."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

Ids = NDArray[np.int32]
_Kind = tuple[str, ...]


def documents(rows: Dataset, end_of_text: int, packed: bool) -> Iterator[tuple[str, Ids]]:
    """(category, (tokens,) ids without end-of-text) of each document of a split."""
    begun: dict[_Kind, tuple[int, list[Ids]]] = {}  # what a row's documents have in common -> the one that goes on
    for kind, number, ids in _token_rows(rows):
        key = kind if packed else kind[:1]
        # Rows of a long document that is not packed repeat one token: the last one of the row before.
        known = begun.get(key)
        ids = ids[1:] if not packed and known is not None and known[0] == number else ids
        first = 0
        for end in np.flatnonzero(ids == end_of_text).tolist():
            parts = begun.pop(key, (number, []))[1]
            yield kind[0], np.concatenate([*parts, ids[first:end]])
            first = end + 1
        if first < len(ids):
            begun.setdefault(key, (number, []))[1].append(ids[first:])
    # Those whose end-of-text would have been a row of one token.
    for (category, *_), (_, parts) in begun.items():
        yield category, np.concatenate(parts)


def digest(ids: Ids) -> int:
    """64 bits that stand for a document's tokens."""
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")


def _token_rows(rows: Dataset) -> Iterator[tuple[_Kind, int, Ids]]:
    """(category and, if any, topic), document number and ids of each row, as they lie on disk."""
    kinds = [name for name in ("category", "topic") if name in rows.column_names]
    for batch in rows.data.table.select(["input_ids", "document", *kinds]).to_batches():
        ids: Any = batch["input_ids"]
        starts, values = ids.offsets.to_numpy(), ids.values.to_numpy()
        named = zip(*(batch[kind].to_pylist() for kind in kinds), strict=True)
        for i, (kind, number) in enumerate(zip(named, batch["document"].to_pylist(), strict=True)):
            yield kind, number, values[starts[i] : starts[i + 1]]
