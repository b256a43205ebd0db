"""Texts of any number of categories, one a row, with labels of documents or of parts of them where they have some."""

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sgtm.config import ConfigError, check_domain_name, nearest, read_json
from sgtm.data.tinystories import open_columns, readable
from sgtm.data.tokenize import MANIFEST, UNLABELED, Document, Labelled, Source
from sgtm.plain import from_json, misfit, shown


def texts(
    name: str, split: str = "train", text_column: str = "text", domains: Collection[str] = ()
) -> tuple[Source, Labelled | None]:
    """Documents of a file, folder or data set, and whether they, or parts of them, have labels.

    Columns: ``text`` (or ``text_column``); ``category`` (adjacent, retain, or a domain: what the text truly is). If
    there: ``label`` (what a labeller said: a domain, retain, unlabeled, or nothing); ``spans`` (a list of [first
    character, last + 1, label]); ``group`` (rows of one group stay on one side of the split).

    Where nobody knows what a text is (no column ``category``, or nothing in it), its label stands for it: texts without
    a label are left out of the test split, and in training they count as retain.

    Args:
        domains: all that categories and labels may name; by default any name that a domain can have.

    Raises:
        ConfigError: no such data, a column is missing, or ``sgtm label`` has not finished it.
    """
    for domain in domains:
        check_domain_name(domain)
    _check_finished(Path(name) / MANIFEST)
    rows, columns = open_columns(name, split)
    truth = _truth(columns)
    if missing := {text_column, truth} - set(columns):
        raise ConfigError(f"{name} has no column {sorted(missing)}; it has {sorted(columns)}")
    labelled: Labelled | None = "tokens" if "spans" in columns else "documents" if "label" in columns else None
    return partial(_documents, name, rows, "label" in columns, text_column, domains), labelled


def truth_of(name: str, split: str = "train") -> Literal["category", "label"]:
    """The column that says what a text of ``name`` is: what it truly is, or else what a labeller says of it."""
    return _truth(open_columns(name, split)[1])


def _truth(columns: Collection[str]) -> Literal["category", "label"]:
    return "label" if "label" in columns and "category" not in columns else "category"


def _check_finished(manifest: Path) -> None:
    found = read_json(manifest, "remove it, or label the texts anew") if manifest.is_file() else {}
    if "thresholds" in found and "shards" not in found:
        raise ConfigError(f"{manifest.parent} is not labelled to its end; finish it with `sgtm label ... --resume`")


def _documents(
    name: str, rows: Any, has_labels: bool, text_column: str, domains: Collection[str]
) -> Iterator[Document]:
    for i, row in enumerate(readable(rows, name)):
        where = f"{name}, row {i}"
        text, label, category = (_word(row, column, where) for column in (text_column, "label", "category"))
        label = label or UNLABELED
        category = category or (label if has_labels else "")
        is_unknown = category == UNLABELED
        category = "retain" if is_unknown else category
        if not category:
            raise ConfigError(f"{where}: no category; give retain, adjacent, or the name of a domain")
        _check_names(where, domains, category, label)
        spans = spans_of(row.get("spans"), len(text), where, domains)
        only: Literal["", "train"] = "train" if is_unknown else ""
        yield Document(_group(row, where) or text, category, text, label, spans, only)


def _group(row: dict[str, Any], where: str) -> str:
    group = row.get("group")
    if not isinstance(group, str | int | None):
        raise ConfigError(f"{where}: group={shown(group)} must be text or a whole number")
    return "" if group is None else str(group)


def _word(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{where}: {column}={shown(value)} must be text; put it in quotes")
    return value or ""


def _check_names(where: str, domains: Collection[str], category: str, *said: str) -> None:
    """What names no domain can never be trained on as one."""
    for name, others in ((category, ("adjacent", "retain")), *((label, ("retain", UNLABELED)) for label in said)):
        if name in others or name in domains:
            continue
        if domains:
            known = (*domains, *others)
            raise ConfigError(f"{where}: {name!r} is none of {', '.join(known)}{nearest(name, known)}")
        try:
            check_domain_name(name)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


def spans_of(value: Any, length: int, where: str, domains: Collection[str] = ()) -> tuple[tuple[int, int, str], ...]:
    """Spans as a list, or as JSON text: a table's column has one type, a span has two."""
    try:
        found = from_json(value) if isinstance(value, str) and value else value or []
        if fault := misfit(found, [[(int, str), (int, str), str]]):  # in a column of text, numbers are text as well
            raise ValueError(fault)
        spans = tuple((int(start), int(stop), label) for start, stop, label in found)
    except ValueError as error:
        raise ConfigError(f"{where}: spans={shown(value)} is no list of [first character, last + 1, label]") from error
    for start, stop, label in spans:
        if not 0 <= start < stop <= length:
            raise ConfigError(f"{where}: the span {start} to {stop} lies outside the text of {length} characters")
        _check_names(where, domains, "retain", label)
    return spans
