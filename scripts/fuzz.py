"""Coverage-guided fuzzing of what reads files from outside; no part of the tests, which fuzz too.

    pip install atheris
    python scripts/fuzz.py config -max_total_time=600      # any option of libFuzzer; CORPUS folders come last

A ConfigError is an answer; any other error, and whatever takes longer than -timeout, is a find and ends the run.
"""

import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

with atheris.instrument_imports(include=["sgtm", "yaml", "json"]):
    from sgtm.config import ConfigError, RunConfig, build, dump, load
    from sgtm.data.encode import Encoder
    from sgtm.data.ores import read_topics
    from sgtm.data.texts import spans_of
    from sgtm.plot.records import read_run
    from sgtm.train.checkpoints import SEAL, fault_of

FOLDER = Path(tempfile.mkdtemp())
TOKENIZER = Tokenizer(models.BPE())
TOKENIZER.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
TRAINER = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
TOKENIZER.train_from_iterator([" ".join(__doc__.split()), __doc__, "  a\n\nthe cat's, 12.\n"] * 20, TRAINER)
dump(build(RunConfig, {}, "x"), FOLDER / "config.yaml")
ENCODER = Encoder(TOKENIZER)


def config(content: bytes) -> None:
    """A run's configuration; what is taken can be written and read again."""
    (FOLDER / "run.yaml").write_bytes(content)
    found = load(FOLDER / "run.yaml")
    dump(found, FOLDER / "again.yaml")
    assert repr(load(FOLDER / "again.yaml")) == repr(found)


def records(content: bytes) -> None:
    """A run's metrics.jsonl, as figures read it."""
    (FOLDER / "metrics.jsonl").write_bytes(content)
    run = read_run(FOLDER)
    run.final("forget", "calibrated")


def seal(content: bytes) -> None:
    """A checkpoint's seal."""
    (FOLDER / SEAL).write_bytes(content)
    fault_of(FOLDER, "run")


def topics(content: bytes) -> None:
    """Rows of topics; all are used or rejected for a reason."""
    (FOLDER / "topics.csv").write_bytes(b"Q1,1,a,enwiki,STEM.Biology,0.5\n" + content)
    found = read_topics(FOLDER / "topics.csv", "enwiki")
    assert found.num_rows == found.num_used + sum(found.rejected.values())


def ids(content: bytes) -> None:
    """Token ids of a text; the tokenizer's own."""
    text = content.decode(errors="replace")
    assert ENCODER([text, text])[1].tolist() == TOKENIZER.encode(text, add_special_tokens=False).ids


def spans(content: bytes) -> None:
    """Labels of parts of a text."""
    spans_of(content.decode(errors="surrogateescape"), 100, "row 0")


TARGETS: dict[str, Callable[[bytes], None]] = {f.__name__: f for f in (config, records, seal, topics, ids, spans)}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python scripts/fuzz.py {{{','.join(TARGETS)}}} [libFuzzer's options]")
    target = TARGETS[sys.argv[1]]

    def one(content: bytes) -> None:
        with suppress(ConfigError):
            target(content)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
