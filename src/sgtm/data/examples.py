"""Texts that somebody labelled: from a file, or from a column of the data itself."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgtm.config import ClassifyConfig, ConfigError, nearest
from sgtm.data.classify import NO_DOMAIN
from sgtm.data.tinystories import open_columns
from sgtm.data.tokenize import UNLABELED

NOT_SHOWN = -2  # the code of a row that nobody labelled by hand
_BATCH = 1000  # rows that are read, and classified, together
_SHOWN = 6  # values that an error names
_MOST_EXAMPLES = 20_000  # to learn from: more are a random sample


@dataclass(frozen=True)
class Examples:
    """Texts that somebody labelled: (texts,) codes of domains, or ``NO_DOMAIN``.

    Args:
        by_hand: the codes of all labelled texts of a file, of which ``texts`` may be a sample.
        others: what those of no domain were labelled, and how often.
    """

    texts: list[str]
    codes: NDArray[np.int64]
    by_hand: dict[str, int]
    others: dict[str, int] = field(default_factory=dict)

    def of(self, where: NDArray[np.bool_]) -> list[str]:
        return [text for text, chosen in zip(self.texts, where, strict=True) if chosen]

    @property
    def hash(self) -> str:
        shown = json.dumps([self.texts, self.codes.tolist()], ensure_ascii=False)
        if len(self.by_hand) > len(self.texts):
            shown += json.dumps(self.by_hand, ensure_ascii=False)
        return hashlib.sha256(shown.encode("utf-8", "surrogatepass")).hexdigest()


def from_file(name: str, config: ClassifyConfig) -> Examples:
    rows, columns = open_columns(name, "train")
    column = next((c for c in ("category", "label") if c in columns), None)
    if column is None or config.text_column not in columns:
        raise ConfigError(
            f"{name} must have the columns {config.text_column} and category (or label); it has {columns}"
        )
    return _examples(rows, column, config, name, keep=True)


def from_column(rows: Any, column: str | None, config: ClassifyConfig) -> Examples:
    assert column is not None
    return _examples(rows.select_columns(list({config.text_column, column})), column, config, f"column {column}")


def _examples(rows: Any, column: str, config: ClassifyConfig, where: str, keep: bool = False) -> Examples:
    """Labelled texts, each once; of very many a random sample, and all of them where they are to be kept."""
    found: dict[str, int] = {}
    values: Counter[str] = Counter()
    for table in tables(rows):
        texts, said = strings(table, config.text_column), strings(table, column)
        for text, value, code in zip(texts, said, codes_of(said, config).tolist(), strict=True):
            if code != NOT_SHOWN and text.strip():
                values[value] += 1
                found.setdefault(text, code)
        if len(found) > 2 * _MOST_EXAMPLES and not keep:
            found = _sample(found, config.seed)
    by_hand, found = found if keep else {}, _sample(found, config.seed)
    for value in config.values.values():
        if not values[value]:
            common = ", ".join(f"{name!r} {n} times" for name, n in values.most_common(_SHOWN)) or "no labels at all"
            more = f" and {len(values) - _SHOWN} other values" if len(values) > _SHOWN else ""
            raise ConfigError(
                f"{where} has no example labelled {value!r} (it has {common}{more})"
                f"{nearest(value, values) if not more else ''}; name what is to be removed with --domains"
            )
    others = {value: n for value, n in values.most_common() if value not in config.values.values()}
    return Examples(list(found), np.array(list(found.values()), np.int64), by_hand, others)


def _sample(found: dict[str, int], seed: int) -> dict[str, int]:
    """At most ``_MOST_EXAMPLES`` of them: those whose hash is lowest, so that every text has the same chance."""
    if len(found) <= _MOST_EXAMPLES:
        return found
    lowest = sorted(found, key=lambda text: hashlib.blake2b(f"{seed}:{text}".encode()).digest())
    return {text: found[text] for text in lowest[:_MOST_EXAMPLES]}


def codes_of(values: list[str], config: ClassifyConfig) -> NDArray[np.int64]:
    """(rows,) codes of what somebody said: a domain, none, or nothing at all."""
    known = {value: code for code, value in enumerate(config.values.values())}
    silent = {"": NOT_SHOWN, UNLABELED: NOT_SHOWN}
    return np.array([silent.get(value, known.get(value, NO_DOMAIN)) for value in values], np.int64)


def strings(table: pa.Table, column: str) -> list[str]:
    """A column as text; nothing is empty."""
    values = table[column]
    if not pa.types.is_null(values.type) and pa.types.is_nested(values.type):
        raise ConfigError(f"the column {column} is of type {values.type}; it must be text (or a number, for labels)")
    return ["" if value is None else str(value) for value in values.to_pylist()]


def tables(rows: Any, skip: int = 0) -> Iterator[pa.Table]:
    """The rows after the first ``skip``, some at a time.

    Raises:
        ConfigError: they cannot be read.
    """
    try:
        yield from (rows.skip(skip) if skip else rows).with_format("arrow").iter(_BATCH)
    except (ValueError, OSError) as error:  # pyarrow's errors are among these
        raise ConfigError(f"the rows cannot be read: {str(error).splitlines()[0]} (is the data empty?)") from error
