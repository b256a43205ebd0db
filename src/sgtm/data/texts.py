"""Texts of any number of categories, one a row, with labels of documents or of parts of them where they have some."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from sgtm.config import ConfigError
from sgtm.data.tinystories import open_columns
from sgtm.data.tokenize import UNLABELED, Document, Labelled, Source

_NEEDED = {"text", "category"}


def texts(name: str, split: str = "train") -> tuple[Source, Labelled | None]:
    """Documents of a file, folder or data set, and whether they, or parts of them, have labels.

    Columns: ``text``; ``category`` (adjacent, retain, or a domain: what the text truly is). If there: ``label`` (what a
    labeller said: a domain, retain, unlabeled, or nothing); ``spans`` (a list of [first character, last + 1, label]);
    ``group`` (rows of one group stay on one side of the split).

    Raises:
        ConfigError: no such data, or a column is missing.
    """
    rows, columns = open_columns(name, split, sorted(_NEEDED))
    labelled: Labelled | None = "tokens" if "spans" in columns else "documents" if "label" in columns else None
    return partial(_documents, name, rows), labelled


def _documents(name: str, rows: Any) -> Iterator[Document]:
    for i, row in enumerate(rows):
        text, category = row["text"] or "", row["category"]
        if not isinstance(text, str) or not isinstance(category or "", str):
            raise ConfigError(f"{name}, row {i}: text={text!r} and category={category!r} must be text")
        if not category:
            raise ConfigError(f"{name}, row {i}: no category; give retain, adjacent, or the name of a domain")
        spans = _spans(row.get("spans"), len(text), f"{name}, row {i}")
        yield Document(row.get("group") or text, category, text, row.get("label") or UNLABELED, spans)


def _spans(value: Any, length: int, where: str) -> tuple[tuple[int, int, str], ...]:
    """Spans as a list, or as JSON text: a table's column has one type, a span has two."""
    try:
        found = [tuple(span) for span in (json.loads(value) if isinstance(value, str) and value else value or [])]
        spans = tuple((int(start), int(stop), str(label)) for start, stop, label in found)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: spans={value!r} is no list of [first character, last + 1, label]") from error
    for start, stop, _ in spans:
        if not 0 <= start < stop <= length:
            raise ConfigError(f"{where}: the span {start} to {stop} lies outside the text of {length} characters")
    return spans
