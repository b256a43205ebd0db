"""Texts of any number of categories, one a row, with labels of documents or of parts of them where they have some."""

import json
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sgtm.config import ConfigError
from sgtm.data.tinystories import open_columns
from sgtm.data.tokenize import MANIFEST, UNLABELED, Document, Labelled, Source


def texts(name: str, split: str = "train") -> tuple[Source, Labelled | None]:
    """Documents of a file, folder or data set, and whether they, or parts of them, have labels.

    Columns: ``text``; ``category`` (adjacent, retain, or a domain: what the text truly is). If there: ``label`` (what a
    labeller said: a domain, retain, unlabeled, or nothing); ``spans`` (a list of [first character, last + 1, label]);
    ``group`` (rows of one group stay on one side of the split).

    Where nobody knows what a text is (no column ``category``, or nothing in it), its label stands for it: texts without
    a label are left out of the test split, and in training they count as retain.

    Raises:
        ConfigError: no such data, a column is missing, or ``sgtm label`` has not finished it.
    """
    _check_finished(Path(name) / MANIFEST)
    rows, columns = open_columns(name, split)
    truth = _truth(columns)
    if missing := {"text", truth} - set(columns):
        raise ConfigError(f"{name} has no column {sorted(missing)}; it has {sorted(columns)}")
    labelled: Labelled | None = "tokens" if "spans" in columns else "documents" if "label" in columns else None
    return partial(_documents, name, rows, "label" in columns), labelled


def truth_of(name: str, split: str = "train") -> Literal["category", "label"]:
    """The column that says what a text of ``name`` is: what it truly is, or else what a labeller says of it."""
    return _truth(open_columns(name, split)[1])


def _truth(columns: Collection[str]) -> Literal["category", "label"]:
    return "label" if "label" in columns and "category" not in columns else "category"


def _check_finished(manifest: Path) -> None:
    found = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    if "thresholds" in found and "shards" not in found:
        raise ConfigError(f"{manifest.parent} is not labelled to its end; finish it with `sgtm label ... --resume`")


def _documents(name: str, rows: Any, has_labels: bool) -> Iterator[Document]:
    for i, row in enumerate(rows):
        text, label = row["text"] or "", row.get("label") or UNLABELED
        category = row.get("category") or (label if has_labels else None)
        is_unknown = category == UNLABELED
        category = "retain" if is_unknown else category
        if not isinstance(text, str) or not isinstance(category or "", str):
            raise ConfigError(f"{name}, row {i}: text={text!r} and category={category!r} must be text")
        if not category:
            raise ConfigError(f"{name}, row {i}: no category; give retain, adjacent, or the name of a domain")
        spans = spans_of(row.get("spans"), len(text), f"{name}, row {i}")
        only: Literal["", "train"] = "train" if is_unknown else ""
        yield Document(row.get("group") or text, category, text, label, spans, only)


def spans_of(value: Any, length: int, where: str) -> tuple[tuple[int, int, str], ...]:
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
