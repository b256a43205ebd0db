"""Training rows that are read as they are needed: shards on disk or on the Hub, of any size, and never all in memory.

Each reader (a process, or a worker of its loader) reads shards of its own, in an order that seed and epoch decide, and
mixes their rows by mode in a bounded buffer. Where it stands is a small dictionary, from which another reader goes on
with the very next row.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from sgtm.config import ConfigError, Stream, StreamConfig
from sgtm.config import labels as label_names
from sgtm.data.labels import modes_of
from sgtm.data.mixture import Use
from sgtm.data.texts import spans_of
from sgtm.data.tinystories import open_columns
from sgtm.data.tokenize import UNLABELED, Document, token_labels

Batch = dict[str, list[Any]]  # columns of some rows
Example = dict[str, Any]
Reader = Callable[[Batch], list[Example]]
_SHARDS = 256  # that a set on disk is cut into
_ROWS = 64  # that are read, and tokenised, at a time


class ModeStream(IterableDataset[Example]):
    """Examples without end: when all shards are read, they are read again in another order.

    A buffer of ``buffer`` rows is filled; each next example is of the mode that is most behind its share of the
    buffer, and drawn at random among the rows of that mode. So any stretch holds each mode in about its share of the
    data nearby, and every row comes once an epoch.

    Args:
        rows: a streaming data set.
        read: what its rows are as training examples: with ``mode``, a code or one for each position.
        buffer: rows that a reader holds at most.
        rank, world: which of the processes this one is; each reads shards of its own.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        read: Reader | None = None,
        buffer: int = 4096,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.rows, self.read, self.buffer, self.seed = rows, read or plain_examples, buffer, seed
        self.rank, self.world = rank, world
        self._restore({})

    def state_dict(self) -> dict[str, Any]:
        """Where this reader stands, its buffer included."""
        return {
            "epoch": self.epoch,
            "place": self.place,
            "inner": self.inner,
            "waiting": list(self.waiting),
            "held": {code: list(examples) for code, examples in self.held.items()},
            "behind": dict(self.behind),
            "num_drawn": self.num_drawn,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        self.epoch: int = state.get("epoch", 0)
        self.place: int = state.get("place", 0)  # in this epoch's order of shards
        self.inner: dict[str, Any] | None = state.get("inner")  # of the shard, which is read up to there
        self.waiting = deque[Example](state.get("waiting", ()))  # read, and not in the buffer yet
        self.held: dict[int, list[Example]] = {code: list(found) for code, found in state.get("held", {}).items()}
        self.behind: dict[int, float] = dict(state.get("behind", {}))  # by how many examples a mode is
        self.num_drawn: int = state.get("num_drawn", 0)

    def __iter__(self) -> Iterator[Example]:
        shards = self._shards()
        while True:
            is_new, before = not (self.place or self.inner or self.held), self.num_drawn
            batches = self._batches(shards)
            while self._fill(batches):
                yield self._draw()
            if is_new and self.num_drawn == before:
                raise ConfigError("the stream has no row to train on; check its source, its columns and its labels")
            self.epoch, self.place, self.inner, self.held = self.epoch + 1, 0, None, {}

    def _shards(self) -> Callable[[int], np.ndarray[Any, Any]]:
        """Epoch -> numbers of the shards that this reader reads, in order."""
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        self.reader, readers = self.rank * workers + number, self.world * workers
        rows = self.rows if self.rows.num_shards >= readers else self.rows.reshard()  # parquet: by groups of rows
        if rows.num_shards < readers:
            raise ConfigError(
                f"the stream has {rows.num_shards} shards for {readers} readers ({self.world} processes of {workers}); "
                "write it as at least as many files, or set a smaller train.arguments.dataloader_num_workers"
            )
        self.sharded = rows

        def of_epoch(epoch: int) -> np.ndarray[Any, Any]:
            order = np.random.default_rng((self.seed, Stream.SHARDS, epoch)).permutation(rows.num_shards)
            return order[self.reader :: readers]

        return of_epoch

    def _batches(self, shards: Callable[[int], np.ndarray[Any, Any]]) -> Iterator[list[Example]]:
        """What is left of this epoch; ``place`` and ``inner`` say how far it is read."""
        order = shards(self.epoch)
        while self.place < len(order):
            shard = self.sharded.shard(self.sharded.num_shards, int(order[self.place]))
            if self.inner is not None:
                shard.load_state_dict(self.inner)
            for batch in shard.iter(_ROWS):
                self.inner = shard.state_dict()
                yield self.read(batch)
            self.place, self.inner = self.place + 1, None

    def _fill(self, batches: Iterator[list[Example]]) -> bool:
        """Fill the buffer as far as this epoch goes; whether there is anything in it."""
        size = sum(map(len, self.held.values()))
        while size < self.buffer:
            if not self.waiting:
                found = next(batches, None)
                if found is None:
                    break
                self.waiting.extend(found)
                continue
            example = self.waiting.popleft()
            self.held.setdefault(int(np.asarray(example.get("mode", 0)).max()), []).append(example)
            size += 1
        return size > 0

    def _draw(self) -> Example:
        size = sum(map(len, self.held.values()))
        for code, examples in self.held.items():
            self.behind[code] = self.behind.get(code, 0.0) + len(examples) / size
        code = max((c for c, examples in self.held.items() if examples), key=lambda c: (self.behind[c], c))
        self.behind[code] -= 1.0
        examples = self.held[code]
        # By the number of the draw: a generator would be one more thing to keep.
        rng = np.random.default_rng((self.seed, Stream.BUFFER, self.reader, self.num_drawn))
        chosen = int(rng.integers(len(examples)))
        examples[chosen], examples[-1] = examples[-1], examples[chosen]
        self.num_drawn += 1
        return examples.pop()


def plain_examples(batch: Batch) -> list[Example]:
    """Rows that are examples already: ``input_ids`` and ``mode``."""
    if missing := [name for name in ("input_ids", "mode") if name not in batch]:
        raise ConfigError(
            f"the stream has no column {missing}; its rows need input_ids and mode, or a ModeStream(read=...)"
        )
    columns = {name: batch[name] for name in ("input_ids", "labels", "mode") if name in batch}
    return [{name: _value(values[i]) for name, values in columns.items()} for i in range(len(batch["input_ids"]))]


def _value(value: Any) -> Any:
    return torch.as_tensor(value) if np.ndim(value) else int(value)


def open_stream(
    config: StreamConfig,
    domains: tuple[str, ...],
    use: Use,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    seed: int,
) -> ModeStream:
    """Rows of ``config.source``, each in the mode of its label, or of its tokens' labels.

    Args:
        use: what the method makes of labels: ``modes``, ``everything`` (default mode) or ``filter`` (what is labelled
            for a domain is left out).
        context: tokens of a row at most; longer documents are cut into rows that overlap by one token.

    Raises:
        ConfigError: no such data or columns, or a method that needs more than labels.
    """
    if use not in ("modes", "everything", "filter"):
        raise ConfigError(f"stream.source: the method needs rows that are prepared ({use}); use sgtm, filter or none")
    rows, columns = open_columns(config.source, config.split, streaming=True)
    if config.tokens not in columns and config.text not in columns:
        raise ConfigError(
            f"{config.source} has no column {config.tokens!r} (stream.tokens) and no {config.text!r} (stream.text); "
            f"it has {sorted(columns)}"
        )
    if use != "everything" and config.label not in columns and config.spans not in columns:
        raise ConfigError(
            f"{config.source} has no column {config.label!r} (stream.label) and no {config.spans!r} (stream.spans); "
            f"it has {sorted(columns)}: label it with `sgtm label`, or see examples/ray_shards.py"
        )
    if isinstance(rows, datasets.Dataset):
        rows = rows.to_iterable_dataset(num_shards=min(len(rows), _SHARDS))
    read = LabelledRows(config, domains, use, tokenizer, context, config.tokens in columns, config.spans in columns)
    return ModeStream(rows, read, config.buffer, seed)


class LabelledRows:
    """Rows of text or tokens, with a label or with labelled spans, as examples."""

    def __init__(
        self,
        config: StreamConfig,
        domains: tuple[str, ...],
        use: Use,
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        are_tokens: bool,
        have_spans: bool,
    ) -> None:
        self.config, self.domains, self.use, self.tokenizer, self.context = config, domains, use, tokenizer, context
        self.are_tokens, self.have_spans = are_tokens, have_spans
        self.names = list(label_names(domains))

    def __call__(self, batch: Batch) -> list[Example]:
        texts = batch[self.config.tokens if self.are_tokens else self.config.text]
        labels = batch.get(self.config.label) or [None] * len(texts)
        spans = batch[self.config.spans] if self.have_spans else [None] * len(texts)
        documents = [
            Document("", "", text or "", label or UNLABELED, spans_of(s, len(text or ""), self.config.source))
            for text, label, s in zip(texts, labels, spans, strict=True)
        ]
        kept = [document for document in documents if document.text and self._is_kept(document)]
        if self.are_tokens:
            found = [(self._ids(d.text), [(i, i + 1) for i in range(len(d.text))]) for d in kept]
        else:
            encodings = self.tokenizer.backend_tokenizer.encode_batch([d.text for d in kept], add_special_tokens=False)
            ended = self.tokenizer.eos_token_id
            found = [(np.append(np.asarray(e.ids, np.int64), ended), e.offsets) for e in encodings]
        return [row for d, (ids, places) in zip(kept, found, strict=True) for row in self._rows(d, ids, places)]

    def _ids(self, tokens: Any) -> np.ndarray[Any, Any]:
        ids, size = np.asarray(tokens), len(self.tokenizer)
        if ids.min() < 0 or ids.max() >= size:
            raise ConfigError(
                f"{self.config.source} has the token id {ids.max() if ids.max() >= size else ids.min()}, but the "
                f"tokenizer of data.path has {size} entries; tokenise the shards with that one"
            )
        return ids

    def _is_kept(self, document: Document) -> bool:
        for label in (document.label, *(label for _, _, label in document.spans)):
            if label not in self.names:
                raise ConfigError(
                    f"{self.config.source} has the label {label!r}; only {self.names} are known: name the domains in "
                    "partition.domains"
                )
        if self.use == "filter" and document.spans:
            raise ConfigError("stream.source: a filter drops documents, and these have labelled spans; use sgtm")
        return self.use != "filter" or document.label not in self.domains

    def _rows(self, document: Document, ids: np.ndarray[Any, Any], places: list[tuple[int, int]]) -> Iterator[Example]:
        """Rows of one document, each overlapping the one before by a token, so that all but the first are predicted."""
        of_tokens = np.array(token_labels(document, places, self.names)[: len(ids)], np.int8)
        for start in range(0, len(ids) - 1, self.context - 1):
            here = slice(start, start + self.context)
            row = torch.as_tensor(ids[here], dtype=torch.int32)
            yield {"input_ids": row, "mode": self._mode(of_tokens[here])}

    def _mode(self, labels: np.ndarray[Any, Any]) -> Any:
        """Of a row; where there are spans, of each position, which is trained as the token that it predicts."""
        if self.use != "modes":
            return 0
        codes = modes_of(labels, self.domains)
        return torch.as_tensor(np.append(codes[1:], codes[-1:])) if self.have_spans else int(codes[0])
