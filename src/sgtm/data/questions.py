"""Questions about held-out passages, with answers to choose from by log-probability.

``cloze``: how a passage goes on; the other answers are how others of its category do. ``swapped``: a passage, or the
same with two neighbouring words exchanged. ``replaced``: a passage, or the same with one word replaced by another of
its frequency. ``fact``: the word that comes next, a word of the category's own, or others of its frequency.

Frequency is told in classes: words that are half as, or twice as frequent are in the next class (Zipf's law makes
such classes about equally heavy). So the answers cannot be told apart by how common they are.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sgtm.config import Category
from sgtm.data.passages import Passage

Kind = Literal["cloze", "swapped", "replaced", "fact"]
_ENDING = 8  # words of a continuation, at most; at most half of the passage
_BEFORE = 3  # words that stand before what is asked for, at least
_MIN_COUNT = 8  # occurrences in training of a word that is asked for or offered
_OWN = 4.0  # times as frequent in its category as elsewhere: a word of the category's own
_FUNCTION_WORDS = 1e-3  # of a category's words: more frequent ones say nothing of what it is about (rank 100 or so);
_FEW_WORDS = 4.0  # but where the language has few words, times the share that each had if all had the same
_CORE = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Question:
    """``context`` is followed by a space and one of ``choices``, of which the ``answer``-th is true."""

    context: str
    choices: tuple[str, ...]
    answer: int
    document: int


@dataclass(frozen=True)
class Vocabulary:
    """Words that may be asked for, by frequency class."""

    classes: Mapping[int, Sequence[str]]
    class_of: Mapping[str, int]

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> "Vocabulary":
        """Of all words that are frequent enough."""
        class_of = {w: int(np.log2(n)) for w, n in sorted(counts.items()) if n >= _MIN_COUNT}
        classes: dict[int, list[str]] = {}
        for word, number in class_of.items():
            classes.setdefault(number, []).append(word)
        return cls(classes, class_of)

    def others(self, word: str, number: int, taken: Iterable[str], rng: np.random.Generator) -> list[str]:
        """``number`` other words of the class of ``word`` that are not ``taken``; fewer where there are no more."""
        left_out = {word, *taken}
        found = [w for w in self.classes[self.class_of[word]] if w not in left_out]
        return [found[i] for i in rng.permutation(len(found))[:number]]


def own_words(words: Mapping[Category, Counter[str]], category: Category) -> dict[str, int]:
    """Content words that stand in ``category`` ``_OWN`` times as often as elsewhere (in equally much text)."""
    own = words[category]
    others = [counts for name, counts in words.items() if name != category]
    size, size_elsewhere = own.total(), sum(c.total() for c in others)
    most = max(_FUNCTION_WORDS, _FEW_WORDS / max(1, len(own))) * size
    found = {}
    for word, count in own.items():
        elsewhere = sum(c[word] for c in others) / max(1, size_elsewhere)
        if count <= most and count >= _OWN * elsewhere * size:
            found[word] = count
    return found


def questions(
    kind: Kind,
    passages: Sequence[Passage],
    words: Mapping[Category, Counter[str]],
    category: Category,
    choices: int,
    rng: np.random.Generator,
) -> Iterator[Question]:
    """A question of ``kind`` about each passage that allows for one.

    Args:
        passages: of ``category``.
        words: lower-case words of the training documents of every category.
        choices: answers of ``cloze`` and ``fact``; the others have two.
    """
    make: Callable[[Passage, np.random.Generator], _Found | None]
    if kind == "cloze":
        make = _Cloze(passages, choices)
    elif kind == "fact":
        make = _Fact(Vocabulary.of(own_words(words, category)), choices)
    else:
        make = _swapped if kind == "swapped" else _Replaced(Vocabulary.of(words[category]))
    for passage in passages:
        found = make(passage, rng)
        if found is not None:
            yield _shuffled(*found, passage.document, rng)


_Found = tuple[str, str, list[str]]  # context, true answer, other answers


def _shuffled(context: str, true: str, others: list[str], document: int, rng: np.random.Generator) -> Question:
    answers = [true, *others]
    order = rng.permutation(len(answers)).tolist()
    return Question(context, tuple(answers[i] for i in order), order.index(0), document)


class _Cloze:
    """How passages end: the true ending against endings, equally long in words, of passages of other documents."""

    def __init__(self, passages: Sequence[Passage], choices: int) -> None:
        self.others = choices - 1
        self.endings: dict[int, list[tuple[str, int]]] = {}
        for passage in passages:
            if (cut := self._cut(passage)) is not None:
                self.endings.setdefault(cut[2], []).append((cut[1], passage.document))

    @staticmethod
    def _cut(passage: Passage) -> tuple[str, str, int] | None:
        """Beginning, ending, and the ending's number of words."""
        words = passage.words
        number = min(_ENDING, len(words) // 2)
        start = words[-number][0]
        before = passage.text[: start - 1]
        if passage.text[start - 1] != " " or before != before.rstrip():
            return None
        return before, passage.text[start:], number

    def __call__(self, passage: Passage, rng: np.random.Generator) -> _Found | None:
        if (cut := self._cut(passage)) is None:
            return None
        before, ending, number = cut
        pool = sorted({e for e, document in self.endings[number] if document != passage.document} - {ending})
        if len(pool) < self.others:
            return None
        return before, ending, [pool[i] for i in rng.choice(len(pool), self.others, replace=False)]


def _swapped(passage: Passage, rng: np.random.Generator) -> _Found | None:
    """Two neighbouring words exchanged: both in small letters and with no punctuation in or between them."""
    text, words = passage.text, passage.words
    plain = [text[a:b] if _CORE.fullmatch(text[a:b]) and text[a:b].islower() else "" for a, b in words]
    places = [
        i
        for i in range(_BEFORE, len(words) - 1)
        if plain[i] and plain[i + 1] and plain[i] != plain[i + 1] and _spaced(text, words, i, i + 1)
    ]
    if not places:
        return None
    i = places[rng.integers(len(places))]
    rest = text[words[i + 1][1] :]
    return text[: words[i][0] - 1], f"{plain[i]} {plain[i + 1]}{rest}", [f"{plain[i + 1]} {plain[i]}{rest}"]


@dataclass(frozen=True)
class _Replaced:
    """One word, in small letters, replaced by another of its frequency class."""

    vocabulary: Vocabulary

    def __call__(self, passage: Passage, rng: np.random.Generator) -> _Found | None:
        text, words = passage.text, passage.words
        places = _places(passage, self.vocabulary, ())
        if not places:
            return None
        i, word = places[rng.integers(len(places))]
        others = self.vocabulary.others(word, 1, (), rng)
        start, rest = words[i][0], text[words[i][0] + len(word) :]
        return (text[: start - 1], word + rest, [other + rest for other in others]) if others else None


@dataclass(frozen=True)
class _Fact:
    """The next word, of the vocabulary and not said before; the others stand nowhere in the passage."""

    vocabulary: Vocabulary
    choices: int

    def __call__(self, passage: Passage, rng: np.random.Generator) -> _Found | None:
        said = [word.lower() for word in _CORE.findall(passage.text)]
        repeated = {word for word, times in Counter(said).items() if times > 1}
        places = _places(passage, self.vocabulary, repeated)
        for i, word in (places[j] for j in rng.permutation(len(places))):
            others = self.vocabulary.others(word, self.choices - 1, said, rng)
            if len(others) == self.choices - 1:
                return passage.text[: passage.words[i][0] - 1], word, others
        return None


def _places(passage: Passage, vocabulary: Vocabulary, left_out: Iterable[str]) -> list[tuple[int, str]]:
    """Numbers of words that begin with a word of ``vocabulary``, followed by nothing but punctuation."""
    text, words, left_out = passage.text, passage.words, set(left_out)
    found = []
    for i in range(_BEFORE, len(words)):
        match = _CORE.match(text, *words[i])
        word = match[0] if match else ""
        ends = not any(c.isalnum() for c in text[words[i][0] + len(word) : words[i][1]])
        if word in vocabulary.class_of and word not in left_out and ends and _spaced(text, words, i):
            found.append((i, word))
    return found


def _spaced(text: str, words: Sequence[tuple[int, int]], *numbers: int) -> bool:
    """Whether one space, and nothing else, stands before each of these words."""
    return all(words[i - 1][1] == words[i][0] - 1 and text[words[i][0] - 1] == " " for i in numbers)
