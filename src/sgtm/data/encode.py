"""Texts -> token ids: the tokenizer's own, in parallel, and each word of a text only once."""

import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, cycle, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ids = NDArray[np.int32]
_KNOWN_WORDS = 400_000  # words that each process remembers: about 100 MB
_LONGEST = 32  # characters of a word that is remembered: in some scripts a "word" is a paragraph
_SPACE = "Ġ"  # what a byte-level BPE writes for a space
_WORDS = 1000  # new words that are tokenised as one text
_PARAGRAPH = "\n\n"
# Where white space follows white space in another way than between paragraphs, a text is not cut.
_RUN_OF_SPACES = re.compile(rf"\s |\s{_PARAGRAPH}| \n| \Z")
_RUNS = ("  ", " \n", "\n ", f"\n{_PARAGRAPH}")  # the same, of these two alone
_OTHER_SPACES = "\t\r\v\f\x1c\x1d\x1e\x1f"  # in ASCII
_PUNCTUATION = ".,;:!?)"  # one of them behind a letter or digit, and in front of a space, is a part of its own


class Encoder:
    """Token ids of texts, without special tokens: what ``tokenizer.encode_batch`` gives, in less time.

    A byte-level BPE of GPT-2's kind cuts every text in front of a space that begins a word, and between paragraphs, and
    the tokens of a text are those of its parts. So a word with the space before it, or with the end of a paragraph, is
    tokenised once and then looked up; behind it punctuation is looked up by itself. Texts with other runs of white
    space and texts for any other tokenizer go to ``encode_batch_fast``, on all cores. The ids do not depend on which
    texts came before.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.is_cut = words_stand_alone(tokenizer)
        self.known: dict[str, dict[str, bytes]] = {_SPACE: {}, "": {}}  # what is before a word -> word -> its ids
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values(), default=0) + 1
        self.begins_word = np.zeros(size, bool)
        self.begins_word[[i for token, i in vocabulary.items() if token.startswith(_SPACE)]] = True
        self.raw = [np.int32(i).tobytes() for i in range(size)]
        of_added = tokenizer.get_added_tokens_decoder()
        self.begins_word[list(of_added)] = False
        added = [token.content for token in of_added.values()]
        self.is_direct = not any(content.isalnum() for content in added)  # such a one could be a part of a word
        self.no_firsts = {"", *(content[0] for content in added)}  # in front of one a paragraph ends in another way
        ends = [end for end in _PUNCTUATION if end not in "".join(added)]
        self.ends = dict(zip(ends, self._raw(ends), strict=True))
        self.paragraph = b"".join(self._raw(["\n"])) * len(_PARAGRAPH)

    def __call__(self, texts: list[str]) -> list[Ids]:
        """One array of ids for each text."""
        if not self.is_cut:
            return self._whole(texts)
        is_whole = [_has_runs_of_spaces(text) for text in texts]
        of_whole = iter(self._whole([text for text, alone in zip(texts, is_whole, strict=True) if alone]))
        of_cut = iter(self._cut([text for text, alone in zip(texts, is_whole, strict=True) if not alone]))
        return [next(of_whole if alone else of_cut) for alone in is_whole]

    def _whole(self, texts: list[str]) -> list[Ids]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _raw(self, texts: list[str]) -> list[bytes]:
        return [ids.tobytes() for ids in self._whole(texts)]

    def _cut(self, texts: list[str]) -> list[Ids]:
        """Of texts that are no more than their words."""
        cut = [text.replace(_PARAGRAPH, f" {_PARAGRAPH}").split(" ") for text in texts]
        firsts = self._found([words.pop(0) for words in cut], "")
        raw = self._found(list(chain.from_iterable(cut)), _SPACE)
        stops = np.cumsum([len(words) for words in cut]).tolist()
        rests = (raw[start:stop] for start, stop in zip([0, *stops], stops, strict=False))
        return [np.frombuffer(b"".join((first, *rest)), np.int32) for first, rest in zip(firsts, rests, strict=True)]

    def _found(self, words: list[str], before: str) -> list[bytes]:
        """The ids of each word with ``before`` in front of it, looked up or new."""
        found = list(map(self.known[before].get, words))
        missing = [i for i, ids in enumerate(found) if ids is None]
        learnt = self._learn({words[i] for i in missing}, before)
        for i in missing:
            found[i] = learnt[words[i]]
        return found  # type: ignore[return-value]

    def _learn(self, words: set[str], before: str) -> dict[str, bytes]:
        """The ids of new words. As many as there is room for are remembered, without what begins or ends them."""
        known, learnt = self.known[before], {}
        size = len(_PARAGRAPH)
        begun = [w for w in words if w.startswith(_PARAGRAPH) and w[size : size + 1].strip() not in self.no_firsts]
        if before:
            firsts = self._found([word[size:] for word in begun], "")
            learnt = {word: self.paragraph + first for word, first in zip(begun, firsts, strict=True)}
            words = words.difference(begun)
        ended = {word: word[:-1] for word in words if word[-1:] in self.ends and word[-2:-1].isalnum()}
        new = words.difference(ended).union(ended.values()).difference(known)
        bare = self._tokenise(list(new), before)
        room = _KNOWN_WORDS - sum(map(len, self.known.values()))  # the first, and so the frequent, ones are there
        known.update(islice(((word, ids) for word, ids in bare.items() if len(word) <= _LONGEST), max(0, room)))
        of_end = self.ends
        learnt |= bare
        learnt |= {word: (bare[own] if own in bare else known[own]) + of_end[word[-1]] for word, own in ended.items()}
        return learnt

    def _tokenise(self, words: list[str], before: str) -> dict[str, bytes]:
        """Words of one part, which the model can be given at once, and others by way of all that comes before it."""
        model, raw = self.tokenizer.model, self.raw
        is_one = [self.is_direct and word.isascii() and (word.isalpha() or word.isdigit()) for word in words]
        learnt = {
            word: b"".join([raw[token.id] for token in model.tokenize(before + word)])
            for word, one in zip(words, is_one, strict=True)
            if one
        }
        others = [word for word, one in zip(words, is_one, strict=True) if not one]
        if not before:
            return learnt | dict(zip(others, self._raw(others), strict=True))
        apart = [word for word in others if word.startswith(_PARAGRAPH)]  # without a space before it after all
        learnt |= zip(apart, self._raw(apart), strict=True)
        others = [word for word in others if word not in learnt]
        # Many as one text: each begins at the token with its space.
        groups = [others[i : i + _WORDS] for i in range(0, len(others), _WORDS)]
        for group, ids in zip(groups, self._whole([f" {' '.join(group)}" for group in groups]), strict=True):
            starts = (np.flatnonzero(self.begins_word[ids]) * ids.itemsize).tolist()
            ends, together = [*starts[1:], ids.nbytes], ids.tobytes()
            learnt.update(zip(group, map(together.__getitem__, map(slice, starts, ends)), strict=True))
        return learnt


def _has_runs_of_spaces(text: str) -> bool:
    if text.isascii() and not any(space in text for space in _OTHER_SPACES):  # several times faster
        return any(run in text for run in _RUNS) or text.endswith(" ")
    return bool(_RUN_OF_SPACES.search(text))


class Encoders:
    """Encoders in processes of their own; with one process, an encoder in this one.

    Scripts that prepare data with several need the ``if __name__ == "__main__"`` that `multiprocessing` asks for.
    """

    def __init__(self, tokenizer: Tokenizer, processes: int) -> None:
        self.encoder = Encoder(tokenizer) if processes == 1 else None
        # No fork: threads of Arrow and of the tokenizer are running.
        spawn, said = get_context("spawn"), tokenizer.to_str()
        self.workers: list[tuple[BaseProcess, Connection]] = []
        for _ in range(processes if processes > 1 else 0):
            ours, theirs = spawn.Pipe()
            worker = spawn.Process(target=_work, args=(theirs, said), daemon=True)
            worker.start()
            theirs.close()  # theirs alone is left: where this process is killed, they see that and end
            self.workers.append((worker, ours))

    def __call__(self, lots: Iterable[list[str]]) -> Iterator[list[Ids]]:
        """The ids of each lot of texts, in order; as many lots are read ahead as there are processes."""
        if self.encoder is not None:
            yield from map(self.encoder, lots)
            return
        turns = cycle([pipe for _, pipe in self.workers])
        waiting: deque[Connection] = deque()  # each has one lot: two ends that both write would wait for each other
        for lot in lots:
            found = self._next(waiting) if len(waiting) == len(self.workers) else None
            pipe = next(turns)
            with _still_there():
                pipe.send(lot)
            waiting.append(pipe)
            if found is not None:
                yield found
        while waiting:
            yield self._next(waiting)

    @staticmethod
    def _next(waiting: deque[Connection]) -> list[Ids]:
        with _still_there():
            found: list[Ids] = waiting.popleft().recv()
        return found

    def close(self) -> None:
        """End the processes."""
        for _, pipe in self.workers:
            pipe.close()
        for worker, _ in self.workers:
            worker.join()


@contextmanager
def _still_there() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise RuntimeError("a process that tokenises has ended; is the memory full? Use fewer processes") from error


def _work(pipe: Connection, said: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other cores have processes of their own
    encoder = Encoder(Tokenizer.from_str(said))
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # the other end is gone
        while True:
            pipe.send(encoder(pipe.recv()))


def words_stand_alone(tokenizer: Tokenizer) -> bool:
    """Whether a text's tokens are those of its words: byte-level BPE with GPT-2's pattern, and nothing that changes or
    joins texts before it."""
    said: dict[str, Any] = json.loads(tokenizer.to_str())
    cut = said["pre_tokenizer"] or {}
    is_gpt2 = cut.get("type") == "ByteLevel" and cut.get("use_regex", True) and not cut.get("add_prefix_space")
    whole = ("lstrip", "rstrip", "single_word")
    plain = not any(token[key] for token in said["added_tokens"] for key in whole) and not any(
        re.search(r"\s", token["content"]) for token in said["added_tokens"]
    )
    model = said["model"]
    plain = plain and not said["truncation"] and not said["padding"]
    return bool(is_gpt2 and plain and not said["normalizer"] and model["type"] == "BPE" and not model.get("dropout"))
