"""Texts -> token ids: the tokenizer's own, in parallel, and each word of a text only once."""

import gc
import json
import os
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, cycle, pairwise
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from signal import SIGKILL
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ids = NDArray[np.int32]
_ID = np.dtype(np.int32)
_KNOWN_PARTS = 400_000  # parts of texts that each process remembers: about 100 MB
_LONGEST = 32  # characters of a part that is remembered: in some scripts a "word" is a paragraph
_BYTE_SPACE = "Ġ"  # what a byte-level BPE writes for a space
_PARTS = 1000  # new parts that are tokenised as one text
_ALONE = {  # what a process has of its own: the other cores have processes too, and memory is not given back
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
_PARAGRAPH = "\n\n"
_FIRST = slice(2, 3)  # the character behind it
_CUT = "\0"  # put between parts
_WHITE = "[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
# Where white space follows white space in another way than between paragraphs, a text is not cut.
_NOT_CUT = rf"{_WHITE}( |{_PARAGRAPH})| (\n|\z)|{_CUT}"
_PUNCTUATION = ".,;:!?)"  # one of them behind a letter or digit, and in front of a space, is a part of its own


class Encoder:
    """Token ids of texts, without special tokens: what ``tokenizer.encode_batch`` gives, in less time.

    A byte-level BPE of GPT-2's kind cuts every text in front of a space that begins a word, and between paragraphs, and
    the tokens of a text are those of its parts. So a part (a word with the space or the end of a paragraph before it)
    is tokenised once and then looked up, once for all its places in a lot of texts; punctuation behind it is looked up
    by itself. Texts with other runs of white space and texts for any other tokenizer go to ``encode_batch_fast``, on
    all cores. The ids do not depend on which texts came before.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.is_cut = words_stand_alone(tokenizer)
        self.known: dict[str, bytes] = {}  # part -> its ids
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values(), default=0) + 1
        self.begins_word = np.zeros(size, bool)
        self.begins_word[[i for token, i in vocabulary.items() if token.startswith(_BYTE_SPACE)]] = True
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
        together = _strings(texts)
        is_whole = pc.match_substring_regex(together, _NOT_CUT)
        of_whole = iter(self._whole(together.filter(is_whole).to_pylist()))
        of_cut = iter(self._cut(together.filter(pc.invert(is_whole))))
        return [next(of_whole if alone else of_cut) for alone in is_whole.to_pylist()]

    def _whole(self, texts: list[str]) -> list[Ids]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _raw(self, texts: list[str]) -> list[bytes]:
        return [ids.tobytes() for ids in self._whole(texts)]

    def _cut(self, texts: pa.LargeStringArray) -> list[Ids]:
        """Of texts that are no more than their parts."""
        marked = texts
        for start in (_PARAGRAPH, " "):
            marked = pc.replace_substring(marked, start, _CUT + start)
        of_text = pc.split_pattern(marked, _CUT)
        parts = of_text.values.dictionary_encode()
        found = self._found(parts.dictionary.to_pylist())
        raw = b"".join(found)
        places = np.cumsum([0, *map(len, found)]) // _ID.itemsize
        of_part = pa.LargeListArray.from_arrays(as_arrow(places), as_arrow(np.frombuffer(raw, _ID)))
        joined = of_part.take(parts.indices)
        return cut_at(as_numpy(joined.values), as_numpy(joined.offsets)[as_numpy(of_text.offsets)].tolist())

    def _found(self, parts: list[str]) -> list[bytes]:
        """The ids of each of ``parts``, which are all different, looked up or new."""
        found = list(map(self.known.get, parts))
        missing = [i for i, ids in enumerate(found) if ids is None]
        for i, ids in zip(missing, self._learn([parts[i] for i in missing]), strict=True):
            found[i] = ids
        return found  # type: ignore[return-value]

    def _learn(self, parts: list[str]) -> list[bytes]:
        """The ids of new parts. While there is room they are remembered, without what begins or ends them."""
        ends, tokenize, raw, known = self.ends, self.tokenizer.model.tokenize, self.raw, self.known
        new: dict[str, bytes] = {}
        found: list[bytes] = []
        others: list[tuple[int, bytes, str, bytes]] = []
        for part in parts:  # half of all time goes here: each part is looked at once
            own, before, after = part, b"", b""
            if part.startswith(_PARAGRAPH) and part[_FIRST].strip() not in self.no_firsts:
                own, before = part[len(_PARAGRAPH) :], self.paragraph
            if own[-1:] in ends and own[-2:-1].isalnum():
                own, after = own[:-1], ends[own[-1]]
            ids = (known.get(own) or new.get(own)) if own is not part else None
            if ids is None and self.is_direct and own.isascii() and _is_word(own.removeprefix(" ")):
                # The model can be given a word at once, and others by way of all that comes before it.
                ids = b"".join([raw[token.id] for token in tokenize(own.replace(" ", _BYTE_SPACE))])
                new[own] = ids
            if ids is None:
                others.append((len(found), before, own, after))
                ids = b""
            found.append(ids if own is part else before + ids + after)
        of_others = self._by_texts(list(dict.fromkeys(own for _, _, own, _ in others)))
        if len(known) + len(parts) <= _KNOWN_PARTS:  # the first, and so the frequent, ones are there
            known.update((own, ids) for own, ids in chain(new.items(), of_others.items()) if len(own) <= _LONGEST)
        for place, before, own, after in others:
            found[place] = before + of_others[own] + after
        return found

    def _by_texts(self, parts: list[str]) -> dict[str, bytes]:
        """The ids of parts by way of the whole tokenizer, many with their spaces as one text."""
        is_spaced = [part.startswith(" ") and not part[-1].isspace() for part in parts]  # nor may spaces run together
        apart = [part for part, spaced in zip(parts, is_spaced, strict=True) if not spaced]
        learnt = dict(zip(apart, self._raw(apart), strict=True))
        together = [part for part, spaced in zip(parts, is_spaced, strict=True) if spaced]
        groups = [together[i : i + _PARTS] for i in range(0, len(together), _PARTS)]
        # Each begins at the token with its space.
        for group, ids in zip(groups, self._whole(["".join(group) for group in groups]), strict=True):
            starts = (np.flatnonzero(self.begins_word[ids]) * ids.itemsize).tolist()
            ends, raw = [*starts[1:], ids.nbytes], ids.tobytes()
            learnt.update(zip(group, map(raw.__getitem__, map(slice, starts, ends)), strict=True))
        return learnt


# What Arrow has for these imports pandas, which takes longer than a thousand texts.
def _strings(texts: list[str]) -> pa.LargeStringArray:
    raw = [text.encode() for text in texts]
    places = np.cumsum([0, *map(len, raw)])
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(places), pa.py_buffer(b"".join(raw)))


def as_arrow(numbers: NDArray[Any]) -> pa.Array:
    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])


def as_numpy(numbers: pa.Array) -> NDArray[Any]:
    kind = np.dtype(f"i{numbers.type.byte_width}")
    start = numbers.offset * kind.itemsize
    return np.frombuffer(numbers.buffers()[1], kind, len(numbers), start) if len(numbers) else np.empty(0, kind)


def cut_at(ids: Ids, places: list[int]) -> list[Ids]:
    """The ids between each place and the next."""
    return [ids[start:stop] for start, stop in pairwise(places)]


def _is_word(text: str) -> bool:
    return text.isalpha() or text.isdigit()


class Encoders:
    """Encoders in processes of their own; with one process, an encoder in this one.

    The processes start at once, and ``load`` gives them the tokenizer. They are programs of their own, where
    `multiprocessing` would run the caller's imports in each.
    """

    def __init__(self, processes: int) -> None:
        self.encoder: Encoder | None = None
        self.workers: list[tuple[Popen[bytes], Connection]] = []
        for _ in range(processes if processes > 1 else 0):
            ours, theirs = Pipe()
            program = [sys.executable, "-m", __spec__.name, str(theirs.fileno())]
            # In a group of its own: Ctrl-C is for the caller.
            worker = Popen(program, stdin=DEVNULL, pass_fds=[theirs.fileno()], env=os.environ | _ALONE, process_group=0)
            theirs.close()  # theirs alone is left: where this process is killed, they see that and end
            self.workers.append((worker, ours))

    def __enter__(self) -> "Encoders":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def load(self, said: str, splits_special: bool = False) -> None:
        """Encode from now on with the tokenizer of ``said``; see ``read_tokenizer``."""
        if not self.workers:
            self.encoder = Encoder(read_tokenizer(said, splits_special))
        for _, pipe in self.workers:
            with self._still_there():
                pipe.send((said, splits_special))

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
            with self._still_there():
                pipe.send(lot)
            waiting.append(pipe)
            if found is not None:
                yield found
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: deque[Connection]) -> list[Ids]:
        with self._still_there():
            ids, stops = waiting.popleft().recv()
        return cut_at(ids, stops)

    @contextmanager
    def _still_there(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError) as error:
            codes = {code for worker, _ in self.workers if (code := _code_of(worker))}
            own = "is the memory full? Use fewer processes" if codes <= {-SIGKILL} else "its error is above"
            raise RuntimeError(f"a process that tokenises has ended ({sorted(codes)}): {own}") from error

    def close(self) -> None:
        """End the processes."""
        for worker, pipe in self.workers:
            pipe.close()
            worker.kill()  # it has nothing to lose, and clearing its memory up takes a while
            worker.wait()


def _code_of(worker: Popen[bytes]) -> int | None:
    """Its exit status, where it has ended or does so in a moment."""
    with suppress(TimeoutExpired):
        return worker.wait(0.2)
    return None


def read_tokenizer(said: str, splits_special: bool = False) -> Tokenizer:
    """A tokenizer as `tokenizers` writes it.

    Args:
        splits_special: special tokens that stand in a text are text (what `tokenizers` does not write).
    """
    tokenizer = Tokenizer.from_str(said)
    tokenizer.encode_special_tokens = splits_special
    return tokenizer


def _work(pipe: Connection) -> None:
    with suppress(EOFError, BrokenPipeError):  # the other end is gone
        encoder = Encoder(read_tokenizer(*pipe.recv()))
        while True:
            found = encoder(pipe.recv())
            # As one array: a thousand take several times longer.
            pipe.send((np.concatenate([*found, np.empty(0, np.int32)]), np.cumsum([0, *map(len, found)]).tolist()))


def words_stand_alone(tokenizer: Tokenizer) -> bool:
    """Whether a text's tokens are those of its words: byte-level BPE with GPT-2's pattern, and nothing that changes or
    joins texts before it."""
    said: dict[str, Any] = json.loads(tokenizer.to_str())
    cut = said["pre_tokenizer"] or {}
    is_gpt2 = cut.get("type") == "ByteLevel" and cut.get("use_regex", True) and not cut.get("add_prefix_space")
    whole = ("lstrip", "rstrip", "single_word")
    plain = not any(token[key] for token in said["added_tokens"] for key in whole) and not any(
        re.search(rf"\s|^{_BYTE_SPACE}", token["content"]) for token in said["added_tokens"]
    )
    model = said["model"]
    plain = plain and not said["truncation"] and not said["padding"]
    return bool(is_gpt2 and plain and not said["normalizer"] and model["type"] == "BPE" and not model.get("dropout"))


if __name__ == "__main__":
    gc.disable()  # nothing here is in a circle
    _work(Connection(int(sys.argv[1])))
