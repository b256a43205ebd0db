"""What ORES says that articles are about: rows of ``wikidata_id,page_id,title,source,topic,score`` -> one topic a page.

A page's topic is, of its rows, one without an asterisk (``STEM.Biology``, not the general ``STEM.STEM*``) before one
with, then the one with the highest score, then the first in the file. Spaces in names are written ``_``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgtm.config import ConfigError, nearest
from sgtm.data.encode import as_arrow

COLUMNS = ("wikidata_id", "page_id", "title", "source", "topic", "score")
RULE = "without asterisk first, then the highest score, then the first in the file"
_CHUNK = 2**24  # bytes that are read together
_MEMORY = "512MB"  # that DuckDB may use; the rest goes to disk
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# Only titles hold commas: the first two and the last three of a line's pieces are columns, whatever quotes are there.
_FIELDS = """
SELECT number, len(pieces) AS num_pieces, trim(pieces[1], ' "') AS wikidata_id, trim(pieces[2], ' "') AS page,
       trim(pieces[-3], ' "') AS source, replace(trim(pieces[-2], ' "'), ' ', '_') AS topic,
       trim(pieces[-1], E' "\\r\\n\\t') AS score
FROM (SELECT number, string_split(line, ',') AS pieces FROM lines)
"""
# A table that went through floats has pages like 12.0.
_ROWS = f"""
CREATE TABLE rows AS SELECT
  number, source,
  CASE WHEN num_pieces = 1 AND wikidata_id IN ('', E'\\n', E'\\r\\n') THEN 'empty line'
       WHEN num_pieces < 6 THEN 'fewer than six columns'
       WHEN wikidata_id = 'wikidata_id' AND page = 'page_id' THEN 'a header'
       WHEN NOT regexp_full_match(source, '[a-z0-9_-]+') THEN 'columns out of place'
       WHEN source != $wiki THEN 'another wiki'
       WHEN page = '' THEN 'no page id'
       WHEN NOT regexp_full_match(page, '[0-9]{{1,18}}([.]0)?') THEN 'page id is no number'
       WHEN topic = '' THEN 'no topic'
       WHEN score = '' THEN 'no score'
       WHEN NOT coalesce(try_cast(score AS DOUBLE) BETWEEN 0 AND 1, false) THEN 'score is no number from 0 to 1'
  END AS reason,
  CASE WHEN reason IS NULL THEN try_cast(split_part(page, '.', 1) AS BIGINT) END AS page,
  CASE WHEN reason IS NULL THEN topic END AS topic,
  CASE WHEN reason IS NULL THEN try_cast(score AS DOUBLE) END AS score
FROM ({_FIELDS})
WHERE NOT (number = 0 AND wikidata_id = 'wikidata_id' AND coalesce(page, '') = 'page_id')  -- the header
"""
_TOPICS = """
CREATE TABLE topics AS SELECT page, topic, max(score) AS score, min(number) AS number, count(*) AS copies
FROM rows WHERE reason IS NULL GROUP BY page, topic
"""
_NAMES = """
CREATE TABLE names AS SELECT topic, row_number() OVER (ORDER BY topic) - 1 AS code
FROM (SELECT DISTINCT topic FROM topics)
"""
_REJECTED = """
SELECT reason, count(*) FROM rows WHERE reason IS NOT NULL GROUP BY reason
UNION ALL
SELECT 'topic of a page once more', sum(copies - 1)::BIGINT FROM topics HAVING sum(copies - 1) > 0
ORDER BY 2 DESC, 1
"""
_BEST = """
SELECT page, arg_min(code, {'starred': topic LIKE '%*', 'score': -score, 'number': number}) AS code
FROM topics JOIN names USING (topic) GROUP BY page ORDER BY page
"""


@dataclass(frozen=True)
class PageTopics:
    """The best topic of each page, and what became of the rows: ``num_rows`` = used + all rejected.

    Args:
        pages: (pages,) page ids, rising.
        codes: (pages,) indices into ``names``.
        names: all topics that pages of the wiki have, best or not.
        rejected: rows that were not used, by reason.
    """

    pages: NDArray[np.int64]
    codes: NDArray[np.int32]
    names: tuple[str, ...]
    num_rows: int
    rejected: dict[str, int]

    @property
    def num_used(self) -> int:
        return self.num_rows - sum(self.rejected.values())

    def of(self, pages: NDArray[np.int64]) -> NDArray[np.int32]:
        """(pages,) codes; -1 where a page has no topic."""
        if not len(self.pages):
            return np.full(len(pages), -1, np.int32)
        at = np.minimum(np.searchsorted(self.pages, pages), len(self.pages) - 1)
        return np.where(self.pages[at] == pages, self.codes[at], np.int32(-1))


def read_topics(path: Path, wiki: str, scratch: Path | None = None) -> PageTopics:
    """The best topic of each page of ``wiki``; rows are split, checked and sorted out in DuckDB.

    Args:
        path: the rows; plain, gzip or zstd.
        wiki: the `source` of the rows to use.
        scratch: a folder for what does not fit into memory.

    Raises:
        ConfigError: no such file, a broken archive, another header, or no row of ``wiki``.
    """
    import duckdb

    if not path.is_file():
        raise ConfigError(f"topics={path} is no file; give rows of {','.join(COLUMNS)} (plain, gzip or zstd)")
    database = ":memory:" if scratch is None else str(scratch / "topics.duckdb")
    try:
        with duckdb.connect(database, config={"memory_limit": _MEMORY, "preserve_insertion_order": "false"}) as con:
            return _read(con, path, wiki)
    except RuntimeError as error:
        if "interrupted" not in str(error):
            raise
        raise KeyboardInterrupt from error  # what DuckDB makes of it
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise ConfigError(f"topics={path} cannot be sorted, give more memory or disk space: {error}") from error


def _read(con: Any, path: Path, wiki: str) -> PageTopics:
    errors: list[ConfigError] = []
    con.register("lines", pa.RecordBatchReader.from_batches(_SCHEMA, _lines_or(errors, path)))
    con.execute(_ROWS, {"wiki": wiki})
    if errors:
        raise errors[0]
    con.execute(_TOPICS)
    con.execute(_NAMES)
    ((num_rows,),) = con.execute("SELECT count(*) FROM rows").fetchall()
    rejected: dict[str, int] = dict(con.execute(_REJECTED).fetchall())
    names = tuple(name for (name,) in con.execute("SELECT topic FROM names ORDER BY code").fetchall())
    if not names:
        raise ConfigError(_nothing_of(con, path, wiki, rejected))
    best = con.execute(_BEST).fetchnumpy()
    return PageTopics(best["page"].astype(np.int64), best["code"].astype(np.int32), names, num_rows, rejected)


def _nothing_of(con: Any, path: Path, wiki: str, rejected: dict[str, int]) -> str:
    wikis = con.execute(
        "SELECT source FROM rows WHERE reason = 'another wiki' GROUP BY source ORDER BY count(*) DESC, source LIMIT 10"
    ).fetchall()
    found = [source for (source,) in wikis]
    return (
        f"{path} has no row of wiki={wiki!r} that can be used{nearest(wiki, found)} "
        f"(wikis: {', '.join(found) or 'none'}; rejected: {rejected or 'nothing, it is empty'})"
    )


_SCHEMA = pa.schema({"line": pa.string(), "number": pa.int64()})


def _lines_or(errors: list[ConfigError], path: Path) -> Iterator[pa.RecordBatch]:
    """Lines, or an end and an error in ``errors``: DuckDB would make another error of one that is raised."""
    try:
        yield from _lines(path)
    except ConfigError as error:
        errors.append(error)


def _lines(path: Path) -> Iterator[pa.RecordBatch]:
    """Lines, each with the line break at its end, and their numbers, from 0."""
    number = 0
    for text in _chunks(path):
        if number == 0:
            text = text.removeprefix(b"\xef\xbb\xbf")
            _check_header(path, text)
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
        if not text.endswith(b"\n"):
            ends = np.append(ends, len(text))
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        lines = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(text))
        yield pa.record_batch([lines, as_arrow(np.arange(number, number + len(ends)))], schema=_SCHEMA)
        number += len(ends)


def _chunks(path: Path) -> Iterator[bytes]:
    """Whole lines, some megabytes at a time; bytes that are no text become U+FFFD, and stay in their line."""
    with open(path, "rb") as file:
        kind = next((kind for magic, kind in _MAGIC.items() if file.read(4).startswith(magic) or file.seek(0)), None)
    rest = b""
    try:
        with pa.input_stream(str(path), compression=kind) as stream:
            while chunk := stream.read(_CHUNK):
                lines, newline, rest = (rest + chunk).rpartition(b"\n")
                if newline:
                    yield _text(lines + newline)
        if rest:
            yield _text(rest)
    except OSError as error:
        raise ConfigError(f"topics={path} cannot be read to its end: {error}") from error


def _text(raw: bytes) -> bytes:
    try:
        raw.decode()
    except UnicodeDecodeError:
        raw = raw.decode(errors="replace").encode()
    return raw.replace(b"\0", "�".encode())


def _check_header(path: Path, text: bytes) -> None:
    """A header must name the columns that are expected; a first line that is none has a page id."""
    first = text.partition(b"\n")[0].decode().strip()
    names = tuple(name.strip(' "') for name in first.split(","))
    if names != COLUMNS and set(names) & set(COLUMNS[:2]):
        raise ConfigError(
            f"{path} has the columns {', '.join(names)}; they must be {', '.join(COLUMNS)}, in this order"
        )
