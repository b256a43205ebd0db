"""Parallel texts in two columns, as in the bilingual TinyStories set: one language is kept, the other removed."""

import codecs
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk

from sgtm.config import Category, ConfigError, Stream, nearest
from sgtm.data.synthetic import stories
from sgtm.data.tokenize import MANIFEST, UNLABELED, Document, Source
from sgtm.plain import shown

HUB_NAME = "ffuuugor/tinystories_spanish"
RENDERINGS: dict[str, Callable[[str, str], str]] = {  # (English, Spanish) -> a text that has to be learned anew
    "spanish": lambda english, spanish: spanish,
    "rot13": lambda english, spanish: codecs.encode(english, "rot13"),
    "mirrored": lambda english, spanish: english[::-1],
}
_CHANGE = (0.25, 0.75)  # of a text: where a mixed document changes its language
_NOT_READ = (".txt", ".csv", ".tsv", ".gz", ".zst", ".bz2", ".xz", ".zip")  # of a folder's files; they may be texts
_SHOWN = 5  # of broken lines
_READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


def source(
    name: str,
    split: str,
    columns: dict[str, Category],
    mixed_share: float = 0.0,
    label_tokens: bool = False,
    seed: int = 0,
) -> Source:
    """The documents of a local file or folder, or of a data set on the Hub.

    Args:
        name: a parquet, json, jsonl or arrow file, a folder of such files, a folder written by ``save_to_disk``, or a
            name on the Hub.
        split: which split of a data set that has several.
        columns: the category of each text column; the first column identifies the row.
        mixed_share: share of the rows whose two texts are trained on as two mixed documents: each begins in one
            language and goes on in the other, from about the same place of the text. Their category is the domain;
            where their row stands in the test split, it stands there unmixed.
        label_tokens: whether to label every part of every document by its language: the domain, or retain.
        seed: chooses the mixed rows and where they change.

    Raises:
        ConfigError: no such data, a column is missing, or no share.
    """
    if not 0 <= mixed_share <= 1:
        raise ConfigError(f"mixed_share={mixed_share} is no fraction; use 0 to 1")
    rows, _ = open_columns(name, split, columns)
    return partial(_documents, name, rows, columns, mixed_share, label_tokens, seed)


def open_columns(
    name: str, split: str, needed: Iterable[str] = (), streaming: bool = False
) -> tuple[Dataset | IterableDataset, list[str]]:
    """The rows of a local file or folder, or of a data set on the Hub (see ``source``), and the columns they have.

    Raises:
        ConfigError: no such data, it cannot be read, or one of the columns ``needed`` is missing.
    """
    try:
        rows = open_rows(name, split, streaming)
        found = list(rows.features or next(iter(rows), {}))
    except ConfigError:
        raise
    except (ValueError, StopIteration, OSError, KeyError, TypeError) as error:  # pyarrow's, datasets' own
        reason = _broken_lines(Path(name)) or str(error) or "it is empty"
        raise ConfigError(f"{name} cannot be read as a table of texts: {reason}") from error
    if missing := [c for c in needed if c not in found]:
        raise ConfigError(f"{name} has no column {missing}; it has {found}")
    return rows, found


def readable(rows: Iterable[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """The rows of the data called ``name``, to the end.

    Raises:
        ConfigError: one that cannot be read.
    """
    found, number = iter(rows), 0
    while True:
        try:
            row = next(found)
        except StopIteration:
            return
        except (ValueError, TypeError, KeyError, OSError) as error:  # pyarrow's and datasets' errors are among these
            reason = _broken_lines(Path(name)) or " ".join(str(error).split())[:300]
            raise ConfigError(f"the rows cannot be read after row {number}: {reason}; mend the file") from error
        yield row
        number += 1


def _broken_lines(path: Path) -> str:
    """Which lines of the JSON files at ``path`` are no rows, in words; nothing if all are."""
    files = [file for file in (_files(path) if path.exists() else ()) if _READERS.get(file.suffix) == "json"]
    said = []
    for file in files:
        found = list(islice(_no_rows(file), _SHOWN + 1))
        if found:
            lines = ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
            said.append(f"{file}, line{'s' if len(found) > 1 else ''} {lines}: no JSON object")
    return "; ".join(said)


def _no_rows(file: Path) -> Iterator[int]:
    """The numbers of lines, from 1, that are no JSON object; none of a file that is one value over several lines."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1 and (line.lstrip().startswith(b"[") or line.strip() == b"{"):
                return
            try:
                is_row = not line.strip() or isinstance(json.loads(line), dict)
            except ValueError:
                is_row = False
            if not is_row:
                yield number


def text_of(row: dict[str, Any], column: str, number: int) -> str:
    """The text in a ``column`` of row ``number``; none is empty.

    Raises:
        ConfigError: it is no text.
    """
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"row {number}: {column}={shown(value)} must be text; put it in quotes")
    return value or ""


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


def _documents(
    name: str,
    rows: Iterable[dict[str, Any]],
    columns: dict[str, Category],
    mixed_share: float,
    label_tokens: bool,
    seed: int,
) -> Iterator[Document]:
    rng = np.random.default_rng((seed, Stream.MIXED))
    for number, row in enumerate(readable(rows, name)):
        parts = [(text_of(row, column, number), category) for column, category in columns.items()]
        is_mixed, place = rng.random() < mixed_share, rng.uniform(*_CHANGE)
        for document in _pair(parts, place if is_mixed else None):
            label = document.category if label_tokens else UNLABELED
            spans = document.spans if label_tokens else ()
            yield document._replace(group=parts[0][0] or document.text, label=label, spans=spans)


def _pair(parts: list[tuple[str, Category]], place: float | None) -> list[Document]:
    """A row's documents; with a ``place``, unmixed ones to be tested on and mixed ones to be trained on."""
    whole = [Document("", category, text) for text, category in parts]
    if place is None:
        return whole
    first, second = parts
    mixed = [_mix(first, second, place), _mix(second, first, place)]
    if any(len(document.spans) < 2 for document in mixed):  # a text of one word cannot be cut
        return whole
    return [document._replace(only="test") for document in whole] + mixed


def _mix(first: tuple[str, Category], second: tuple[str, Category], place: float) -> Document:
    """A document that begins as ``first`` and, from a space near ``place`` (0 to 1) on, goes on as ``second``."""
    (begin, of_begin), (end, of_end) = first, second
    begin, end = begin[: _space(begin, place)], end[_space(end, place) :]
    spans = ((0, len(begin), of_begin), (len(begin), len(begin + end), of_end))
    domain = next(c for c in (of_begin, of_end) if c != "retain")
    return Document("", domain, begin + end, "", tuple(s for s in spans if s[0] < s[1]), "train")


def _space(text: str, place: float) -> int:
    """Where the first space after ``place`` stands, or the end."""
    found = text.find(" ", int(place * len(text)))
    return len(text) if found < 0 else found


def open_rows(name: str, split: str, streaming: bool = False) -> Dataset | IterableDataset:
    """The rows of a local file or folder, or of a data set on the Hub, which is not downloaded if ``streaming``."""
    path = Path(name)
    if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        data = load_from_disk(path)
        return data if isinstance(data, Dataset) else _split(data, name, split)
    if path.exists():
        return _open_files(path)
    if path.suffix in _READERS or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"{name} does not exist; give a file ({', '.join(_READERS)}), a folder, or a name on the Hub")
    try:
        return _split(load_dataset(name, streaming=streaming), name, split)
    except (OSError, ValueError) as error:  # offline errors and unknown names are among these
        raise ConfigError(
            f"{name} is no local file or folder, and the Hub gave: {str(error).splitlines()[0]}"
        ) from error


def _open_files(path: Path) -> IterableDataset:
    found = _files(path)
    files = [p for p in found if p.suffix in _READERS]
    kinds = {_READERS[p.suffix] for p in files}
    others = Counter(p.suffix or p.name for p in found if p.suffix not in _READERS)
    if len(kinds) != 1:
        given = ", ".join(sorted({p.suffix for p in files}) or others) or "nothing"
        raise ConfigError(f"{path}: one kind of file is needed, of {', '.join(_READERS)}; found {given}")
    if unread := {kind: n for kind, n in others.items() if kind in _NOT_READ}:
        said = ", ".join(f"{n} {kind}" for kind, n in unread.items())
        _warn_once(f"{path}: only {', '.join(sorted({p.suffix for p in files}))} is read, not {said}")
    for file in files if kinds == {"json"} else ():
        _check_nulls(file)
    try:
        return load_dataset(kinds.pop(), data_files=[str(p) for p in files], split="train", streaming=True)
    except StopIteration as error:  # what datasets gives for a file of JSON lines that has none
        raise ConfigError(f"{path} has no rows") from error


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name != MANIFEST) if path.is_dir() else [path]


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _check_nulls(file: Path) -> None:
    """Arrow (as of version 26) ends the process where a block of the lines that it reads begins with a null."""
    with open(file, "rb") as opened:
        beginning = opened.read(4096).lstrip()
        if not beginning or beginning.startswith(b"["):
            return
        with mmap(opened.fileno(), 0, access=ACCESS_READ) as whole:
            if beginning.startswith(b"null") or whole.find(b"\nnull") >= 0:
                raise ConfigError(f"{_broken_lines(file) or file}; take out what is null")


def _split(data: Any, name: str, split: str) -> Dataset:
    if split not in data:
        raise ConfigError(f"{name} has no split {split!r}; it has {list(data)}")
    return data[split]
