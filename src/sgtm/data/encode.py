"""Texts -> token ids: the tokenizer's own, in parallel, and each word of a text only once."""

import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ids = NDArray[np.int32]
_KNOWN_WORDS = 400_000  # words that each process remembers: about 100 MB
_WORDS = 1000  # new words that are tokenised as one text
# Where a space follows white space, or ends the text, it is no beginning of a word.
_RUN_OF_SPACES = re.compile(r"\s | \Z")


class Encoder:
    """Token ids of texts, without special tokens: what ``tokenizer.encode_batch`` gives, in less time.

    A byte-level BPE of GPT-2's kind cuts every text in front of a space that begins a word, and the tokens of a text
    are those of its parts. So a word, with the space before it and the punctuation behind it, is tokenised once and
    then looked up. Words that are new, texts with runs of spaces and texts for any other tokenizer go to
    ``encode_batch_fast``, on all cores. The ids do not depend on which texts came before.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, bytes] | None = {} if words_stand_alone(tokenizer) else None
        vocabulary = tokenizer.get_vocab()
        self.begins_word = np.zeros(max(vocabulary.values(), default=0) + 1, bool)
        self.begins_word[[i for token, i in vocabulary.items() if token.startswith("Ġ")]] = True  # Ġ: a space's byte

    def __call__(self, texts: list[str]) -> list[Ids]:
        """One array of ids for each text."""
        if self.known is None:
            return self._whole(texts)
        known = self.known
        is_whole = [bool(_RUN_OF_SPACES.search(text)) for text in texts]
        whole = self._whole([text for text, alone in zip(texts, is_whole, strict=True) if alone])
        cut = [text.split(" ") for text, alone in zip(texts, is_whole, strict=True) if not alone]
        new = self._learn([words[1:] for words in cut])
        starts = self._whole([words[0] for words in cut])  # no space before it
        looked_up = (b"".join(map(known.__getitem__, words[1:])) for words in cut)
        joined = [
            np.concatenate([start, np.frombuffer(rest, np.int32)])
            for start, rest in zip(starts, looked_up, strict=True)
        ]
        if len(known) > _KNOWN_WORDS:  # the first, and so the frequent, ones stay
            for word in new:
                del known[word]
        of_whole, of_cut = iter(whole), iter(joined)
        return [next(of_whole if alone else of_cut) for alone in is_whole]

    def _whole(self, texts: list[str]) -> list[Ids]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _learn(self, words: list[list[str]]) -> list[str]:
        """Tokenise the words that are not known yet, many as one text: each begins at the token with its space."""
        assert self.known is not None
        new = list(set(chain.from_iterable(words)).difference(self.known))
        groups = [new[i : i + _WORDS] for i in range(0, len(new), _WORDS)]
        texts = [f" {' '.join(group)}" for group in groups]
        for group, ids in zip(groups, self._whole(texts), strict=True):
            starts = (np.flatnonzero(self.begins_word[ids]) * ids.itemsize).tolist()
            ends, raw = [*starts[1:], ids.nbytes], ids.tobytes()
            self.known.update(zip(group, map(raw.__getitem__, map(slice, starts, ends)), strict=True))
        return new


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
    return bool(is_gpt2 and plain and not said["normalizer"] and model["type"] == "BPE" and not model.get("dropout"))
