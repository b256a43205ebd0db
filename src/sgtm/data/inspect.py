"""What a prepared data set holds, for people: counts, lengths of rows, texts on both sides of the split, examples."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, load_from_disk
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sgtm.config import ConfigError
from sgtm.data.documents import digest, documents
from sgtm.data.tokenize import MANIFEST
from sgtm.data.tokenizer import load_tokenizer

_EXAMPLE = 300  # characters of a row that are shown
Hashes = NDArray[np.uint64]


def inspect(path: Path, examples: int = 1, check: bool = True, console: Console | None = None) -> None:
    """Print what the folder ``path`` holds.

    Args:
        examples: rows to show of each category and split.
        check: also look for documents that stand on both sides of the split; reads every token.

    Raises:
        ConfigError: no prepared data there.
    """
    if not (path / MANIFEST).is_file():
        raise ConfigError(f"{path} holds no prepared data (no {MANIFEST}); write it with `sgtm data ... --out {path}`")
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    data, console = load_from_disk(path), console or Console(width=max(120, Console().width))
    console.print(_about(manifest))
    console.print(_splits(data, manifest))
    if "labels" in manifest:
        console.print(labels_table(manifest))
    if "topics" in manifest:
        console.print(_topics(manifest["topics"]))
    tokenizer = load_tokenizer(str(path / "tokenizer"))
    if check:
        packed = manifest["settings"]["pack"]
        overlap = Overlap.of(*(document_hashes(data[s], tokenizer.eos_token_id, packed) for s in ("train", "test")))
        console.print(str(overlap))
    for split in ("test", "train"):
        for category in manifest["counts"][split]:
            for number, text in _examples(data[split], tokenizer, category, examples):
                console.print(f"[bold]{split}, {category}[/bold], document {number}: {escape(text)}")


@dataclass(frozen=True)
class Overlap:
    """Documents by their tokens: how many each split has, copies within it, and those in both."""

    train: int
    test: int
    train_copies: int
    test_copies: int
    test_in_train: int

    @classmethod
    def of(cls, train: Hashes, test: Hashes) -> "Overlap":
        """From the hashes of each split's documents."""
        in_train = np.unique(train)
        copies = len(train) - len(in_train), len(test) - len(np.unique(test))
        return cls(len(train), len(test), *copies, int(np.isin(test, in_train).sum()))

    def __str__(self) -> str:
        return (
            f"documents that stand in both splits: {self.test_in_train:,} (of {self.test:,} test documents); "
            f"copies within train: {self.train_copies:,} of {self.train:,}, within test: {self.test_copies:,}"
        )


def document_hashes(rows: Dataset, end_of_text: int, packed: bool) -> Hashes:
    """(documents,) hashes of the tokens of each document, put together from the rows that hold it."""
    return np.array([digest(ids) for _, ids in documents(rows, end_of_text, packed)], np.uint64)


def _about(manifest: dict[str, Any]) -> str:
    settings = manifest["settings"]
    source = manifest["origin"].get("source", "unknown")
    rejected = ", ".join(f"{n:,} {reason}" for reason, n in manifest["rejected"].items()) or "none"
    about = (
        f"source: {source}; tokenizer: {settings['tokenizer']} ({manifest['vocab_size']:,} entries); "
        f"rows of {settings['context']} tokens, {'packed' if settings['pack'] else 'a document each'}\n"
        f"documents rejected: {rejected}"
    )
    rows = manifest["origin"].get("topic_rows")
    if rows is None:
        return about
    why = ", ".join(f"{n:,} {reason}" for reason, n in rows["rejected"].items()) or "none"
    return f"{about}\nrows of topics: {rows['in']:,} = {rows['used']:,} used + rejected: {why}"


def _splits(data: Any, manifest: dict[str, Any]) -> Table:
    table = _table("split", "category", "documents", "rows", "tokens", "row length: min, median, max", "full rows")
    context = manifest["settings"]["context"]
    for split, of_split in manifest["counts"].items():
        lengths, categories = _lengths(data[split])
        for category, counts in of_split.items():
            found = lengths[categories == category]
            numbers = [f"{counts[key]:,}" for key in ("documents", "rows", "tokens")]
            if (len(found), int(found.sum())) != (counts["rows"], counts["tokens"]):
                numbers[1:] = [f"{len(found):,} (manifest: {numbers[1]})", f"{found.sum():,} (manifest: {numbers[2]})"]
            shape = ", ".join(f"{f(found):,.0f}" for f in (np.min, np.median, np.max)) if len(found) else "-"
            full = f"{(found == context).mean():.1%}" if len(found) else "-"
            table.add_row(split, category, *numbers, shape, full)
    return table


def labels_table(manifest: dict[str, Any]) -> Table:
    """How many documents, or tokens, of each split have which label."""
    unit, of_split = "tokens" if "token_labels" in manifest else "documents", manifest["labels"]
    table = _table("label", *(f"{split} {unit}" for split in of_split))
    for label in sorted({label for found in of_split.values() for label in found}):
        table.add_row(escape(label), *(f"{found.get(label, 0):,}" for found in of_split.values()))
    return table


def _table(*columns: str) -> Table:
    """Names on the left, numbers on the right."""
    table = Table()
    for name in columns:
        is_name = name in ("split", "category", "label", "topic")
        table.add_column(name, justify="left" if is_name else "right", no_wrap=is_name)
    return table


def _lengths(rows: Dataset) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """(rows,) numbers of tokens and categories."""
    table: pa.Table = rows.data.table
    lengths = pc.list_value_length(table["input_ids"]).to_numpy().astype(np.int64)
    return lengths, table["category"].to_numpy()


def _topics(counts: dict[str, dict[str, dict[str, int]]]) -> Table:
    table = _table("topic", "train documents", "train tokens", "test documents", "test tokens")
    none = {"documents": 0, "tokens": 0}
    for topic in sorted({topic for of_split in counts.values() for topic in of_split}):
        both = [counts[split].get(topic, none) for split in ("train", "test")]
        table.add_row(topic, *(f"{found[key]:,}" for found in both for key in ("documents", "tokens")))
    return table


def _examples(rows: Dataset, tokenizer: Any, category: str, number: int) -> Iterator[tuple[int, str]]:
    """(document, beginning) of the first rows of a category."""
    _, categories = _lengths(rows)
    for i in np.flatnonzero(categories == category)[:number]:
        row = rows[int(i)]
        text = tokenizer.decode(row["input_ids"][:_EXAMPLE])
        yield row["document"], text[:_EXAMPLE] + (" ..." if len(text) > _EXAMPLE else "")
