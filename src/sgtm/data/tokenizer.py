"""Tokenizers by their names, and what preparing texts needs of one."""

import gc
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sgtm.config import ConfigError

if TYPE_CHECKING:  # it takes a second, and what is tokenised need not wait for it
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
_TOKENIZER_SAMPLE = 200_000  # documents that a new tokenizer is trained on, at most


def load_tokenizer(name: str, texts: Callable[[], Iterable[str]] | None = None) -> "PreTrainedTokenizerBase":
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
    try:
        tokenizer = _open_tokenizer(name)
    except Exception as error:  # the libraries' own, of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"tokenizer={name!r} is neither a folder with a sound tokenizer.json nor reachable on the Hub ({reason}); "
            "give a local folder, or train:VOCAB"
        ) from error
    if tokenizer.eos_token_id is None or not tokenizer.is_fast:
        raise ConfigError(f"tokenizer={name!r} must be a fast tokenizer with an end-of-text token (eos_token)")
    tokenizer.backend_tokenizer.no_truncation()  # documents are tokenised whole, whatever it was used for before
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _open_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    path = Path(name)
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file() and not (file.parent / "tokenizer_config.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=END_OF_TEXT)
    from transformers import AutoTokenizer

    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(file.parent) if file.is_file() else name)
    return found


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of everything that decides which ids a text gets."""
    return _sha256(tokenizer.backend_tokenizer.to_str())


def _sha256(said: str) -> str:
    return hashlib.sha256(said.encode()).hexdigest()


def _train_tokenizer(vocab_size: int, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

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


class SavedTokenizer(NamedTuple):
    """What preparing texts needs of a tokenizer, without transformers.

    Args:
        said: all that decides which ids a text gets, as `tokenizers` reads it.
        end_of_text: the id of the end-of-text token.
        size: entries of the vocabulary.
        files: what ``save_pretrained`` writes, by name.
        splits_special: special tokens that stand in a text are text (``split_special_tokens``).
    """

    said: str
    end_of_text: int
    size: int
    files: dict[str, bytes]
    splits_special: bool = False

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "SavedTokenizer":
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            files = {str(f.relative_to(folder)): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()}
        backend = tokenizer.backend_tokenizer
        splits = bool(backend.encode_special_tokens)
        return cls(backend.to_str(), int(tokenizer.eos_token_id), len(tokenizer), files, splits)

    @property
    def sha256(self) -> str:
        """As ``tokenizer_hash``."""
        return _sha256(self.said)

    def backend(self) -> Tokenizer:
        from sgtm.data.encode import read_tokenizer  # which imports more than opening one needs

        return read_tokenizer(self.said, self.splits_special)

    def save(self, folder: Path) -> None:
        """Write ``folder``, which transformers reads."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


class Opener:
    """Opens a tokenizer; ``early``, in a process of its own, while this one does other things.

    transformers takes a second to be imported, which such a process alone needs.
    """

    def __init__(self, name: str, early: bool = False) -> None:
        self.name = name
        self.process: Popen[bytes] | None = None
        if early and "transformers" not in sys.modules and not name.startswith("train:"):
            self.pipe, theirs = Pipe()
            program = [sys.executable, "-m", __spec__.name, str(theirs.fileno()), name]
            # In a group of its own: Ctrl-C is for the caller.
            self.process = Popen(
                program, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, pass_fds=[theirs.fileno()], process_group=0
            )
            theirs.close()

    def __enter__(self) -> "Opener":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.pipe.close()
            self.process.kill()
            self.process.wait()

    def tokenizer(self, texts: Callable[[], Iterable[str]] | None = None) -> SavedTokenizer:
        """As ``load_tokenizer``."""
        found: tuple[Any, ...] | str = ()
        with suppress(EOFError, ConnectionError):  # where that process is gone, it is opened here
            found = self.pipe.recv() if self.process is not None else ()
        if isinstance(found, str):
            raise ConfigError(found)
        return SavedTokenizer(*found) if found else SavedTokenizer.of(load_tokenizer(self.name, texts))


def _work(pipe: Connection, name: str) -> None:
    sys.modules["torch"] = None  # type: ignore[assignment]  # transformers does without, and it takes half of the time
    try:
        pipe.send(tuple(SavedTokenizer.of(load_tokenizer(name))))
    except ConfigError as error:
        pipe.send(str(error))


if __name__ == "__main__":
    gc.disable()  # importing is all that it does
    _work(Connection(int(sys.argv[1])), sys.argv[2])
