"""Held-out passages to make questions of: of the test split alone, and none of their text in training."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from sgtm.config import Category, Stream
from sgtm.data.documents import Ids, digest, documents
from sgtm.data.tokenize import read_manifest
from sgtm.data.tokenizer import load_tokenizer

SPAN = 16  # tokens in a row that no passage shares with a training document
_MIN_WORDS = 6
_CHUNK = 2**20  # training tokens whose spans are looked at together
_COUNTED = 5_000_000  # training tokens of a category whose words are counted, at most
_ODD = np.uint64(0x9E3779B97F4A7C15)
_WORD = re.compile(r"\S+")
_LETTERS = re.compile(r"(?<![\w'’-])[^\W\d_]+(?![\w'’-])")
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Passage:
    """Words of one line of a test document, which is the ``document``-th of its category's."""

    text: str
    document: int

    @property
    def words(self) -> list[tuple[int, int]]:
        """First character and last + 1 of each word, punctuation included."""
        return [m.span() for m in _WORD.finditer(self.text)]


@dataclass
class Corpus:
    """Prepared data as a source of questions.

    Args:
        passages: of each category, of all its documents in turn.
        words: lower-case words of each category's training documents, and how often they stand there.
        left_out: why test documents and passages were not taken, and how many.
    """

    tokenizer: PreTrainedTokenizerBase
    context: int
    passages: dict[Category, list[Passage]]
    words: dict[Category, Counter[str]]
    left_out: Counter[str] = field(default_factory=Counter)

    def num_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each of ``texts``."""
        return [len(e.ids) for e in self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


def read_corpus(path: Path, length: int, number: int, seed: int) -> Corpus:
    """Passages of the test split of the prepared data in ``path``, and the words of its training split.

    A test document that stands in training is left out, and so is a passage that has ``SPAN`` tokens in a row in common
    with a training document.

    Args:
        length: tokens of a passage, at most; in any case three quarters of the data's context.
        number: passages of a category, at most.

    Raises:
        ConfigError: no prepared data there.
    """
    manifest = read_manifest(path)
    data, tokenizer = load_from_disk(path), load_tokenizer(str(path / "tokenizer"))
    packed, context = manifest["settings"]["pack"], manifest["settings"]["context"]
    end: Any = tokenizer.eos_token_id
    test: dict[Category, list[Ids]] = {}
    for category, ids in documents(data["test"], end, packed):
        test.setdefault(category, []).append(ids)
    cutter = _Cutter(tokenizer, min(length, 3 * context // 4))
    found = {
        category: _draw(cutter, of_category, number, np.random.default_rng((seed, Stream.PASSAGES, i)))
        for i, (category, of_category) in enumerate(sorted(test.items()))
    }
    seen, words = _read_training(data["train"], end, packed, tokenizer, _Seen.among(test, found, tokenizer))
    corpus = Corpus(tokenizer, context, {}, words)
    for category in manifest["counts"]["test"]:  # domains first
        if category in found:
            corpus.passages[category] = list(_unseen(found[category], test[category], seen, corpus))
    return corpus


def _draw(cutter: "_Cutter", of_category: list[Ids], number: int, rng: np.random.Generator) -> list[Passage]:
    """One passage of each document, in random order, then a second one of each, and so on."""
    turns: list[list[Passage]] = []
    for i in rng.permutation(len(of_category)).tolist():
        of_document = [Passage(text, i) for text in cutter(of_category[i])]
        for turn, j in enumerate(rng.permutation(len(of_document)).tolist()):
            if turn == len(turns):
                turns.append([])
            turns[turn].append(of_document[j])
        if turns and len(turns[0]) == number:
            break
    return [passage for turn in turns for passage in turn][:number]


@dataclass(frozen=True)
class _Cutter:
    """Cuts a document into passages: runs of whole words of one line."""

    tokenizer: PreTrainedTokenizerBase
    length: int

    def __call__(self, ids: Ids) -> Iterator[str]:
        backend = self.tokenizer.backend_tokenizer
        text: str = backend.decode(ids.tolist(), skip_special_tokens=False)
        for line in text.splitlines():
            words = [m.span() for m in _WORD.finditer(line)]
            starts = np.array([start for start, _ in backend.encode(line, add_special_tokens=False).offsets])
            before = np.searchsorted(starts, [stop for _, stop in words])  # tokens that begin before a word's end
            first = 0
            while len(words) - first >= _MIN_WORDS:
                used = before[first - 1] if first else 0
                last = int(np.searchsorted(before, used + self.length, side="right"))
                if last - first >= _MIN_WORDS:
                    yield line[words[first][0] : words[last - 1][1]]
                first = max(last, first + 1)


@dataclass
class _Seen:
    """Which test documents and spans of passages are looked for in training, and which were found there."""

    documents: set[int]
    spans: Hashes
    found: set[int] = field(default_factory=set)
    found_spans: set[int] = field(default_factory=set)

    @classmethod
    def among(cls, test: dict[Category, list[Ids]], passages: dict[Category, list[Passage]], tokenizer: Any) -> "_Seen":
        """All of ``test`` that ``passages`` come from."""
        looked_for = {digest(test[c][p.document]) for c, of_category in passages.items() for p in of_category}
        spans = [spans_of(tokenizer, p) for of_category in passages.values() for p in of_category]
        return cls(looked_for, np.unique(np.concatenate([*spans, np.empty(0, np.uint64)])))

    def look_at(self, of_training: Ids) -> None:
        """Look for spans in training tokens, documents with end-of-text between them."""
        there = np.unique(span_hashes(of_training))
        self.found_spans |= set(there[np.isin(there, self.spans)].tolist())


def _read_training(
    rows: Dataset, end: int, packed: bool, tokenizer: Any, seen: _Seen
) -> tuple[_Seen, dict[Category, Counter[str]]]:
    """Read every training document once: what of the test split stands there, and the words of each category."""
    words: dict[Category, Counter[str]] = {}
    counted: Counter[Category] = Counter()
    waiting: list[Ids] = []
    size = 0
    for category, ids in documents(rows, end, packed):
        if (number := digest(ids)) in seen.documents:
            seen.found.add(number)
        if counted[category] < _COUNTED:
            counted[category] += len(ids)
            text = tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=False)
            words.setdefault(category, Counter()).update(lower_case_words(text))
        waiting += [ids, np.array([end], np.int32)]
        size += len(ids) + 1
        if size >= _CHUNK:
            seen.look_at(np.concatenate(waiting))
            waiting, size = [], 0
    if waiting:
        seen.look_at(np.concatenate(waiting))
    return seen, words


def _unseen(passages: list[Passage], test: list[Ids], seen: _Seen, corpus: Corpus) -> Iterator[Passage]:
    for passage in passages:
        if digest(test[passage.document]) in seen.found:
            corpus.left_out["of a document that stands in training"] += 1
        elif seen.found_spans & set(spans_of(corpus.tokenizer, passage).tolist()):
            corpus.left_out[f"{SPAN} tokens in a row stand in training"] += 1
        else:
            yield passage


def spans_of(tokenizer: Any, passage: Passage) -> Hashes:
    """Hashes of a passage's runs of ``SPAN`` tokens; its first token depends on what stands before, and is left out."""
    ids = tokenizer.backend_tokenizer.encode(passage.text, add_special_tokens=False).ids
    return span_hashes(np.array(ids[1:], np.int32))


def span_hashes(ids: Ids) -> Hashes:
    """(tokens - SPAN + 1,) a hash of each run of ``SPAN`` tokens: sum_j id_j b^(SPAN - 1 - j) mod 2^64."""
    hashes = np.zeros(max(0, len(ids) - SPAN + 1), np.uint64)
    for j in range(SPAN):
        hashes = hashes * _ODD + ids[j : j + len(hashes)].astype(np.uint64) + np.uint64(1)
    return hashes


def lower_case_words(text: str) -> list[str]:
    """The words of ``text`` that are written in small letters throughout; no parts of others (``don't``, ``x-ray``)."""
    return [word for word in _LETTERS.findall(text) if word.islower()]
