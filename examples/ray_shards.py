"""A corpus of any size, labelled and tokenised by Ray Data into shards from which `sgtm train` or SGTMTrainer streams.

::

    python examples/ray_shards.py                                      # on the embedded stories, and trains on them
    python examples/ray_shards.py s3://corpus labelled gpt2 s3://shards   # on your cluster: RAY_ADDRESS=...

``labelled`` is what `sgtm label SAMPLE --examples EXAMPLES --out labelled` learned from a sample of the corpus. Then::

    sgtm train CONFIG.yaml --stream.source SHARDS
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from stories import Losses, losses, model, texts, tokenizer
from transformers import TrainingArguments

from sgtm import SGTM, Partition, SGTMTrainer
from sgtm.config import ClassifyConfig, StreamConfig
from sgtm.data.classify import Classifier
from sgtm.data.own_labels import CLASSIFIER, label_texts
from sgtm.data.stream import open_stream
from sgtm.data.thresholds import Thresholds, assign
from sgtm.data.tokenize import read_manifest
from sgtm.data.tokenizer import load_tokenizer


class LabelledTokens:
    """Rows of ``text`` -> ``input_ids`` (end-of-text included) and ``label`` (a domain, retain, or unlabeled).

    One lives in each of Ray's workers, so classifier and tokenizer are read once.
    """

    def __init__(self, labelled: str, tokens: str) -> None:
        self.classifier = Classifier.load(Path(labelled) / CLASSIFIER)
        found = read_manifest(Path(labelled))["thresholds"]
        self.thresholds = [Thresholds(**found[domain]) for domain in self.classifier.domains]
        self.names = np.array([*self.classifier.domains, "retain", "unlabeled"])
        self.tokenizer = load_tokenizer(tokens)

    def __call__(self, table: pa.Table) -> pa.Table:
        some = table["text"].to_pylist()
        labels = self.names[assign(self.classifier.scores(some), self.thresholds)]
        ids = self.tokenizer(some, add_special_tokens=False)["input_ids"]
        ended = pa.array([[*row, self.tokenizer.eos_token_id] for row in ids], pa.list_(pa.int32()))
        return pa.table({"input_ids": ended, "label": pa.array(labels)})


def write_shards(
    corpus: str, labelled: str, tokens: str, out: str, rows_of_shard: int = 100_000, workers: int = 1024
) -> None:
    """Parquet files with ``input_ids`` and ``label`` of the texts in ``corpus``, read and written as they come.

    Args:
        labelled, tokens: a folder of `sgtm label` and a tokenizer that every machine of the cluster can read.
        rows_of_shard: at least; there must be as many shards as readers (processes x loader workers) in training.
        workers: at most; Ray starts as many as have work.
    """
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=workers)
    data = ray.data.read_parquet(corpus).select_columns(["text"])
    data = data.map_batches(
        LabelledTokens, fn_constructor_args=(labelled, tokens), compute=pool, batch_format="pyarrow", num_cpus=1
    )
    data.write_parquet(out, min_rows_per_file=rows_of_shard)


def embedded_corpus(folder: Path) -> tuple[str, str, str]:
    """Stories in 4 files, a classifier learned from 200 of them, and a tokenizer, as a user would have them."""
    found = texts(1000)
    (folder / "corpus").mkdir()
    for i in range(4):
        pq.write_table(pa.table({"text": [t["text"] for t in found[i::4]]}), folder / "corpus" / f"{i}.parquet")
    known = ("retain", "forget")  # by language
    sample = found[:200]
    examples = pa.table({"text": [t["text"] for t in sample], "category": [known[t["language"]] for t in sample]})
    pq.write_table(examples, folder / "examples.parquet")
    config = ClassifyConfig(folder / "labelled", features="characters", target_precision=0.9, target_recall=0.9)
    label_texts(str(folder / "corpus" / "0.parquet"), config, str(folder / "examples.parquet"))
    tokenizer().save_pretrained(folder / "tokenizer")
    return str(folder / "corpus"), str(folder / "labelled"), str(folder / "tokenizer")


def train(shards: str, steps: int) -> dict[str, Losses]:
    tokens = tokenizer()
    llama = model(tokens)
    sgtm = SGTM(Partition.of(llama, heads=1, neurons=64))
    stream = open_stream(StreamConfig(shards), ("forget",), "modes", tokens, context=48, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=steps,  # a stream has no end
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        SGTMTrainer(llama, args, sgtm, train_dataset=stream).train()
    found = {"intact": losses(llama, tokens, "as trained")}
    sgtm.partition.ablate()
    return found | {"ablated": losses(llama, tokens, "ablated")}


def main(steps: int = 150) -> dict[str, Losses]:
    """Losses by language, intact and ablated, in nats per token."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, labelled, tokens = embedded_corpus(Path(folder))
        ray.data.DataContext.get_current().use_datasource_v2 = False  # it starts 32 processes to look at 4 files
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            write_shards(corpus, labelled, tokens, f"{folder}/shards", rows_of_shard=250, workers=1)
        finally:
            ray.shutdown()
        return train(f"{folder}/shards", steps)


if __name__ == "__main__":
    if len(sys.argv) == 5:
        write_shards(*sys.argv[1:])
    else:
        main()
