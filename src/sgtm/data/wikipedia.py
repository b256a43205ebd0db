"""Wikipedia: its articles and what ORES says they are about -> forget, adjacent and retain documents.

    sgtm data wikipedia --topics topics.csv --source 20231101.en/ --out data/datasets/wikipedia

A row holds articles of one topic, so losses can be told for any topic, or part of the tree (Culture, Geography).
The corpus is never in memory: page ids are joined with topics first (a few bytes an article), then texts stream by.
Every row of the topics and every article is used or counted under a reason in the manifest.
"""

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sgtm.config import (
    DOMAINS,
    Category,
    ConfigError,
    PrepareConfig,
    WikipediaConfig,
    categories,
    check_domain_name,
    nearest,
)
from sgtm.data.encode import as_arrow, as_numpy
from sgtm.data.ores import RULE, PageTopics, read_topics
from sgtm.data.tokenize import Document, prepare
from sgtm.data.tokenizer import Opener

_BUFFER = 2**20  # bytes of a column that are read at a time, however large its row groups are
_ARTICLES = 256  # that are taken out of a file together
_NOT_TAKEN, _NO_PAGE, _SEEN, _NO_TOPIC = -4, -3, -2, -1
_REASONS = {
    _NO_PAGE: "page id is no number",
    _SEEN: "page seen before",
    _NO_TOPIC: "page has no topic",
    _NOT_TAKEN: "not of retain_share",
}


def prepare_wikipedia(config: PrepareConfig, wikipedia: WikipediaConfig, opener: Opener | None = None) -> Path:
    """Write articles as forget (or domains), adjacent and retain documents; goes on where it was killed.

    Raises:
        ConfigError: besides what ``prepare`` raises: no such files, a column is missing, a topic that is not there (the
            nearest is named), a topic in two categories, or a category without documents enough to split.
    """
    config.check()
    files, revision = article_files(wikipedia.source)
    rule = CategoryRule.of(wikipedia)
    topics = _topics(wikipedia, config.out.parent)
    corpus = Corpus.join(files, topics, rule, config, wikipedia.test_documents, wikipedia.retain_share)
    origin = {
        **{key: str(value) for key, value in asdict(wikipedia).items() if key != "processes"},
        "revision": revision,
        "files": {file.name: file_hash(file) for file in files},
        "topics_file": file_hash(wikipedia.topics),
        "topic_rows": {"in": topics.num_rows, "used": topics.num_used, "rejected": topics.rejected},
        "articles": len(corpus.codes),
        "choice": RULE,
    }
    return prepare(
        corpus.train,
        config,
        origin,
        corpus.test,
        topics=True,
        rejected=corpus.rejected,
        shard=wikipedia.shard,
        processes=wikipedia.processes or os.cpu_count() or 1,
        opener=opener,
    )


@dataclass(frozen=True)
class CategoryRule:
    """Which category a topic belongs to; the longest name that fits decides, retain where none does."""

    names: Mapping[str, Category]  # a topic, or the beginning of several
    domains: tuple[str, ...]

    @classmethod
    def of(cls, wikipedia: WikipediaConfig) -> "CategoryRule":
        """From ``forget`` and ``adjacent``: a bare topic belongs to the domain `forget`, NAME=TOPIC to NAME.

        Raises:
            ConfigError: no forget topic, a name that cannot be one of a domain, or a topic named twice.
        """
        pairs = [_domain_and_topic(word) for word in _words(wikipedia.forget)]
        if not pairs:
            raise ConfigError("forget names no topic; give one, such as STEM.Biology")
        names: dict[str, Category] = {}
        for category, topic in [*pairs, *(("adjacent", _plain(word)) for word in _words(wikipedia.adjacent))]:
            if names.setdefault(topic, category) != category:
                raise ConfigError(f"the topic {topic} cannot be {names[topic]} and {category}; name it once")
        return cls(names, tuple(dict.fromkeys(domain for domain, _ in pairs)))

    def categories_of(self, topics: tuple[str, ...]) -> list[Category]:
        """The category of each topic.

        Raises:
            ConfigError: a name of the rule that is no topic and no beginning of one.
        """
        known = {part for topic in topics for part in _with_parents(topic)}
        for name in self.names:
            if name not in known:
                raise ConfigError(f"no article has the topic {name!r}{nearest(name, known)} (topics: {_some(topics)})")
        return [
            next((self.names[part] for part in _with_parents(topic) if part in self.names), "retain")
            for topic in topics
        ]


def _domain_and_topic(word: str) -> tuple[str, str]:
    domain, equals, topic = word.rpartition("=")
    if equals:
        check_domain_name(domain.strip())
    return domain.strip() or DOMAINS[0], _plain(topic)


def _plain(topic: str) -> str:
    return topic.strip().replace(" ", "_")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _with_parents(topic: str) -> list[str]:
    """A.B.C -> A.B.C, A.B, A."""
    parts = topic.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _some(words: tuple[str, ...], number: int = 70) -> str:
    return ", ".join(words[:number]) + (" ..." if len(words) > number else "")


def _topics(wikipedia: WikipediaConfig, folder: Path) -> PageTopics:
    """The topics of all pages; what DuckDB cannot hold in memory lies beside the output meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".topics-", dir=folder) as scratch:
        return read_topics(wikipedia.topics, wikipedia.wiki, Path(scratch))


@dataclass(frozen=True)
class Corpus:
    """Articles in files, joined with their topics, one side of the split at a time.

    Args:
        codes: (articles,) index of an article's topic, or why it has none (below 0).
        is_test: (articles,).
        topics, categories: of each code.
        rejected: articles that are not used, by reason.
    """

    files: list[Path]
    codes: NDArray[np.int32]
    is_test: NDArray[np.bool_]
    topics: tuple[str, ...]
    categories: list[Category]
    rejected: dict[str, int] = field(default_factory=dict)

    @classmethod
    def join(
        cls,
        files: list[Path],
        topics: PageTopics,
        rule: CategoryRule,
        config: PrepareConfig,
        test_documents: int,
        retain_share: float = 1.0,
    ) -> "Corpus":
        """Read the page ids of all ``files``, and choose the retain articles to take and each category's test articles.

        A smaller share takes some of the training articles of a larger one, and some of its test articles.
        """
        pages = np.concatenate([_page_ids(file) for file in files])
        codes = topics.of(pages)
        codes[pages < 0] = _NO_PAGE
        first = np.zeros(len(pages), bool)
        first[np.unique(pages, return_index=True)[1]] = True
        codes[~first & (pages >= 0)] = _SEEN
        of_topic = rule.categories_of(topics.names)
        is_test = np.zeros(len(pages), bool)
        order = _random_order(pages, config.seed)
        for category in categories(rule.domains):
            of_category = np.array([c == category for c in of_topic])
            members = np.flatnonzero((codes >= 0) & of_category[codes])
            members = members[np.argsort(order[members], kind="stable")]
            expected = category in rule.names.values() or category == "retain"
            size = _test_size(category, len(members), config.test_fraction, test_documents, expected)
            is_test[members[:size]] = True
            for side in (members[:size], members[size:]) if category == "retain" else ():
                codes[side[int(np.ceil(len(side) * retain_share)) :]] = _NOT_TAKEN
        unused = Counter(codes[codes < 0].tolist())
        rejected = {reason: unused[code] for code, reason in _REASONS.items() if unused[code]}
        return cls(files, codes, is_test, topics.names, of_topic, rejected)

    def train(self) -> Iterator[Document]:
        return self._documents((self.codes >= 0) & ~self.is_test)

    def test(self) -> Iterator[Document]:
        return self._documents((self.codes >= 0) & self.is_test)

    def _documents(self, chosen: NDArray[np.bool_]) -> Iterator[Document]:
        """The articles that are chosen, in the order of the files."""
        start = 0
        for file in self.files:
            for batch in _batches(file, ["id", "text"]):
                here = slice(start, start + len(batch))
                start += len(batch)
                if chosen[here].any():
                    found = batch.take(as_arrow(np.flatnonzero(chosen[here])))
                    columns = (
                        found["id"].to_pylist(),
                        found["text"].to_pylist(),
                        self.codes[here][chosen[here]].tolist(),
                    )
                    for page, text, code in zip(*columns, strict=True):
                        yield Document(str(page), self.categories[code], text or "", topic=self.topics[code])


def _test_size(category: Category, number: int, share: float, most: int, expected: bool) -> int:
    """Test documents of a category of ``number`` documents."""
    if not number and not expected:
        return 0
    size = min(most, int(number * share))
    if not size:
        raise ConfigError(
            f"category {category} matches {number} articles, and a share test_fraction={share} of them is none; "
            "give more articles, other topics, or a larger test_fraction"
        )
    return size


def _random_order(pages: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A random number for each page id, which neither its place nor other pages change (SplitMix64)."""
    x = pages.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def article_files(source: str) -> tuple[list[Path], str | None]:
    """Parquet files of a local file or folder, or of NAME:CONFIGURATION on the Hub, and the Hub's revision.

    Raises:
        ConfigError: there are none, or one has no columns ``id`` and ``text``.
    """
    path, revision = Path(source), None
    if not path.exists():
        path, revision = _download(source)
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise ConfigError(f"source={source}: no parquet file below {path}")
    for file in files:
        _check_columns(file)
    return files, revision


def _download(source: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    name, _, configuration = source.partition(":")
    if source.startswith((".", "/", "~")) or source.endswith(".parquet") or name.count("/") != 1:
        raise ConfigError(f"source={source} does not exist; give a parquet file, a folder, or NAME:CONFIGURATION")
    files = f"{configuration or '*'}/*.parquet"
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=[files]))
    except Exception as error:  # the libraries' own, of many kinds
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"source={source} is no local file or folder, and the Hub gave: {said}") from error
    return folder / configuration, folder.name


def _check_columns(file: Path) -> None:
    try:
        names = pq.read_schema(file).names
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{file} is no parquet file: {error}") from error
    if missing := {"id", "text"} - set(names):
        raise ConfigError(f"{file} has no column {sorted(missing)}; it has {names}")


def _batches(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    # pre_buffer would keep all that was read, compressed, until the file is closed.
    with pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table:
        try:
            yield from table.iter_batches(_ARTICLES, columns=columns)
        except OSError as error:  # what pyarrow gives for pages that do not unpack
            raise ConfigError(f"{file} cannot be read to its end: {error}") from error


def _page_ids(file: Path) -> NDArray[np.int64]:
    """(articles,) page ids, -1 where there is none."""
    found = [_numbers(batch["id"]) for batch in _batches(file, ["id"])]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _numbers(ids: Any) -> NDArray[np.int64]:
    text = ids.cast(pa.string())
    is_number = pc.match_substring_regex(text, "^[0-9]{1,18}$")
    numbers = np.full(len(text), -1)
    numbers[as_numpy(pc.indices_nonzero(is_number))] = as_numpy(text.filter(is_number).cast(pa.int64()))
    return numbers


def file_hash(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
