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

with atheris.instrument_imports(include=["sgtm", "yaml", "json"]):
    from sgtm.config import ConfigError, RunConfig, build, dump, load
    from sgtm.data.texts import _spans
    from sgtm.plot.records import read_run
    from sgtm.train.checkpoints import SEAL, fault_of

FOLDER = Path(tempfile.mkdtemp())
dump(build(RunConfig, {}, "x"), FOLDER / "config.yaml")


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


def spans(content: bytes) -> None:
    """Labels of parts of a text."""
    _spans(content.decode(errors="surrogateescape"), 100, "row 0")


TARGETS: dict[str, Callable[[bytes], None]] = {f.__name__: f for f in (config, records, seal, spans)}


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
