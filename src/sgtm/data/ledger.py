"""What has been translated, and what is being: a SQLite file that a kill at any moment leaves consistent.

It holds no key and no text but translations. A document is known by a hash of its text.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from sgtm.config import ConfigError

_TABLES = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
    name TEXT PRIMARY KEY,
    server_id TEXT UNIQUE,            -- NULL: noted, but the server's answer has not been seen
    mark_id TEXT,                     -- the server's newest batch at the time
    mark_time TEXT,
    documents INTEGER NOT NULL,
    estimated_input INTEGER NOT NULL,
    estimated_output INTEGER NOT NULL,
    input INTEGER,                    -- NULL: its results are not in
    output INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    key TEXT PRIMARY KEY,
    batch TEXT,                       -- the batch that it is in while that is open
    attempts INTEGER NOT NULL DEFAULT 0,
    translation TEXT,
    reason TEXT,                      -- why the last attempt failed
    again INTEGER NOT NULL DEFAULT 1  -- whether another attempt may help
);
CREATE INDEX IF NOT EXISTS documents_of_batch ON documents (batch) WHERE batch IS NOT NULL;
"""
_WAITING = "translation IS NULL AND batch IS NULL AND again AND attempts < :attempts"


@dataclass(frozen=True)
class Tokens:
    """Tokens read and written by the model."""

    input: int = 0
    output: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.input + other.input, self.output + other.output)

    def dollars(self, prices: tuple[float, float]) -> float:
        """Their cost at ``prices``, dollars per million input and output tokens."""
        return (self.input * prices[0] + self.output * prices[1]) / 1e6


class Mark(NamedTuple):
    """A batch at the server, and when that made it by its own clock: what is submitted after is newer."""

    server_id: str
    time: datetime


@dataclass(frozen=True)
class OpenBatch:
    """A batch whose results are not in; without a ``server_id`` it is not known whether the server has it."""

    name: str
    server_id: str | None
    mark: Mark | None
    documents: int


class Outcome(NamedTuple):
    """What became of a document in a batch: a translation, or a reason and whether another attempt may help."""

    translation: str | None
    reason: str | None = None
    again: bool = False
    tokens: Tokens = Tokens()


class Fate(NamedTuple):
    """Where a document stands after all its attempts so far."""

    translation: str | None
    reason: str | None
    attempts: int


class Ledger:
    """Documents and batches of one translated set. Each change is one transaction; one process at a time.

    A batch is noted before it is submitted, gets the server's id after, and is settled with its results, or released
    if the server turns out not to have it. So at any moment every document that may have to be paid for is in an
    open batch.
    """

    def __init__(self, path: Path | str, attempts: int) -> None:
        self._path, self._limit = path, {"attempts": attempts}
        with self._errors():
            self._db = sqlite3.connect(path, timeout=0)
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")  # until closed, or the process is gone
            self._db.executescript(f"BEGIN EXCLUSIVE; {_TABLES} COMMIT")

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def bind(self, settings: Mapping[str, str]) -> None:
        """Keep ``settings``, or see that they are those of earlier runs.

        Raises:
            ConfigError: they differ; one set is made in one way.
        """
        with self._changing() as db:
            known = dict(db.execute("SELECT name, value FROM settings"))
            for name, value in settings.items():
                if known.get(name, value) != value:
                    raise ConfigError(
                        f"{self._path} was begun with {name}={known[name]!r}, not {value!r}; go on with that, or "
                        "choose another --out"
                    )
            db.executemany("INSERT OR IGNORE INTO settings VALUES (?, ?)", settings.items())

    def is_waiting(self, key: str) -> bool:
        """Whether a document is to be submitted: never seen, or failed in a way that another attempt may mend."""
        query = f"SELECT {_WAITING} FROM documents WHERE key = :key"
        found = self._db.execute(query, self._limit | {"key": key}).fetchone()
        return found is None or bool(found[0])

    def num_waiting(self) -> int:
        """Documents that were seen and are to be submitted once more."""
        query = f"SELECT count(*) FROM documents WHERE {_WAITING}"
        return int(self._db.execute(query, self._limit).fetchone()[0])

    def note(self, batch: OpenBatch, keys: Iterable[str], estimate: Tokens) -> None:
        """A batch is about to be submitted."""
        keys, name = list(keys), batch.name
        mark = (batch.mark.server_id, batch.mark.time.isoformat()) if batch.mark else (None, None)
        with self._changing() as db:
            db.execute(
                "INSERT INTO batches (name, mark_id, mark_time, documents, estimated_input, estimated_output) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (name, *mark, batch.documents, estimate.input, estimate.output),
            )
            db.executemany("INSERT OR IGNORE INTO documents (key) VALUES (?)", ((key,) for key in keys))
            db.executemany("UPDATE documents SET batch = ? WHERE key = ?", ((name, key) for key in keys))

    def submitted(self, name: str, server_id: str) -> None:
        """The server has the batch, and calls it ``server_id``."""
        with self._changing() as db:
            db.execute("UPDATE batches SET server_id = ? WHERE name = ?", (server_id, name))

    def release(self, name: str) -> None:
        """The server does not have the batch: its documents wait again."""
        with self._changing() as db:
            db.execute("UPDATE documents SET batch = NULL WHERE batch = ?", (name,))
            db.execute("DELETE FROM batches WHERE name = ?", (name,))

    def settle(self, name: str, outcomes: Mapping[str, Outcome]) -> None:
        """The batch's results are in. Documents without an outcome count as missing; outcomes of others are ignored."""
        tokens = sum((o.tokens for o in outcomes.values()), Tokens())
        rows = [(o.translation, o.reason, o.again, key, name) for key, o in outcomes.items()]
        with self._changing() as db:
            db.execute("UPDATE batches SET input = ?, output = ? WHERE name = ?", (tokens.input, tokens.output, name))
            db.execute(
                "UPDATE documents SET attempts = attempts + 1, reason = 'missing', again = 1 WHERE batch = ?", (name,)
            )
            db.executemany(
                "UPDATE documents SET translation = ?, reason = ?, again = ? WHERE key = ? AND batch = ?", rows
            )
            db.execute("UPDATE documents SET batch = NULL WHERE batch = ?", (name,))

    def retry_failures(self) -> None:
        """All failed documents wait again, as if never tried."""
        with self._changing() as db:
            db.execute("UPDATE documents SET attempts = 0, again = 1 WHERE translation IS NULL AND batch IS NULL")

    def open_batches(self) -> list[OpenBatch]:
        """Noted or submitted, and not settled."""
        query = "SELECT name, server_id, mark_id, mark_time, documents FROM batches WHERE input IS NULL"
        return [
            OpenBatch(name, server_id, Mark(mark, datetime.fromisoformat(time)) if mark else None, documents)
            for name, server_id, mark, time, documents in self._db.execute(query)
        ]

    def server_ids(self) -> set[str]:
        """Of all batches that are known to be on the server."""
        return {row[0] for row in self._db.execute("SELECT server_id FROM batches WHERE server_id IS NOT NULL")}

    def spent(self) -> Tokens:
        """What the results so far took."""
        return self._tokens("input, output", "input IS NOT NULL")

    def estimated(self, settled: bool) -> Tokens:
        """The estimates of the batches that are settled, or of those that are open."""
        return self._tokens("estimated_input, estimated_output", f"input IS {'NOT ' if settled else ''}NULL")

    def fates(self, keys: Iterable[str]) -> dict[str, Fate]:
        """Where documents stand; those never submitted are left out."""
        keys = list(keys)
        places = ", ".join("?" * len(keys))
        query = f"SELECT key, translation, reason, attempts FROM documents WHERE key IN ({places})"
        return {key: Fate(*rest) for key, *rest in self._db.execute(query, keys)}

    def _tokens(self, columns: str, where: str) -> Tokens:
        first, second = columns.split(", ")
        query = f"SELECT coalesce(sum({first}), 0), coalesce(sum({second}), 0) FROM batches WHERE {where}"
        return Tokens(*self._db.execute(query).fetchone())

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is on disk afterwards, or after any error nothing of it."""
        with self._errors(), self._db:
            yield self._db

    @contextmanager
    def _errors(self) -> Iterator[Any]:
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                remedy = "another run is using it; wait until it ends"
            elif "not a database" in str(error):
                remedy = "choose another --out"
            else:
                remedy = "make room, or mend that; the same command goes on from it"
            raise ConfigError(f"{self._path}: {error}; {remedy}") from error
