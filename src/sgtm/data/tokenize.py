"""Documents -> tokenised rows on disk: a Hugging Face ``DatasetDict`` (train, test), its tokenizer and a manifest.

Columns: ``input_ids`` (list of int32, at most ``context`` long, end-of-text after each document), ``category`` (what
the document is) and ``document`` (its number; a packed row bears that of the document it starts with). Sources with
labels of their own add ``label`` (of the document) or ``token_labels`` (one for each token: an index into the
manifest's ``token_labels``).
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
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sgtm.config import Category, ConfigError, PrepareConfig

END_OF_TEXT = "<|endoftext|>"
MANIFEST = "manifest.json"
_BATCH = 1024  # documents that are tokenised together
_TOKENIZER_SAMPLE = 200_000  # documents that a new tokenizer is trained on, at most
_SCHEMA = {"input_ids": pa.list_(pa.int32()), "category": pa.string(), "document": pa.int64()}
_LABEL_COLUMNS = {"documents": {"label": pa.string()}, "tokens": {"token_labels": pa.list_(pa.int8())}}
UNLABELED = "unlabeled"
Labelled = Literal["documents", "tokens"]


class Document(NamedTuple):
    """One text of a source. Documents of one ``group`` (translations, copies) never stand on both sides of a split.

    ``label`` is what a labeller said of the document, ``spans`` (first character, last + 1, label) of parts of it.
    A document that is ``only`` for the train or test split is left out where its group stands in the other.
    """

    group: str
    category: Category
    text: str
    label: str = UNLABELED
    spans: tuple[tuple[int, int, str], ...] = ()
    only: Literal["", "train", "test"] = ""


class _Encoded(NamedTuple):
    number: int
    ids: list[int]
    label: str
    token_labels: list[int]  # empty where tokens have no labels of their own


Source = Callable[[], Iterable[Document]]  # can be read more than once


def prepare(
    source: Source,
    config: PrepareConfig,
    origin: dict[str, Any],
    test_source: Source | None = None,
    labelled: Labelled | None = None,
) -> Path:
    """Tokenise ``source`` into ``config.out`` and return that folder.

    Args:
        source: training documents; a share of their groups becomes the test split unless ``test_source`` is given.
        origin: what the manifest says of the source (name, revision, ...).
        test_source: test documents, if the source comes with a split of its own. Groups that stand on both sides
            are dropped from the training split.
        labelled: whether to write the labels of documents, or of tokens (from documents' labels and spans). In packed
            rows several documents stand together, so there labels are written for tokens.

    Raises:
        ConfigError: see ``PrepareConfig.check``; the tokenizer cannot be had, or a split is empty. Nothing is left
            behind.
    """
    config.check()
    out = config.out
    labelled = "tokens" if labelled and config.pack else labelled
    split_of = _Splitter(config, source, test_source)
    tokenizer = load_tokenizer(config.tokenizer, lambda: (d.text for d in source() if split_of(d) == "train"))
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        counts = _write(source, test_source, split_of, tokenizer, config, labelled, partial)
        _check_counts(counts)
        settings = {key: value for key, value in asdict(config).items() if key != "out"}
        manifest = {"origin": origin, "settings": settings, "tokenizer_sha256": tokenizer_hash(tokenizer), **counts}
        tokenizer.save_pretrained(partial / "tokenizer")
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def read_manifest(path: Path) -> dict[str, Any]:
    """What ``prepare`` noted of the data in ``path``."""
    if not (path / MANIFEST).is_file():
        raise ConfigError(f"{path} has no {MANIFEST}, so its tokenizer cannot be checked; prepare it with `sgtm data`")
    found: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return found


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
        if document.only == "test":
            return "neither"
        return "both" if {self._hash(document.group), self._hash(document.text)} & self.seen_in_test else "train"

    def _is_test(self, document: Document) -> bool:
        return document.only != "train" and self._hash(document.group) < self.fraction * 2**64

    def _hash(self, group: str) -> int:
        return int.from_bytes(hashlib.blake2b(f"{self.seed}:{group}".encode(), digest_size=8).digest())


class _RowWriter:
    """Rows of one split, streamed to an Arrow file."""

    def __init__(self, path: Path, config: PrepareConfig, labelled: Labelled | None) -> None:
        self.path, self.context, self.pack = path, config.context, config.pack
        self.schema = pa.schema(_SCHEMA | (_LABEL_COLUMNS[labelled] if labelled else {}))
        self.sink = pa.OSFile(str(path), "wb")
        self.stream = pa.ipc.new_stream(self.sink, self.schema)
        self.rest: dict[str, NDArray[np.int64]] = {}  # (3, tokens): ids, document numbers, token labels
        self.rows: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()

    def add(self, category: str, documents: list[_Encoded]) -> None:
        """Write ``documents`` of one category."""
        size = self.context
        if not self.pack:
            # Rows of a long document overlap by one token, so that every token but its first is predicted once.
            places = [(d, slice(i, i + size)) for d in documents for i in range(0, len(d.ids) - 1, size - 1)]
            self._write(category, [_Encoded(d.number, d.ids[s], d.label, d.token_labels[s]) for d, s in places])
            return
        tokens = [[d.ids, [d.number] * len(d.ids), d.token_labels or [0] * len(d.ids)] for d in documents]
        rest = self.rest.get(category, np.empty((3, 0), np.int64))
        stream = np.concatenate([rest, *(np.asarray(t, np.int64) for t in tokens)], axis=1)
        full = stream.shape[1] - stream.shape[1] % size
        self._write(category, [_packed(stream[:, i : i + size]) for i in range(0, full, size)])
        self.rest[category] = stream[:, full:]

    def close(self) -> None:
        for category, stream in self.rest.items():
            if stream.shape[1] > 1:  # the last, shorter row; one token alone predicts nothing
                self._write(category, [_packed(stream)])
        self.stream.close()
        self.sink.close()

    def _write(self, category: str, rows: list[_Encoded]) -> None:
        self.rows[category] += len(rows)
        self.tokens[category] += sum(len(row.ids) for row in rows)
        values = {
            "input_ids": [row.ids for row in rows],
            "category": [category] * len(rows),
            "document": [row.number for row in rows],
            "label": [row.label for row in rows],
            "token_labels": [row.token_labels for row in rows],
        }
        columns = [pa.array(values[field.name], field.type) for field in self.schema]
        self.stream.write_batch(pa.record_batch(columns, schema=self.schema))


def _packed(stream: NDArray[np.int64]) -> _Encoded:
    """A row of (3, tokens): it bears the number of the document that it starts with."""
    ids, numbers, token_labels = stream
    return _Encoded(int(numbers[0]), ids, UNLABELED, token_labels)  # type: ignore[arg-type]


def _write(
    source: Source,
    test_source: Source | None,
    split_of: _Splitter,
    tokenizer: PreTrainedTokenizerBase,
    config: PrepareConfig,
    labelled: Labelled | None,
    folder: Path,
) -> dict[str, Any]:
    """Write both splits below ``folder`` and return the manifest's counts."""
    writers = {split: _RowWriter(folder / f"{split}.arrow", config, labelled) for split in ("train", "test")}
    backend, names = tokenizer.backend_tokenizer, [UNLABELED]
    encode = backend.encode_batch if labelled == "tokens" else backend.encode_batch_fast  # the fast one knows no places
    documents: Counter[tuple[str, str]] = Counter()
    rejected: Counter[str] = Counter()
    number = 0
    progress = tqdm(_with_splits(source, test_source, split_of), "documents", unit="", unit_scale=True, leave=False)
    for batch in _batches(progress):
        encoded = encode([d.text for _, d in batch], add_special_tokens=False)
        rows: dict[tuple[str, str], list[_Encoded]] = {}
        for (split, document), encoding in zip(batch, encoded, strict=True):
            if reason := _reason_to_reject(split, document):
                rejected[reason] += 1
                continue
            documents[split, document.category] += 1
            ids = [*encoding.ids, tokenizer.eos_token_id]
            of_tokens = _token_labels(document, encoding.offsets, names) if labelled == "tokens" else []
            encoded_document = _Encoded(number, ids, document.label, of_tokens)
            rows.setdefault((split, document.category), []).append(encoded_document)
            number += 1
        for (split, category), found in rows.items():
            writers[split].add(category, found)
    for writer in writers.values():
        writer.close()
    _save_splits(folder, writers)
    counts = {
        split: {
            category: {"documents": documents[split, category], "rows": w.rows[category], "tokens": w.tokens[category]}
            for category in sorted({c for s, c in documents if s == split}, key=_forget_first)
        }
        for split, w in writers.items()
    }
    about = {"vocab_size": len(tokenizer), "counts": counts, "rejected": dict(rejected)}
    return about | ({"token_labels": names} if labelled == "tokens" else {})


def _forget_first(category: str) -> tuple[int, str]:
    known = ("adjacent", "retain")
    return (1 + known.index(category) if category in known else 0, category)


def _token_labels(document: Document, offsets: list[tuple[int, int]], names: list[str]) -> list[int]:
    """The label of each token, as an index into ``names``, and of end-of-text: a span's if it touches one."""
    for label in (document.label, *(label for _, _, label in document.spans)):
        if label not in names:
            names.append(label)
    own = names.index(document.label)
    found = [own] * (len(offsets) + 1)
    for start, stop, label in document.spans:
        for i, (first, last) in enumerate(offsets):
            if first < stop and last > start:
                found[i] = names.index(label)
    return found


def _with_splits(source: Source, test_source: Source | None, split_of: _Splitter) -> Iterator[tuple[str, Document]]:
    for document in source():
        yield split_of(document), document
    if test_source is not None:
        for document in test_source():
            yield "test", document


def _reason_to_reject(split: str, document: Document) -> str | None:
    if not document.text.strip():
        return "empty text"
    return {"both": "in the test split as well", "neither": "for the test split only"}.get(split)


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
