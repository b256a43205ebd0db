"""What figures are drawn from: a run's ``metrics.jsonl`` and ``config.yaml``. Nothing here needs torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sgtm.config import DOMAINS, ConfigError
from sgtm.records import METRICS, read_records


@dataclass(frozen=True)
class RunRecords:
    """One run's test losses."""

    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that the run is to forget."""
        return tuple((self.config.get("partition") or {}).get("domains") or DOMAINS)

    def curve(self, category: str, variant: str) -> list[tuple[int, float]]:
        """(step, loss in nats per token) of one category and variant on the test split."""
        return [
            (r["step"], r["loss"])
            for r in self.records
            if r["split"] == "test" and r["category"] == category and r["variant"] == variant
        ]


def read_run(folder: Path) -> RunRecords:
    """Read one run.

    Raises:
        ConfigError: no records there.
    """
    if not (folder / METRICS).is_file():
        raise ConfigError(f"{folder} has no {METRICS}; give folders written by `sgtm train`")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return RunRecords(folder, config, read_records(folder / METRICS))
