"""Preparing Wikipedia: `sgtm data wikipedia` against a straightforward version with pandas loops, on made-up articles.

    python benchmarks/wikipedia.py [--documents 20000 60000 200000] [--tokenizer gpt2] [--rounds 1]

Articles and topics have the real form (parquet with id, url, title, text; rows of wikidata_id,page_id,title,source,
topic,score, of two wikis). Words are the tokenizer's own and, the rare ones, two or three of its tokens; their
frequencies are fitted to real articles (of 7.5 M words with their punctuation 7 % are different, 63 % are among the
1,000 and 87 % among the 30,000 most frequent; real articles: 7 %, 57 %, 87 %).
Each version runs in a process of its own, in turns; memory is what it and its processes hold, looked at ten times a
second (RSS; VmHWM of the first process if that is more). The reference does what a
first version would: the topics as a table, a loop over its rows, a loop over the articles, the tokenizer on batches of
1000 texts (it works on all cores), lists of chunks, `Dataset.from_dict(...).save_to_disk`.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

CONTEXT, TEST_SHARE, TEST_DOCUMENTS = 1024, 0.1, 5000
FORGET = {"STEM.Biology"}
ADJACENT = {"STEM.Earth_and_environment", "STEM.Chemistry", "STEM.Medicine_&_Health"}
TOPICS = [
    *("STEM.Biology", "STEM.Earth and environment", "STEM.Chemistry", "STEM.Medicine & Health", "STEM.STEM*"),
    *("Culture.Sports", "Culture.Biography.Biography*", "Geography.Geographical", "History and Society.History"),
]
SHARES = [0.05, 0.02, 0.02, 0.02, 0.11, 0.2, 0.28, 0.2, 0.1]
ROWS_A_PAGE = 4
VERSIONS = ("reference", "ours")
NUM_WORDS, EXPONENT, SHIFT = 1_000_000, 1.2, 10  # of the law of frequencies, 1 / (rank + SHIFT) ** EXPONENT
PUNCTUATION = [0.9, 0.06, 0.04]  # shares of nothing, comma, full stop behind a word
MEAN_WORDS, SIGMA = 440, 1.0  # log-normal: a median of 270 words


def make(folder: Path, documents: int, tokenizer: str, seed: int = 0) -> None:
    """Write ``documents`` articles and their topics into ``folder``."""
    rng = np.random.default_rng(seed)
    vocabulary = words(rng, tokenizer)
    chances = 1 / (np.arange(1, NUM_WORDS + 1) + SHIFT) ** EXPONENT
    sums = np.cumsum(chances / chances.sum())
    schema = pa.schema([(name, pa.string()) for name in ("id", "url", "title", "text")])
    topics = open(folder / "topics.csv", "w", encoding="utf-8")  # noqa: SIM115
    with topics, pq.ParquetWriter(folder / "articles.parquet", schema, compression="zstd") as writer:
        for start in range(0, documents, 1000):
            pages = range(start + 12, min(start + 1000, documents) + 12)
            lengths = rng.lognormal(np.log(MEAN_WORDS) - SIGMA**2 / 2, SIGMA, len(pages)).astype(int) + 5
            ranks = np.minimum(np.searchsorted(sums, rng.random(lengths.sum())), NUM_WORDS - 1)
            drawn = vocabulary[rng.choice(3, len(ranks), p=PUNCTUATION), ranks]
            texts = [article(found) for found in np.split(drawn, np.cumsum(lengths)[:-1])]
            titles = [text[:20].replace("\n", " ") for text in texts]
            ids = [str(page) for page in pages]
            urls = [f"https://en.wikipedia.org/wiki/{page}" for page in pages]
            writer.write_table(pa.table([ids, urls, titles, texts], schema=schema), row_group_size=1000)
            topics.writelines(topic_rows(rng, pages, titles))


def words(rng: np.random.Generator, tokenizer: str) -> np.ndarray:
    """(3, words), the most frequent ones first: as they are, with a comma, with a full stop."""
    from sgtm.data.tokenizer import load_tokenizer

    vocabulary = load_tokenizer(tokenizer).get_vocab()
    tokens = [token for token in sorted(vocabulary, key=vocabulary.__getitem__) if token.isascii() or token[0] == "Ġ"]
    whole = [token[1:] for token in tokens if token[0] == "Ġ" and token[1:].isascii() and token[1:].isalpha()]
    parts = [token for token in tokens if token.isascii() and token.isalpha() and token.islower()]
    number = NUM_WORDS - len(whole)
    rare = zip(*(rng.choice(found, number) for found in (whole, parts, ["", *parts[:200]])), strict=True)
    found = [*whole, *("".join(pieces) for pieces in rare)]
    return np.array([[word + end for word in found] for end in ("", ",", ".")], object)


def article(found: np.ndarray) -> str:
    return "\n\n".join(" ".join(found[i : i + 80]) for i in range(0, len(found), 80))


def topic_rows(rng: np.random.Generator, pages: range, titles: list[str]) -> list[str]:
    """Rows of the wiki and, for the same page ids, of another one."""
    rows = []
    for page, title in zip(pages, titles, strict=True):
        for topic, score in zip(rng.choice(TOPICS, ROWS_A_PAGE, p=SHARES), rng.random(ROWS_A_PAGE), strict=True):
            source = "enwiki" if rng.random() < 0.7 else "dewiki"
            rows.append(f'Q{page},{page},"{title}",{source},{topic},{score:.4f}\n')
    return rows


def reference(folder: Path, tokenizer_name: str, out: Path) -> None:
    """The straightforward version."""
    from datasets import Dataset, DatasetDict

    from sgtm.data.tokenizer import load_tokenizer

    columns = ["wikidata_id", "page_id", "title", "source", "topic", "score"]
    rows = pd.read_csv(folder / "topics.csv", names=columns)
    best: dict[int, tuple[bool, float, str]] = {}
    for _, row in rows[rows["source"] == "enwiki"].iterrows():
        found = (not row["topic"].endswith("*"), row["score"], row["topic"].replace(" ", "_"))
        if row["page_id"] not in best or found[:2] > best[row["page_id"]][:2]:
            best[row["page_id"]] = found
    articles = pd.read_parquet(folder / "articles.parquet")
    texts: dict[str, list[str]] = {"forget": [], "adjacent": [], "retain": []}
    for _, row in articles.iterrows():
        if int(row["id"]) in best:
            topic = best[int(row["id"])][2]
            category = "forget" if topic in FORGET else "adjacent" if topic in ADJACENT else "retain"
            texts[category].append(row["text"])
    tokenizer = load_tokenizer(tokenizer_name)
    tokenizer.model_max_length = 10**9  # no warning about long texts
    splits: dict[str, dict[str, list]] = {name: {"input_ids": [], "category": []} for name in ("train", "test")}
    for category, of_category in texts.items():
        size = min(TEST_DOCUMENTS, int(len(of_category) * TEST_SHARE))
        for split, found_texts in (("test", of_category[:size]), ("train", of_category[size:])):
            stream: list[int] = []
            for i in range(0, len(found_texts), 1000):
                for ids in tokenizer(found_texts[i : i + 1000])["input_ids"]:
                    stream += [*ids, tokenizer.eos_token_id]
            chunks = [stream[i : i + CONTEXT] for i in range(0, len(stream), CONTEXT)]
            splits[split]["input_ids"] += chunks
            splits[split]["category"] += [category] * len(chunks)
    DatasetDict({name: Dataset.from_dict(columns) for name, columns in splits.items()}).save_to_disk(out)


def program(version: str, folder: Path, tokenizer: str, out: Path) -> list[str]:
    """Ours is run as a user runs it."""
    if version == "reference":
        return [sys.executable, __file__, "--run", str(folder), tokenizer, str(out)]
    words = ["--topics", folder / "topics.csv", "--source", folder / "articles.parquet", "--out", out]
    return [sys.executable, "-m", "sgtm.cli", "data", "wikipedia", *map(str, words), "--tokenizer", tokenizer]


def measure(version: str, folder: Path, tokenizer: str, out: Path) -> dict[str, float]:
    """Wall and CPU seconds and peak memory (MB) of one version in a process of its own."""
    words = program(version, folder, tokenizer, out)
    start, cpu_before, peak = time.perf_counter(), cpu_of_children(), 0
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None:
        peak = max(peak, sum(map(resident, family(running.pid))), highest(running.pid))
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    if running.returncode:
        raise SystemExit(f"{words} ended with {running.returncode}")
    return {"seconds": seconds, "cpu_seconds": cpu_of_children() - cpu_before, "peak_mb": peak / 2**20}


def cpu_of_children() -> float:
    """Seconds that ended processes used, and those that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def family(pid: int) -> list[int]:
    """A process and those that it started (Linux)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return [pid]
    return [pid, *(other for child in children for other in family(int(child)))]


def resident(pid: int) -> int:
    """Bytes that a process holds in memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def highest(pid: int) -> int:
    """The most bytes that a process has held (Linux)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def tokens_of(out: Path) -> int:
    from datasets import load_from_disk

    data = load_from_disk(out)
    return sum(len(c.flatten()) for split in data.values() for c in split.data.table["input_ids"].chunks)


def compare(documents: int, tokenizer: str, rounds: int, versions: list[str]) -> dict[str, list[dict[str, float]]]:
    """All rounds of all versions, in turns, on the same files."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, documents, tokenizer)
        for turn in range(rounds):
            for version in versions:
                out = folder / f"{version}-{turn}"
                found[version].append(measure(version, folder, tokenizer, out) | {"tokens": tokens_of(out)})
                print(f"{documents:,} documents, {version}: {found[version][-1]}", flush=True)
    return found


def report(results: dict[int, dict[str, list[dict[str, float]]]], out: Path) -> None:
    from sgtm.environment import environment

    columns = ("documents", "version", "seconds", "documents/s", "tokens/s", "CPU seconds", "peak MB", "speed", "CPU")
    table = Table(*columns, caption="speed, CPU: ratio to the reference of the same round (median)")
    for documents, versions in results.items():
        for name, turns in versions.items():
            middle = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
            other = versions.get("reference", turns)
            ratios = [
                statistics.median(b[key] / a[key] for a, b in zip(turns, other, strict=True))
                for key in ("seconds", "cpu_seconds")
            ]
            rates = (documents / middle["seconds"], middle["tokens"] / middle["seconds"])
            numbers = (middle["seconds"], *rates, middle["cpu_seconds"], middle["peak_mb"])
            shown = (f"{documents:,}", name, *(f"{n:,.0f}" for n in numbers), *(f"{r:.2f}" for r in ratios))
            table.add_row(*shown)
    Console(width=120).print(table, platform.processor() or platform.machine(), f"{os.cpu_count()} cores")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"results": results, "environment": environment()}, indent=1))
    print(f"written to {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[20_000, 60_000, 200_000])
    parser.add_argument("--tokenizer", default="gpt2", help="a name on the Hub, or a folder")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=VERSIONS)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/wikipedia.json"))
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        folder, tokenizer, out = arguments.run
        reference(Path(folder), tokenizer, Path(out))
        return
    tokenizer, rounds, versions = arguments.tokenizer, arguments.rounds, arguments.versions
    report({n: compare(n, tokenizer, rounds, versions) for n in arguments.documents}, arguments.out)


if __name__ == "__main__":
    main()
