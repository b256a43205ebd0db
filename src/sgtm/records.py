"""The files that hold what runs measured, without torch."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sgtm.config import ConfigError, check_shape
from sgtm.plain import Shape, from_json

METRICS = "metrics.jsonl"
GRADIENTS = "gradients.jsonl"
LEAKAGE = "leakage.jsonl"
UNLEARN = "unlearn.yaml"  # settings of an unlearning
RELEARN = "relearn.yaml"  # settings of a relearning
SUMMARY = "summary.json"
AUDIT = "audit.yaml"  # settings and models of an audit
FINDINGS = "audit.jsonl"  # what an audit found
ATTACK = "attack.yaml"  # settings of an attack without training
PROBES = "probes.jsonl"
PARTITION = "partition.json"  # who owns which units and parameters of a run's model
GENERATIONS = "generations.jsonl"  # continuations before and after removal
MATRIX = "matrix.jsonl"  # losses of every category without each domain
THROUGHPUT = "throughput.jsonl"  # apart from the metrics, which a killed and resumed run repeats bit for bit
REPORT = "report.html"
RECORD = ("step", "tokens", "flops", "split", "category", "variant", "loss", "num_tokens")
RESULTS = "results.parquet"  # the records of all runs of a sweep
_REMEDY = "remove the line or the file, or write it anew"
CONFIGS = "configs"  # in the metadata of that file: the runs' configurations by name, as JSON


LOSS = {"step": int, "split": str, "category": str, "variant": str, "loss": float}


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """One object a line; an earlier file is replaced."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def read_records(path: Path, shape: Shape = dict) -> list[dict[str, Any]]:
    """All records; a last line cut short by a killed run is left out. No file has no records.

    Raises:
        ConfigError: a line that is no record of this ``shape``.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_record(line, shape, f"{path}, line {number}") for number, line in enumerate(lines[:-1], 1) if line]


def _record(line: str, shape: Shape, where: str) -> dict[str, Any]:
    try:
        record = from_json(line)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON ({error}); {_REMEDY}") from error
    check_shape(record, shape, where, _REMEDY)
    return record  # type: ignore[no-any-return]
