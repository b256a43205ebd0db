"""Reading record files (JSON, one object a line), without torch."""

import json
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
LEAKAGE = "leakage.jsonl"


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records; a last line cut short by a killed run is left out. No file has no records."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
