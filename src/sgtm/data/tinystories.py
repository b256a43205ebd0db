"""Parallel texts in two columns, as in the bilingual TinyStories set: one language is kept, the other removed."""

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk

from sgtm.config import Category, ConfigError, nearest
from sgtm.data.synthetic import stories
from sgtm.data.tokenize import Document, Source

HUB_NAME = "ffuuugor/tinystories_spanish"
RENDERINGS: dict[str, Callable[[str, str], str]] = {  # (English, Spanish) -> a text that has to be learned anew
    "spanish": lambda english, spanish: spanish,
    "rot13": lambda english, spanish: codecs.encode(english, "rot13"),
    "mirrored": lambda english, spanish: english[::-1],
}
_READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


def source(name: str, split: str, columns: dict[str, Category]) -> Source:
    """The documents of a local file or folder, or of a data set on the Hub.

    Args:
        name: a parquet, json, jsonl or arrow file, a folder of such files, a folder written by ``save_to_disk``, or a
            name on the Hub.
        split: which split of a data set that has several.
        columns: the category of each text column; the first column identifies the row.

    Raises:
        ConfigError: no such data, or a column is missing.
    """
    return partial(_documents, open_columns(name, split, columns)[0], columns)


def open_columns(name: str, split: str, needed: Iterable[str]) -> tuple[Dataset | IterableDataset, list[str]]:
    """The rows of a local file or folder, or of a data set on the Hub (see ``source``), and the columns they have.

    Raises:
        ConfigError: no such data, it cannot be read, or one of the columns ``needed`` is missing.
    """
    try:
        rows = open_rows(name, split)
        found = list(rows.features or next(iter(rows), {}))
    except ConfigError:
        raise
    except (ValueError, StopIteration, OSError) as error:  # pyarrow's errors are among these
        raise ConfigError(f"{name} cannot be read as a table of texts: {str(error) or 'it is empty'}") from error
    if missing := [c for c in needed if c not in found]:
        raise ConfigError(f"{name} has no column {missing}; it has {found}")
    return rows, found


def synthetic_source(num_stories: int, seed: int, forget: Literal["es", "en"] = "es") -> Source:
    """The embedded corpus as documents; ``forget`` is the language to be removed.

    Raises:
        ConfigError: fewer than two stories (one for each split).
    """
    if num_stories < 2:
        raise ConfigError(f"stories={num_stories}: at least two are needed, one for each split")
    categories: tuple[Category, Category] = ("retain", "forget") if forget == "es" else ("forget", "retain")

    def documents() -> Iterator[Document]:
        for texts in stories(num_stories, seed):
            for category, text in zip(categories, texts, strict=True):
                yield Document(texts[0], category, text)

    return documents


def synthetic_domains(num_stories: int, seed: int, domains: Sequence[str]) -> Source:
    """The embedded corpus in English, to be kept, and once more in each of ``domains``: other ways to write it.

    Raises:
        ConfigError: fewer than two stories, or an unknown domain.
    """
    if num_stories < 2:
        raise ConfigError(f"stories={num_stories}: at least two are needed, one for each split")
    for name in domains:
        if name not in RENDERINGS:
            raise ConfigError(f"domains={name!r} is none of {list(RENDERINGS)}{nearest(name, RENDERINGS)}")

    def documents() -> Iterator[Document]:
        for english, spanish in stories(num_stories, seed):
            yield Document(english, "retain", english)
            for name in domains:
                yield Document(english, name, RENDERINGS[name](english, spanish))

    return documents


def _documents(rows: Iterable[dict[str, Any]], columns: dict[str, Category]) -> Iterator[Document]:
    first = next(iter(columns))
    for row in rows:
        for column, category in columns.items():
            yield Document(row[first] or row[column] or "", category, row[column] or "")


def open_rows(name: str, split: str) -> Dataset | IterableDataset:
    """The rows of a local file or folder, or of a data set on the Hub (see ``source``)."""
    path = Path(name)
    if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        data = load_from_disk(path)
        return data if isinstance(data, Dataset) else _split(data, name, split)
    if path.exists():
        return _open_files(path)
    if path.suffix in _READERS or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"{name} does not exist; give a file ({', '.join(_READERS)}), a folder, or a name on the Hub")
    try:
        return _split(load_dataset(name), name, split)
    except (OSError, ValueError) as error:  # offline errors and unknown names are among these
        raise ConfigError(
            f"{name} is no local file or folder, and the Hub gave: {str(error).splitlines()[0]}"
        ) from error


def _open_files(path: Path) -> IterableDataset:
    files = sorted(p for p in path.rglob("*") if p.suffix in _READERS) if path.is_dir() else [path]
    kinds = {_READERS.get(p.suffix) for p in files}
    if len(kinds) != 1 or None in kinds:
        raise ConfigError(
            f"{path}: one kind of file is needed, of {', '.join(_READERS)}; found {sorted(map(str, kinds))}"
        )
    return load_dataset(kinds.pop(), data_files=[str(p) for p in files], split="train", streaming=True)


def _split(data: Any, name: str, split: str) -> Dataset:
    if split not in data:
        raise ConfigError(f"{name} has no split {split!r}; it has {list(data)}")
    return data[split]
