"""Texts in two columns, one language each, as one text a row, and random examples of them that somebody labelled.

python scripts/tinystories/pairs_to_texts.py TRAIN.parquet OUT [--examples 20 50 300] [--seed 0]

Writes OUT.parquet (text, category, group) and OUT-examples-N.parquet.
"""

import argparse
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = {"text": "retain", "text_es": "forget"}
SCHEMA = pa.schema([(name, pa.string()) for name in ("text", "category", "group")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--examples", type=int, nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pairs = pq.ParquetFile(arguments.source)
    number = 2 * pairs.metadata.num_rows
    wanted = {n: set(random.Random(arguments.seed).sample(range(number), n)) for n in arguments.examples}
    shown: dict[int, list[dict[str, str]]] = {n: [] for n in wanted}
    place = 0
    with pq.ParquetWriter(arguments.out.with_suffix(".parquet"), SCHEMA) as writer:
        for batch in pairs.iter_batches(columns=list(COLUMNS)):
            rows = [
                {"text": pair[column], "category": category, "group": pair["text"]}
                for pair in batch.to_pylist()
                for column, category in COLUMNS.items()
            ]
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
            for n, places in wanted.items():
                shown[n] += [row for i, row in enumerate(rows, place) if i in places]
            place += len(rows)
    for n, rows in shown.items():
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), f"{arguments.out}-examples-{n}.parquet")


if __name__ == "__main__":
    main()
