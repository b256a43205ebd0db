"""Documents -> tokenised rows on disk: a Hugging Face ``DatasetDict`` (train, test), its tokenizer and a manifest.

Columns: ``input_ids`` (list of int32, at most ``context`` long, end-of-text after each document), ``category`` (what
the document is) and ``document`` (its number; a packed row bears that of the document it starts with).
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sgtm.config import CATEGORIES, Category, ConfigError, PrepareConfig

END_OF_TEXT = "<|endoftext|>"
MANIFEST = "manifest.json"
_BATCH = 1024  # documents that are tokenised together
_TOKENIZER_SAMPLE = 200_000  # documents that a new tokenizer is trained on, at most
_SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "category": pa.string(), "document": pa.int64()})


class Document(NamedTuple):
    """One text of a source. Documents of one ``group`` (translations, copies) never stand on both sides of a split."""

    group: str
    category: Category
    text: str


Source = Callable[[], Iterable[Document]]  # can be read more than once


def prepare(source: Source, config: PrepareConfig, origin: dict[str, Any], test_source: Source | None = None) -> Path:
    """Tokenise ``source`` into ``config.out`` and return that folder.

    Args:
        source: training documents; a share of their groups becomes the test split unless ``test_source`` is given.
        origin: what the manifest says of the source (name, revision, ...).
        test_source: test documents, if the source comes with a split of its own. Groups that stand on both sides
            are dropped from the training split.

    Raises:
        ConfigError: see ``PrepareConfig.check``; the tokenizer cannot be had, or a split is empty. Nothing is left
            behind.
    """
    config.check()
    out = config.out
    split_of = _Splitter(config, source, test_source)
    tokenizer = load_tokenizer(config.tokenizer, lambda: (d.text for d in source() if split_of(d) == "train"))
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        counts = _write(source, test_source, split_of, tokenizer, config, partial)
        _check_counts(counts)
        settings = {key: value for key, value in asdict(config).items() if key != "out"}
        manifest = {"origin": origin, "settings": settings, "tokenizer_sha256": tokenizer_hash(tokenizer), **counts}
        tokenizer.save_pretrained(partial / "tokenizer")
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def load_tokenizer(name: str, texts: Callable[[], Iterable[str]] | None = None) -> PreTrainedTokenizerBase:
    """A fast tokenizer with an end-of-text token.

    Args:
        name: a name on the Hub, a folder, a tokenizer.json, or ``train:VOCAB``.
        texts: what ``train:VOCAB`` is trained on.

    Raises:
        ConfigError: no such tokenizer, or it has no end-of-text token.
    """
    if name.startswith("train:"):
        size = name.removeprefix("train:")
        if texts is None or not size.isdigit() or int(size) < 257:
            raise ConfigError(f"tokenizer={name!r}: use train:VOCAB with at least 257 entries (bytes and end-of-text)")
        return _train_tokenizer(int(size), texts())
    path = Path(name)
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file() and not (file.parent / "tokenizer_config.json").is_file():
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=END_OF_TEXT)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent) if file.is_file() else name)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"tokenizer={name!r} is neither a folder with a tokenizer.json nor reachable on the Hub "
                f"({str(error).splitlines()[0]}); give a local folder, or train:VOCAB"
            ) from error
    if tokenizer.eos_token_id is None or not tokenizer.is_fast:
        raise ConfigError(f"tokenizer={name!r} must be a fast tokenizer with an end-of-text token (eos_token)")
    return tokenizer


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of everything that decides which ids a text gets."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def _train_tokenizer(vocab_size: int, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(texts, _TOKENIZER_SAMPLE), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)


class _Splitter:
    """Which split a document belongs to: its group decides, and no text of the test split is trained on.

    One text can stand in several groups (a translation of two sentences); where the test split has it, the copies
    in training are dropped ("both").
    """

    def __init__(self, config: PrepareConfig, source: Source, test_source: Source | None) -> None:
        self.seed, self.fraction = config.seed, 0.0 if test_source else config.test_fraction
        test = test_source() if test_source else (d for d in source() if self._is_test(d))
        self.seen_in_test = {self._hash(t) for d in test for t in (d.group, d.text)}

    def __call__(self, document: Document) -> str:
        if self._is_test(document):
            return "test"
        return "both" if {self._hash(document.group), self._hash(document.text)} & self.seen_in_test else "train"

    def _is_test(self, document: Document) -> bool:
        return self._hash(document.group) < self.fraction * 2**64

    def _hash(self, group: str) -> int:
        return int.from_bytes(hashlib.blake2b(f"{self.seed}:{group}".encode(), digest_size=8).digest())


class _RowWriter:
    """Rows of one split, streamed to an Arrow file."""

    def __init__(self, path: Path, config: PrepareConfig) -> None:
        self.path, self.context, self.pack = path, config.context, config.pack
        self.sink = pa.OSFile(str(path), "wb")
        self.stream = pa.ipc.new_stream(self.sink, _SCHEMA)
        self.rest: dict[str, tuple[NDArray[np.int32], NDArray[np.int64]]] = {}
        self.rows: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()

    def add(self, category: str, documents: list[tuple[int, list[int]]]) -> None:
        """Write ``documents``, (number, token ids) each, of one category."""
        if not self.pack:
            # Rows of a long document overlap by one token, so that every token but its first is predicted once.
            step = self.context - 1
            rows = [(ids[i : i + self.context], n) for n, ids in documents for i in range(0, len(ids) - 1, step)]
            self._write(category, [r[0] for r in rows], [r[1] for r in rows])
            return
        ids, numbers = self.rest.get(category, (np.empty(0, np.int32), np.empty(0, np.int64)))
        ids = np.concatenate([ids, *(np.asarray(d[1], np.int32) for d in documents)])
        numbers = np.concatenate([numbers, *(np.full(len(d[1]), d[0]) for d in documents)])
        full = len(ids) - len(ids) % self.context
        starts = range(0, full, self.context)
        self._write(category, [ids[i : i + self.context] for i in starts], [int(numbers[i]) for i in starts])
        self.rest[category] = ids[full:], numbers[full:]

    def close(self) -> None:
        for category, (ids, numbers) in self.rest.items():
            if len(ids) > 1:  # the last, shorter row; one token alone predicts nothing
                self._write(category, [ids], [int(numbers[0])])
        self.stream.close()
        self.sink.close()

    def _write(self, category: str, rows: list[Any], numbers: list[int]) -> None:
        self.rows[category] += len(rows)
        self.tokens[category] += sum(map(len, rows))
        columns = [pa.array(rows, _SCHEMA.field("input_ids").type), pa.array([category] * len(rows)), pa.array(numbers)]
        self.stream.write_batch(pa.record_batch(columns, schema=_SCHEMA))


def _write(
    source: Source,
    test_source: Source | None,
    split_of: _Splitter,
    tokenizer: PreTrainedTokenizerBase,
    config: PrepareConfig,
    folder: Path,
) -> dict[str, Any]:
    """Write both splits below ``folder`` and return the manifest's counts."""
    writers = {split: _RowWriter(folder / f"{split}.arrow", config) for split in ("train", "test")}
    documents: Counter[tuple[str, str]] = Counter()
    rejected: Counter[str] = Counter()
    number = 0
    progress = tqdm(_with_splits(source, test_source, split_of), "documents", unit="", unit_scale=True, leave=False)
    for batch in _batches(progress):
        encoded = tokenizer.backend_tokenizer.encode_batch_fast([d.text for _, d in batch], add_special_tokens=False)
        rows: dict[tuple[str, str], list[tuple[int, list[int]]]] = {}
        for (split, document), encoding in zip(batch, encoded, strict=True):
            if reason := _reason_to_reject(split, document):
                rejected[reason] += 1
                continue
            documents[split, document.category] += 1
            ids = [*encoding.ids, tokenizer.eos_token_id]
            rows.setdefault((split, document.category), []).append((number, ids))
            number += 1
        for (split, category), found in rows.items():
            writers[split].add(category, found)
    for writer in writers.values():
        writer.close()
    _save_splits(folder, writers)
    counts = {
        split: {
            category: {"documents": documents[split, category], "rows": w.rows[category], "tokens": w.tokens[category]}
            for category in CATEGORIES
            if documents[split, category]
        }
        for split, w in writers.items()
    }
    return {"vocab_size": len(tokenizer), "counts": counts, "rejected": dict(rejected)}


def _with_splits(source: Source, test_source: Source | None, split_of: _Splitter) -> Iterator[tuple[str, Document]]:
    for document in source():
        yield split_of(document), document
    if test_source is not None:
        for document in test_source():
            yield "test", document


def _reason_to_reject(split: str, document: Document) -> str | None:
    if not document.text.strip():
        return "empty text"
    return "in the test split as well" if split == "both" else None


def _save_splits(folder: Path, writers: dict[str, _RowWriter]) -> None:
    splits = {split: Dataset.from_file(str(w.path)) for split, w in writers.items() if sum(w.rows.values())}
    with _quiet():
        DatasetDict(splits).save_to_disk(folder)
    for w in writers.values():
        w.path.unlink()


@contextmanager
def _quiet() -> Iterator[None]:
    """One bar is enough."""
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()


def _check_counts(counts: dict[str, Any]) -> None:
    for split, categories in counts["counts"].items():
        if not categories:
            raise ConfigError(
                f"the {split} split is empty (rejected: {counts['rejected'] or 'nothing'}); give more documents, or "
                "a larger test_fraction for an empty test split"
            )
    train, test = counts["counts"]["train"], counts["counts"]["test"]
    if missing := train.keys() - test.keys():
        raise ConfigError(
            f"the test split has no document of category {sorted(missing)}; raise test_fraction or give more data"
        )


def _batches(items: Iterable[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
