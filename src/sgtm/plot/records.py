"""What figures are drawn from: a run's ``metrics.jsonl`` and ``config.yaml``, or a sweep's ``results.parquet``.

Nothing here needs torch.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sgtm.config import DOMAINS, ConfigError, RunConfig, build, check_shape, load, nearest, read_yaml
from sgtm.plain import from_json
from sgtm.records import CONFIGS, LOSS, METRICS, RECORD, RESULTS, UNLEARN, read_records

_SEED = re.compile(r"[-_]?seed\d+")
_ANEW = "collect it anew with `sgtm sweep ... --status`"
MEAN = "mean"  # of all domains' losses


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

    def final(self, category: str, variant: str) -> float | None:
        """The loss at the run's last step; None if it did not get there, or was not measured."""
        return dict(self.curve(category, variant)).get(self.config["train"]["steps"])

    def final_mean(self, categories: Sequence[str], variant: str) -> float | None:
        """The mean of the final losses of ``categories``; None if one of them is missing."""
        losses = [loss for category in categories if (loss := self.final(category, variant)) is not None]
        return sum(losses) / len(losses) if losses and len(losses) == len(categories) else None

    @property
    def settings(self) -> dict[str, str]:
        """The configuration as text by dotted key (``train.steps``)."""
        return dict(_flat(self.config))

    @property
    def rates(self) -> tuple[float, float]:
        """(true, false positive rate) of the labeller; without errors if none is set.

        Raises:
            ConfigError: the labeller is given by its precision, from which the rates follow only with the data.
        """
        labels = self.config["labels"]
        if labels["precision"] is not None:
            raise ConfigError(f"{self.folder} has labels.precision; figures over rates need runs with tpr and fpr")
        if labels["undiscovered"] is not None:
            return round(1 - labels["undiscovered"], 12), 0.0
        return 1.0 if labels["tpr"] is None else labels["tpr"], labels["fpr"] or 0.0


def read_run(folder: Path) -> RunRecords:
    """Read one run.

    Raises:
        ConfigError: no records there, or a file that is none of a run's.
    """
    if not (folder / METRICS).is_file():
        raise ConfigError(f"{folder} has no {METRICS}; give folders written by `sgtm train` or `sgtm unlearn`")
    records = read_records(folder / METRICS, LOSS)
    settings = folder / UNLEARN
    if settings.is_file():
        found = read_yaml(settings)
        check_shape(found, {"domains": [str], "method": str, "seed": int}, settings, "unlearn anew")
        return RunRecords(folder, _as_of_a_run(found, records), records)
    return RunRecords(folder, asdict(load(folder / "config.yaml")), records)


def _as_of_a_run(settings: dict[str, Any], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings of an unlearning under the keys of a run's configuration; the labels are the true categories."""
    domains = settings["domains"]
    return {
        **settings,
        "partition": {"domains": {} if tuple(domains) == DOMAINS else dict.fromkeys(domains)},
        "labels": {"precision": None, "undiscovered": None, "tpr": None, "fpr": None},
        "train": {"steps": max((r["step"] for r in records), default=0)},
    }


def read_runs(paths: Iterable[Path]) -> list[RunRecords]:
    """Read runs from their folders, from the folder of a sweep, or from its ``results.parquet``.

    The folder of a sweep also gives the models that `sgtm unlearn` left beside its runs; its results do not.

    Raises:
        ConfigError: no records at one of the ``paths``, or no paths.
    """
    runs = [run for path in paths for run in _read(path)]
    if not runs:
        raise ConfigError("no runs to plot; give folders written by `sgtm train` or `sgtm sweep`")
    return runs


def run_folders(folder: Path) -> list[Path]:
    """The folders of runs right below ``folder``, such as a sweep's."""
    found = [file.parent for file in sorted(folder.glob(f"*/{METRICS}"))]
    return [f for f in found if (f / "config.yaml").is_file() or (f / UNLEARN).is_file()]


def chosen_domains(runs: Sequence[RunRecords], forget: str) -> tuple[str, ...]:
    """The domains whose mean loss is drawn; the same for every run.

    Args:
        forget: one domain, ``mean`` of all of them, or nothing where all runs have the same one.

    Raises:
        ConfigError: a run without it, or several domains and none chosen.
    """
    if forget not in ("", MEAN):
        for run in (run for run in runs if forget not in run.domains):
            hint = nearest(forget, run.domains)
            raise ConfigError(f"{run.folder} has no domain {forget!r}{hint} (domains: {', '.join(run.domains)})")
        return (forget,)
    common = runs[0].domains
    for run in (run for run in runs if set(run.domains) != set(common)):
        raise ConfigError(
            f"{runs[0].folder} has the domains {', '.join(common)} and {run.folder} {', '.join(run.domains)}; choose "
            "one that all have with --forget DOMAIN"
        )
    if len(common) > 1 and not forget:
        raise ConfigError(
            f"the runs have the domains {', '.join(common)}; choose one with --forget DOMAIN, or --forget {MEAN}"
        )
    return common


def series(runs: Sequence[RunRecords], along: Iterable[str]) -> dict[str, list[RunRecords]]:
    """Runs that differ in nothing but their seed and the settings ``along`` an axis, by method.

    Where a method comes with several settings, each is a series of its own and is named by what differs.
    """
    apart = {*along, "seed"}
    flat = [
        {key: without_seed(value) if key == "start" else value for key, value in _flat(run.config) if key not in apart}
        for run in runs
    ]
    groups: dict[str, list[RunRecords]] = {}
    for run, settings in zip(runs, flat, strict=True):
        same = [other for other in flat if other["method"] == settings["method"]]
        differs = [k for k in settings if any(other.get(k) != settings[k] for other in same)]
        label = ", ".join([str(settings["method"]), *(f"{k.rpartition('.')[2]} {settings[k]}" for k in differs)])
        groups.setdefault(label, []).append(run)
    return groups


def without_seed(text: str) -> str:
    """A folder's name or path without the seed in it."""
    return _SEED.sub("", text)


def _read(path: Path) -> list[RunRecords]:
    if path.is_file():
        return _read_results(path)
    if (path / METRICS).is_file() or not (path / RESULTS).is_file():
        return [read_run(path)]
    unlearned = (folder for folder in run_folders(path) if (folder / UNLEARN).is_file())
    return [*_read_results(path / RESULTS), *map(read_run, unlearned)]


def _read_results(path: Path) -> list[RunRecords]:
    """The runs of a sweep's results, whose configurations are in the file's metadata."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        configs = from_json(table.schema.metadata[CONFIGS.encode()].decode())
        records = table.select(["run", *RECORD]).to_pylist()
    except (ValueError, OSError, TypeError, KeyError) as error:  # pyarrow's errors are among these
        raise ConfigError(f"{path} is no sweep's {RESULTS}; give one, or folders of runs") from error
    check_shape(configs, dict, path, _ANEW)
    runs = {
        name: RunRecords(path.parent / name, asdict(build(RunConfig, config, f"{path}, {name}")), [])
        for name, config in configs.items()
    }
    for record in records:
        check_shape(record, LOSS | {"run": tuple(runs)}, path, _ANEW)
        runs[record.pop("run")].records.append(record)
    return list(runs.values())


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
