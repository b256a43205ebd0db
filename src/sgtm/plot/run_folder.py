"""What a run's folder holds, as far as it is there, for pages about runs."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sgtm.config import ConfigError
from sgtm.plot.records import RunRecords, read_run
from sgtm.plot.relearning import Relearning, read_relearnings
from sgtm.records import GENERATIONS, MATRIX, PARTITION, RELEARN, SUMMARY, THROUGHPUT, read_records

Record = dict[str, Any]
VARIANTS = ("intact", "ablated", "calibrated")


@dataclass(frozen=True)
class RunFolder:
    """One run, and everything that was written about it; what is not there is empty.

    Args:
        about: run.json: labels and modes of the rows, parameters by owner, environment, when it started.
        partition: who owns which units and parameters (``sgtm.model.describe``).
        manifest: of the prepared data.
    """

    run: RunRecords
    about: Record
    partition: Record
    manifest: Record
    generations: list[Record]
    matrix: list[Record]
    throughput: list[Record]
    relearnings: list[Relearning]

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def categories(self) -> list[str]:
        """Those of the test losses: what is kept, then what is not; parts by topic (retain/Culture) are left out."""
        found = dict.fromkeys(r["category"] for r in self.run.records if r["split"] == "test")
        whole = [c for c in found if "/" not in c]
        return sorted(whole, key=lambda c: (c in self.run.domains, c != "retain", whole.index(c)))

    @property
    def step(self) -> int:
        """The last one of which there is a record."""
        return max((r["step"] for r in self.run.records), default=0)

    @property
    def is_finished(self) -> bool:
        return self.step >= int(self.run.config["train"]["steps"])

    @property
    def num_parameters(self) -> int | None:
        """Of the model, where run.json has it."""
        owners = self.about.get("parameters")
        return sum(owners.values()) if owners else None

    @property
    def tokens_per_second(self) -> float | None:
        """Over all steps whose time was taken, evaluations left out."""
        seconds = sum(r["seconds"] for r in self.throughput)
        return sum(r["tokens"] for r in self.throughput) / seconds if seconds else None

    def last(self, category: str, variant: str) -> float | None:
        """The last loss of a category and variant on the test split, in nats per token."""
        curve = self.run.curve(category, variant)
        return curve[-1][1] if curve else None

    @property
    def removed(self) -> str:
        """The variant that stands for the model after removal: calibrated where that was measured."""
        found = {r["variant"] for r in self.run.records if r["split"] == "test"}
        return "calibrated" if "calibrated" in found else "ablated"


def read_run_folder(folder: Path, others: Iterable[Path] = ()) -> RunFolder:
    """Read a run and what was written about it.

    Args:
        others: folders of ``sgtm relearn``, beside those that are found in the run's folder and next to it.

    Raises:
        ConfigError: no records there, or one of the ``others`` is no relearning.
    """
    run = read_run(folder)
    return RunFolder(
        run,
        _json(folder / "run.json"),
        _json(folder / PARTITION),
        _json(Path(run.config.get("data", {}).get("path") or "nowhere") / "manifest.json"),
        read_records(folder / GENERATIONS),
        read_records(folder / MATRIX),
        read_records(folder / THROUGHPUT),
        [*_relearnings_of(folder), *(read_relearnings(list(others)) if others else [])],
    )


def _relearnings_of(folder: Path) -> Iterator[Relearning]:
    """Relearnings that began with this run, inside its folder or beside it."""
    places = [*sorted(folder.glob(f"*/{RELEARN}")), *sorted(folder.parent.glob(f"*/{RELEARN}"))]
    for settings in places:
        if (settings.parent / SUMMARY).is_file() and _start_of(settings) == folder.resolve():
            yield from read_relearnings([settings.parent])


def _start_of(settings: Path) -> Path | None:
    try:
        found = yaml.safe_load(settings.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError):
        return None
    start = found.get("start") if isinstance(found, Mapping) else None
    return Path(start).resolve() if start else None


def _json(path: Path) -> Record:
    """A JSON object; empty where there is no file.

    Raises:
        ConfigError: a file that is none.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON ({error}); remove it, and what it told is left out") from error
    return found if isinstance(found, dict) else {}
