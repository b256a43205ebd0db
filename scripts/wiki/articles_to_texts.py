"""Articles and their topics as one text a row, split by article, and random examples that somebody labelled.

python scripts/wiki/articles_to_texts.py ARTICLES TOPICS OUT [--examples 100 300 600] [--seed 0]

Writes OUT/texts.parquet and OUT/test.parquet (text, category, group) and OUT/texts-examples-N.parquet.
"""

import argparse
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sgtm.config import PrepareConfig, WikipediaConfig
from sgtm.data.ores import read_topics
from sgtm.data.tokenize import Document
from sgtm.data.wikipedia import CategoryRule, Corpus, article_files

_TEST = 0.1  # of the articles of each category, at most as many as the paper keeps
SCHEMA = pa.schema([(name, pa.string()) for name in ("text", "category", "group")])


def write(documents: Iterable[Document], out: Path) -> int:
    """A thousand documents at a time; returns how many there were."""
    number, rest = 0, iter(documents)
    with pq.ParquetWriter(out, SCHEMA) as writer:
        while rows := [{name: getattr(d, name) for name in SCHEMA.names} for d in islice(rest, 1000)]:
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
            number += len(rows)
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("articles")
    parser.add_argument("topics", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--examples", type=int, nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wikipedia = WikipediaConfig(topics=arguments.topics, source=arguments.articles)
    files, _ = article_files(wikipedia.source)
    topics = read_topics(wikipedia.topics, wikipedia.wiki)
    config = PrepareConfig(out=arguments.out, test_fraction=_TEST, seed=arguments.seed)
    corpus = Corpus.join(files, topics, CategoryRule.of(wikipedia), config, wikipedia.test_documents)
    write(corpus.test(), arguments.out / "test.parquet")
    number = write(corpus.train(), arguments.out / "texts.parquet")
    for n in arguments.examples:
        wanted = set(random.Random(arguments.seed).sample(range(number), n))
        shown = (document for i, document in enumerate(corpus.train()) if i in wanted)
        write(shown, arguments.out / f"texts-examples-{n}.parquet")


if __name__ == "__main__":
    main()
