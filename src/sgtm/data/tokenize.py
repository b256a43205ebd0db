"""Documents -> tokenised rows on disk: a Hugging Face ``DatasetDict`` (train, test), its tokenizer and a manifest.

Columns: ``input_ids`` (list of int32, at most ``context`` long, end-of-text after each document), ``category`` (what
the document is) and ``document`` (its number; a packed row bears that of the document it starts with). Sources with
labels of their own add ``label`` (of the document) or ``token_labels`` (one for each token: an index into the
manifest's ``token_labels``); sources with topics add ``topic``, and a packed row holds documents of one topic only.
"""

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from itertools import chain, islice, tee
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm.auto import tqdm

from sgtm.config import Category, ConfigError, PrepareConfig, check_no_secret, read_json
from sgtm.data.encode import Encoders, Ids, as_arrow
from sgtm.data.tokenizer import Opener, SavedTokenizer

MANIFEST = "manifest.json"
PROGRESS = "progress.json"  # of a preparation that can go on after a kill
_BATCH = 1024  # documents that are tokenised together
_BATCH_CHARACTERS = 2**22  # of them, at most, where documents may be of any length
_ROWS = 1000  # rows that lie together in a file that stays as it is written
_SCHEMA = {"input_ids": pa.list_(pa.int32()), "category": pa.string(), "document": pa.int64()}
_LABEL_COLUMNS = {"documents": {"label": pa.string()}, "tokens": {"token_labels": pa.list_(pa.int8())}}
_TOPIC_COLUMN = {"topic": pa.string()}
_ABOUT = {"tokenizer_sha256": str, "settings": {"pack": bool}, "counts": {"train": dict, "test": dict}}
_MOST_LABELS = 127  # an int8
UNLABELED = "unlabeled"
Labelled = Literal["documents", "tokens"]


class Document(NamedTuple):
    """One text of a source. Documents of one ``group`` (translations, copies) never stand on both sides of a split.

    ``label`` is what a labeller said of the document, ``spans`` (first character, last + 1, label) of parts of it.
    A document that is ``only`` for the train or test split is left out where its group stands in the other.
    ``topic`` is a finer word for what it is about than its category.
    """

    group: str
    category: Category
    text: str
    label: str = UNLABELED
    spans: tuple[tuple[int, int, str], ...] = ()
    only: Literal["", "train", "test"] = ""
    topic: str = ""


class _Encoded(NamedTuple):
    number: int
    ids: Ids
    label: str
    token_labels: list[int] | NDArray[np.int32]  # empty where tokens have no labels of their own


class _Kind(NamedTuple):
    """What a row's documents have in common."""

    category: str
    topic: str


Source = Callable[[], Iterable[Document]]  # can be read more than once
_Stream = NDArray[np.int32]
_Batch = list[tuple[Document, str | None]]  # each with its split, if the source says so
_Encoding = tuple[Ids, list[tuple[int, int]]]  # of a text: ids, and the first character and last + 1 of each


def prepare(
    source: Source,
    config: PrepareConfig,
    origin: dict[str, Any],
    test_source: Source | None = None,
    labelled: Labelled | None = None,
    *,
    topics: bool = False,
    rejected: Mapping[str, int] | None = None,
    shard: int | None = None,
    processes: int = 1,
    opener: Opener | None = None,
) -> Path:
    """Tokenise ``source`` into ``config.out`` and return that folder.

    Args:
        source: training documents; a share of their groups becomes the test split unless ``test_source`` is given.
        origin: what the manifest says of the source (name, revision, ...).
        test_source: test documents, if the source comes with a split of its own. Groups that stand on both sides
            are dropped from the training split.
        labelled: whether to write the labels of documents, or of tokens (from documents' labels and spans). In packed
            rows several documents stand together, so there labels are written for tokens.
        topics: write the topics of documents, and pack no two topics into one row.
        rejected: documents that the source itself turned away, by reason; they are counted with those rejected here.
        shard: documents after which a run that is killed can go on; by default it starts anew. ``origin`` must say
            all that the source's documents depend on (hashes of its files), or what it goes on with may be stale.
        processes: that tokenise; what is written is the same with any number.
        opener: of the settings' tokenizer, where it is being opened already.

    Raises:
        ConfigError: see ``PrepareConfig.check``; the tokenizer cannot be had, a split is empty, or the disk is full.
            Nothing is left behind, but for what a full disk leaves to go on from where ``shard`` is given.
    """
    config.check()
    check_no_secret(origin, "the source")
    labelled = "tokens" if labelled and config.pack else labelled
    partial = config.out.with_name(f"{config.out.name}.partial")
    with Encoders(1 if labelled == "tokens" else processes) as encoders, _kept_if(shard is not None, partial):
        split_of = _Splitter(config, source, test_source)
        opener = opener or Opener(config.tokenizer)
        tokenizer = opener.tokenizer(lambda: (d.text for d in source() if split_of(d) == "train"))
        encoders.load(tokenizer.said, tokenizer.splits_special)
        settings = {key: value for key, value in asdict(config).items() if key != "out"}
        about = {"origin": origin, "settings": settings, "tokenizer_sha256": tokenizer.sha256}
        writing = _Writing(config, tokenizer, labelled, topics, partial, shard, _hash_of([about, shard]))
        writing.write(source, test_source, split_of, encoders)
        counts = writing.counts(rejected or {})
        _check_counts(counts)
        writing.save_splits()
        tokenizer.save(partial / "tokenizer")
        (partial / MANIFEST).write_text(json.dumps(about | counts, indent=1, ensure_ascii=False), encoding="utf-8")
        partial.rename(config.out)
    (config.out / PROGRESS).unlink(missing_ok=True)
    return config.out


@contextmanager
def _kept_if(resumable: bool, partial: Path) -> Iterator[None]:
    """``partial`` goes when the block ends, unless it is ``resumable`` and ended for no fault of the data."""
    try:
        yield
    except ConfigError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except KeyboardInterrupt:
        remedy = f"; the same command goes on from what {partial} holds" if resumable else ""
        raise KeyboardInterrupt(f"stopped by Ctrl-C{remedy}") from None
    except PermissionError as error:
        raise ConfigError(f"{partial.parent} cannot be written: {error.strerror}; choose another --out") from error
    except OSError as error:
        if not _is_full_disk(error):
            raise
        remedy = f"; the same command goes on from what {partial} holds" if resumable else ""
        raise ConfigError(f"{partial} cannot be written: the disk is full; free some space{remedy}") from error
    finally:
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)


def _is_full_disk(error: OSError) -> bool:
    """Whether ``error`` says that there is no space left (Arrow says so in its text alone)."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)


def read_manifest(path: Path) -> dict[str, Any]:
    """What ``prepare`` noted of the data in ``path``."""
    if not (path / MANIFEST).is_file():
        raise ConfigError(f"{path} has no {MANIFEST}, so its tokenizer cannot be checked; prepare it with `sgtm data`")
    return read_json(path / MANIFEST, "prepare the data anew", _ABOUT)


class _Splitter:
    """Which split a document belongs to: its group decides, and no text of the test split is trained on.

    One text can stand in several groups (a translation of two sentences); where the test split has it, the copies
    in training are dropped ("both").
    """

    def __init__(self, config: PrepareConfig, source: Source, test_source: Source | None) -> None:
        self.seed, self.fraction = config.seed, 0.0 if test_source else config.test_fraction
        self.source, self.test_source = source, test_source

    @cached_property  # all test documents are read for it
    def seen_in_test(self) -> set[int]:
        test = self.test_source() if self.test_source else (d for d in self.source() if self._is_test(d))
        return {self._hash(t) for d in test for t in (d.group, d.text)}

    def __call__(self, document: Document) -> str:
        if self._is_test(document):
            return "test"
        if document.only == "test":
            return "neither"
        return "both" if {self._hash(document.group), self._hash(document.text)} & self.seen_in_test else "train"

    def _is_test(self, document: Document) -> bool:
        return self.fraction > 0 and document.only != "train" and self._hash(document.group) < self.fraction * 2**64

    def _hash(self, group: str) -> int:
        return int.from_bytes(hashlib.blake2b(f"{self.seed}:{group}".encode(), digest_size=8).digest())


class _RowWriter:
    """Rows of one split, streamed to Arrow files in ``folder``."""

    def __init__(
        self, folder: Path, config: PrepareConfig, labelled: Labelled | None, topics: bool, rows_together: int = 1
    ) -> None:
        self.folder, self.context, self.pack = folder, config.context, config.pack
        self.rows_together = rows_together
        added = (_LABEL_COLUMNS[labelled] if labelled else {}) | (_TOPIC_COLUMN if topics else {})
        self.schema = pa.schema(_SCHEMA | added)
        self.num_files = 0
        self.stream: pa.RecordBatchStreamWriter | None = None
        self.waiting: list[tuple[_Kind, _Encoded]] = []
        self.rest: dict[_Kind, _Stream] = {}  # (3, tokens): ids, document numbers, token labels
        self.rows: Counter[_Kind] = Counter()
        self.tokens: Counter[_Kind] = Counter()

    @property
    def files(self) -> list[Path]:
        """The files that are written, in order."""
        return [self.folder / f"data-{i:05d}.arrow" for i in range(self.num_files)]

    def add(self, kind: _Kind, documents: list[_Encoded]) -> None:
        """Write ``documents`` of one kind."""
        size = self.context
        if not self.pack:
            # Rows of a long document overlap by one token, so that every token but its first is predicted once.
            places = [(d, slice(i, i + size)) for d in documents for i in range(0, len(d.ids) - 1, size - 1)]
            self._write(kind, [_Encoded(d.number, d.ids[s], d.label, d.token_labels[s]) for d, s in places])
            return
        rest = self.rest.get(kind, np.empty((3, 0), np.int32))
        stream = np.concatenate([rest, *map(_stream, documents)], axis=1)
        full = stream.shape[1] - stream.shape[1] % size
        self._write(kind, [_packed(stream[:, i : i + size]) for i in range(0, full, size)])
        self.rest[kind] = stream[:, full:].copy()  # the whole stream can go

    def close(self) -> None:
        for kind, stream in self.rest.items():
            if stream.shape[1] > 1:  # the last, shorter row; one token alone predicts nothing
                self._write(kind, [_packed(stream)])
        self.end_file()

    def end_file(self) -> None:
        """All rows that are full are safe on the disk."""
        self._flush()
        if self.stream is not None:
            self.stream.close()
            self.sink.flush()
            os.fsync(self.sink.fileno())
            self.sink.close()
            self.stream = None

    def abandon(self) -> None:
        """Leave a file that an error has cut short."""
        if self.stream is not None:
            with suppress(OSError):  # a full disk refuses what is waiting to be written
                self.sink.close()

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs to go on behind the files that are written."""
        return {
            "num_files": self.num_files,
            "rest": [[*kind, stream.tolist()] for kind, stream in self.rest.items()],
            "rows": [[*kind, self.rows[kind], self.tokens[kind]] for kind in self.rows],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.num_files = state["num_files"]
        self.rest = {_Kind(c, t): np.array(s, np.int32).reshape(3, -1) for c, t, s in state["rest"]}
        self.rows = Counter({_Kind(c, t): rows for c, t, rows, _ in state["rows"]})
        self.tokens = Counter({_Kind(c, t): tokens for c, t, _, tokens in state["rows"]})

    def _write(self, kind: _Kind, rows: list[_Encoded]) -> None:
        self.rows[kind] += len(rows)
        self.tokens[kind] += sum(len(row.ids) for row in rows)
        self.waiting += [(kind, row) for row in rows]
        if len(self.waiting) >= self.rows_together:
            self._flush()

    def _flush(self) -> None:
        if not self.waiting:
            return
        if self.stream is None:
            self.num_files += 1
            self.sink = open(self.files[-1], "wb")  # noqa: SIM115
            self.stream = pa.ipc.new_stream(self.sink, self.schema)
        values: dict[str, list[Any]] = {
            "input_ids": [row.ids for _, row in self.waiting],
            "category": [kind.category for kind, _ in self.waiting],
            "document": [row.number for _, row in self.waiting],
            "label": [row.label for _, row in self.waiting],
            "token_labels": [row.token_labels for _, row in self.waiting],
            "topic": [kind.topic for kind, _ in self.waiting],
        }
        columns = [_column(values[field.name], field.type) for field in self.schema]
        self.stream.write_batch(pa.record_batch(columns, schema=self.schema))
        self.waiting = []


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Lists go by way of one array: some times quicker than one by one."""
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    joined = np.concatenate([np.asarray(v, np.int32) for v in values])
    return pa.ListArray.from_arrays(offsets, as_arrow(joined).cast(kind.value_type), type=kind)


def _stream(document: _Encoded) -> _Stream:
    """(3, tokens): ids, the document's number, labels (0 where there are none)."""
    stream = np.zeros((3, len(document.ids)), np.int32)
    stream[0], stream[1] = document.ids, document.number
    if len(document.token_labels):
        stream[2] = document.token_labels
    return stream


def _packed(stream: _Stream) -> _Encoded:
    """A row of (3, tokens): it bears the number of the document that it starts with."""
    ids, numbers, token_labels = stream
    return _Encoded(int(numbers[0]), ids, UNLABELED, token_labels)


class _Writing:
    """Both splits as they are being written into ``folder``, and how far the source was read.

    Args:
        shard: documents between two points from which a killed run goes on; None if it does not.
        fingerprint: of all that decides what is written; what another one left is not gone on with.
    """

    def __init__(
        self,
        config: PrepareConfig,
        tokenizer: SavedTokenizer,
        labelled: Labelled | None,
        topics: bool,
        folder: Path,
        shard: int | None,
        fingerprint: str,
    ) -> None:
        self.tokenizer, self.labelled, self.topics = tokenizer, labelled, topics
        self.folder, self.shard, self.fingerprint = folder, shard, fingerprint
        # Files of a run that can go on stay where they are written; others are written anew as `datasets` would.
        rows, together = (folder, _ROWS) if shard else (folder / "rows", 1)
        self.writers = {s: _RowWriter(rows / s, config, labelled, topics, together) for s in ("train", "test")}
        self.names = [UNLABELED]
        self.documents: Counter[tuple[str, _Kind]] = Counter()
        self.labels: Counter[tuple[str, str]] = Counter()  # documents, or tokens, of each split and label
        self.rejected: Counter[str] = Counter()
        self.num_read = 0  # documents of the source

    def write(self, source: Source, test_source: Source | None, split_of: _Splitter, encoders: Encoders) -> None:
        """Write all documents, or those that an earlier run did not come to."""
        self._restore()
        tests = test_source() if test_source is not None else ()
        documents = chain(((d, None) for d in source()), ((d, "test") for d in tests))
        rest = islice(documents, self.num_read, None)
        progress = tqdm(rest, "documents", initial=self.num_read, unit="", unit_scale=True, leave=False)
        batches = _batches(progress, _BATCH_CHARACTERS if self.shard else None)
        saved = self.num_read
        try:
            for batch, encodings in self._encoded(batches, encoders):
                self._add([(split or split_of(document), document) for document, split in batch], encodings)
                if self.shard and self.num_read - saved >= self.shard:
                    self._save()
                    saved = self.num_read
            for writer in self.writers.values():
                writer.close()
        finally:
            for writer in self.writers.values():
                writer.abandon()

    def counts(self, rejected_before: Mapping[str, int]) -> dict[str, Any]:
        """The manifest's counts."""
        by_category = {s: self._counts_by(s, lambda kind: kind.category, _forget_first) for s in self.writers}
        rejected = Counter(rejected_before) + self.rejected
        about = {"vocab_size": self.tokenizer.size, "counts": by_category, "rejected": dict(rejected)}
        if self.labelled:
            about["labels"] = {
                split: {label: n for (s, label), n in sorted(self.labels.items()) if s == split}
                for split in self.writers
            }
        if self.topics:
            about["topics"] = {s: self._counts_by(s, lambda kind: kind.topic, str) for s in self.writers}
        return about | ({"token_labels": self.names} if self.labelled == "tokens" else {})

    def save_splits(self) -> None:
        """Both splits as a ``DatasetDict`` on disk."""
        files = {split: w.files for split, w in self.writers.items()}
        if self.shard:
            _adopt(self.folder, files, self.fingerprint)
            return
        from datasets import Dataset, DatasetDict

        splits = {split: Dataset.from_file(str(file)) for split, (file,) in files.items()}
        with _quiet():
            DatasetDict(splits).save_to_disk(self.folder)
        shutil.rmtree(self.folder / "rows")

    def _add(self, batch: list[tuple[str, Document]], encodings: Iterable[_Encoding]) -> None:
        of_tokens, number = self.labelled == "tokens", sum(self.documents.values())
        end = np.int32(self.tokenizer.end_of_text)
        rows: dict[tuple[str, _Kind], list[_Encoded]] = {}
        for (split, document), (ids, offsets) in zip(batch, encodings, strict=True):
            if reason := _reason_to_reject(split, document):
                self.rejected[reason] += 1
                continue
            kind = _Kind(document.category, document.topic)
            labels = token_labels(document, offsets, self.names) if of_tokens else []
            ended = np.append(ids, end)
            rows.setdefault((split, kind), []).append(_Encoded(number, ended, document.label, labels))
            self.documents[split, kind] += 1
            if of_tokens:
                self.labels.update((split, self.names[code]) for code in labels)
            elif self.labelled:
                self.labels[split, document.label] += 1
            number += 1
        for (split, kind), found in rows.items():
            self.writers[split].add(kind, found)
        self.num_read += len(batch)

    def _encoded(self, batches: Iterable[_Batch], encoders: Encoders) -> Iterator[tuple[_Batch, Iterable[_Encoding]]]:
        """Batches with the ids of each text and, where tokens have labels, the tokens' places in it."""
        if self.labelled != "tokens":
            batches, again = tee(batches)  # encoders read a few ahead
            for batch, ids in zip(batches, encoders([d.text for d, _ in batch] for batch in again), strict=True):
                yield batch, ((of_text, []) for of_text in ids)
            return
        tokenizer = self.tokenizer.backend()
        for batch in batches:
            texts = [document.text for document, _ in batch]
            encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
            yield batch, [(np.array(encoding.ids, np.int32), encoding.offsets) for encoding in encodings]

    def _counts_by(self, split: str, name: Callable[[_Kind], str], order: Callable[[str], Any]) -> dict[str, Any]:
        writer, found = self.writers[split], [kind for s, kind in self.documents if s == split]
        return {
            word: {
                "documents": sum(self.documents[split, kind] for kind in found if name(kind) == word),
                "rows": sum(writer.rows[kind] for kind in found if name(kind) == word),
                "tokens": sum(writer.tokens[kind] for kind in found if name(kind) == word),
            }
            for word in sorted({name(kind) for kind in found}, key=order)
        }

    def _save(self) -> None:
        for writer in self.writers.values():
            writer.end_file()
        state = {
            "fingerprint": self.fingerprint,
            "num_read": self.num_read,
            "documents": [[split, *kind, n] for (split, kind), n in self.documents.items()],
            "labels": [[*which, n] for which, n in self.labels.items()],
            "rejected": dict(self.rejected),
            "names": self.names,
            "writers": {split: w.state() for split, w in self.writers.items()},
        }
        written = self.folder / f"{PROGRESS}.new"
        with open(written, "w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        written.replace(self.folder / PROGRESS)

    def _restore(self) -> None:
        """Go on with what is there, if it is ours; files behind the last point are written again."""
        file = self.folder / PROGRESS
        state = json.loads(file.read_text(encoding="utf-8")) if self.shard and file.is_file() else {}
        if state.get("fingerprint") != self.fingerprint:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self.num_read, self.names = state["num_read"], state["names"]
            self.documents = Counter({(s, _Kind(c, t)): n for s, c, t, n in state["documents"]})
            self.labels = Counter({(s, label): n for s, label, n in state.get("labels", [])})
            self.rejected = Counter(state["rejected"])
            for split, writer in self.writers.items():
                writer.restore(state["writers"][split])
        for writer in self.writers.values():
            writer.folder.mkdir(parents=True, exist_ok=True)
            for stale in set(writer.folder.iterdir()) - set(writer.files):
                stale.unlink()


def _adopt(folder: Path, files: dict[str, list[Path]], fingerprint: str) -> None:
    """Make a ``DatasetDict`` on disk of Arrow files that lie in its folders already; nothing is written twice.

    It is what `datasets` writes, less what it reads off the files themselves.
    """
    for split, of_split in files.items():
        state: dict[str, Any] = {
            "_data_files": [{"filename": file.name} for file in of_split],
            "_fingerprint": _hash_of([fingerprint, split])[:16],  # else it would tell the time
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (folder / split / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        (folder / split / "dataset_info.json").write_text("{}", encoding="utf-8")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(files)}), encoding="utf-8")


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _forget_first(category: str) -> tuple[int, str]:
    known = ("adjacent", "retain")
    return (1 + known.index(category) if category in known else 0, category)


def token_labels(document: Document, offsets: list[tuple[int, int]], names: list[str]) -> list[int]:
    """The label of each token, as an index into ``names``, and of end-of-text: a span's if it touches one."""
    for label in (document.label, *(label for _, _, label in document.spans)):
        if label not in names:
            names.append(label)
    if len(names) > _MOST_LABELS:
        raise ConfigError(f"texts have more than {_MOST_LABELS} labels ({names[:3]} ...); use names of domains")
    own = names.index(document.label)
    found = [own] * (len(offsets) + 1)
    for start, stop, label in document.spans:
        for i, (first, last) in enumerate(offsets):
            if first < stop and last > start:
                found[i] = names.index(label)
    return found


def _reason_to_reject(split: str, document: Document) -> str | None:
    if not document.text.strip():
        return "empty text"
    return {"both": "in the test split as well", "neither": "for the test split only"}.get(split)


@contextmanager
def _quiet() -> Iterator[None]:
    """One bar is enough."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()


def _check_counts(counts: dict[str, Any]) -> None:
    for split, categories in counts["counts"].items():
        if not sum(c["rows"] for c in categories.values()):  # one document of no text has no row either
            raise ConfigError(
                f"the {split} split is empty (rejected: {counts['rejected'] or 'nothing'}); give more documents, or "
                "a larger test_fraction for an empty test split"
            )
    train, test = counts["counts"]["train"], counts["counts"]["test"]
    if missing := train.keys() - test.keys():
        raise ConfigError(
            f"the test split has no document of category {sorted(missing)}; raise test_fraction or give more data"
        )


def _batches(documents: Iterable[tuple[Document, str | None]], characters: int | None) -> Iterator[_Batch]:
    """Documents in lots that are tokenised together; a lot ends behind the document that reaches ``characters``."""
    lot, size = [], 0
    for document in documents:
        lot.append(document)
        size += len(document[0].text)
        if len(lot) == _BATCH or (characters is not None and size >= characters):
            yield lot
            lot, size = [], 0
    if lot:
        yield lot
