"""The files that hold what runs measured, without torch."""

import json
from pathlib import Path
from typing import Any

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
RECORD = ("step", "tokens", "flops", "split", "category", "variant", "loss", "num_tokens")
RESULTS = "results.parquet"  # the records of all runs of a sweep
CONFIGS = "configs"  # in the metadata of that file: the runs' configurations by name, as JSON


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records; a last line cut short by a killed run is left out. No file has no records."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
