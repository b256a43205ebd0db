"""What a run leaves for its report beside its losses: who owns what, what the model says, what is lost without what."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from sgtm.config import Category, write
from sgtm.evaluate.loss import Loss
from sgtm.model.describe import describe
from sgtm.model.masking import SGTM
from sgtm.records import GENERATIONS, MATRIX, PARTITION, write_records

Matrix = Mapping[tuple[str, ...], Mapping[Category, Loss]]


def write_partition(folder: Path, sgtm: SGTM | None) -> None:
    """``partition.json``; a model without forget units has none."""
    if sgtm is not None:
        write(folder / PARTITION, json.dumps(describe(sgtm), indent=1))


def write_matrix(folder: Path, matrix: Matrix) -> None:
    """``matrix.jsonl``: without (domains), category, loss (nats per token), num_tokens."""
    write_records(
        folder / MATRIX,
        (
            {"without": list(removed), "category": category, "loss": loss.mean, "num_tokens": loss.num_tokens}
            for removed, losses in matrix.items()
            for category, loss in losses.items()
        ),
    )


def write_generations(folder: Path, found: Iterable[Mapping[str, str]]) -> None:
    """``generations.jsonl``: see ``sgtm.evaluate.generate.continuations``."""
    write_records(folder / GENERATIONS, list(found))
