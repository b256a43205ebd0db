"""The ordinary models that the leakage of trained runs is read off, and their training.

An ordinary model with a share v of the forget data is the method ``filter`` with v undiscovered: it trains, unmasked,
on all retain documents and on the forget documents that its labels leave undiscovered. With the run's seed it starts
from the run's weights, and one draw labels a document at every share, so its forget documents are those that the run
has not discovered, and more, or some of them.

A filter drops rows, so in the same number of steps it would see more retain data than the run. Its steps are therefore
the number after which it has seen as many *retain tokens* as the run, to the nearest step; warm-up is scaled with the
steps, and the learning rate falls over the whole of them, as in any run. The forget tokens that it has then seen are
counted (``sgtm.train.seen``), not computed from v.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sgtm.config import Category, ConfigError, DataConfig, LabelConfig, PartitionConfig, RunConfig, TrainConfig, load
from sgtm.data.labels import error_rates
from sgtm.data.mixture import PreparedData, Rows
from sgtm.evaluate.leakage import Point
from sgtm.records import METRICS, read_records
from sgtm.train.run import method_of, train
from sgtm.train.seen import Seen, seen_tokens, steps_to_see

SHARES = (0.0, *(2.0**-k for k in range(10, -1, -1)))  # of the forget documents
REFERENCES = "references"
_SAME_RETAIN = 0.01  # retain tokens of a run and of an ordinary model may differ by this share, or by a step's
_NO_MATTER = {  # for what an ordinary model learns, or matched by the tokens that it sees
    "train": (
        "steps",
        "warmup_steps",
        "micro_batch_size",
        "log_every",
        "save_every",
        "gradient_checkpointing",
        "one_pass",
        "peak_tflops",
    ),
    "evaluate": ("every", "batch_size"),
    "labels": ("undiscovered", "tpr", "retain_fraction"),
}


_OF_MASKING: dict[str, Any] = {  # settings of forget units, as a run without any has them
    name: getattr(TrainConfig, name)
    for name in ("update", "forget_lr_scale", "forget_lr_end", "hear_domains", "auxiliary_spread", "core_robustness")
}


@dataclass(frozen=True, eq=False)
class Trained:
    """A run's folder, as leakage sees it.

    Args:
        share: of the forget documents (of their tokens, where the data has labels of its own) that was not labelled.
        kind: what ordinary models that compare with it have in common, their seed included.
    """

    folder: Path
    config: RunConfig
    seen: Seen
    share: float
    kind: str

    @property
    def is_finished(self) -> bool:
        return (self.folder / "model" / "config.json").is_file() and bool(self.final_records)

    @property
    def final_records(self) -> list[dict[str, Any]]:
        """Test losses after the last step."""
        records = read_records(self.folder / METRICS)
        return [r for r in records if r["split"] == "test" and r["step"] == self.config.train.steps]

    @property
    def is_ordinary(self) -> bool:
        return method_of(self.config).use in ("filter", "everything")

    @property
    def num_parameters(self) -> int:
        about = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return sum(about["parameters"].values())

    def point(self, domain: Category) -> Point:
        """Undiscovered tokens, and the test loss (nats per token, not calibrated) of the removed model, if any."""
        losses = {(r["category"], r["variant"]): r["loss"] for r in self.final_records}
        key = (domain, "ablated" if (domain, "ablated") in losses else "intact")
        if not losses:
            raise ConfigError(f"{self.folder} is not trained to its end")
        if key not in losses:
            raise ConfigError(f"{self.folder} has no test loss of {domain}; its data has no test rows of it")
        return Point(self.seen.undiscovered(domain), losses[key])


@dataclass(frozen=True)
class Plan:
    """Runs, and for each run with forget units its ordinary models, with rising share, some still to be trained."""

    runs: list[Trained]
    grids: dict[Path, list[Trained]]

    @property
    def models(self) -> list[Trained]:
        """The ordinary models, each once: several runs may share them."""
        return list({m.folder: m for grid in self.grids.values() for m in grid}.values())

    @property
    def missing(self) -> list[Trained]:
        return [model for model in self.models if not model.is_finished]


def plan_references(runs: Sequence[Path], references: Path | None = None, shares: Sequence[float] = SHARES) -> Plan:
    """Find the ordinary models that ``runs`` are measured against, by what they were trained on and not by name.

    Args:
        references: folder of the ordinary models; by default ``references`` beside the runs.
        shares: of the forget documents, one ordinary model each. Further ones that are found are used as well.

    Raises:
        ConfigError: no run, a run that is not finished or whose data has changed, or shares that are no grid.
    """
    _check(runs, shares)
    references = references or beside(runs) / REFERENCES
    found = [_read(folder) for folder in dict.fromkeys(runs)]
    known = [m for m in (*found, *_models_in(references, found)) if m.config.method == "filter" and _is_drawn(m.config)]
    grids: dict[Path, list[Trained]] = {}
    for run in (run for run in found if not run.is_ordinary):
        grids[run.folder] = _grid(run, known, references, sorted(set(shares)))
        known += [model for model in grids[run.folder] if model not in known]
    return Plan(found, grids)


def train_missing(plan: Plan) -> None:
    """Train the missing ordinary models, one after the other; one that was killed goes on from its checkpoint."""
    missing = plan.missing
    for i, model in enumerate(missing, 1):
        print(f"{i}/{len(missing)} ordinary model {model.folder}: {model.seen.total:,} tokens")
        train(model.config, model.folder, resume=(model.folder / "config.yaml").exists())


def beside(runs: Sequence[Path]) -> Path:
    """The folder that holds all of ``runs``."""
    parents = {run.parent for run in runs}
    return parents.pop() if len(parents) == 1 else Path(os.path.commonpath([p.resolve() for p in parents]))


def _check(runs: Sequence[Path], shares: Sequence[float]) -> None:
    if not runs:
        raise ConfigError("no runs; give folders written by `sgtm train`")
    if len(set(shares)) < 2 or not all(0 <= share <= 1 for share in shares):
        raise ConfigError(f"shares={list(shares)} are no grid; give at least two, from 0 to 1")


def _read(folder: Path) -> Trained:
    """A finished run; what it is said to have seen is what it recorded."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} holds no run; give folders written by `sgtm train`")
    config = load(folder / "config.yaml")
    if config.stream.source:
        raise ConfigError(f"{folder} was trained on a stream, whose tokens are not known; leakage needs prepared data")
    run = _trained(folder, config)
    if not run.is_finished:
        raise ConfigError(f"{folder} holds no finished run; train it to its end, or --resume it")
    _check_tokens(run)
    return run


def _check_tokens(run: Trained) -> None:
    recorded = run.final_records[0]["tokens"]
    if recorded != run.seen.total:
        raise ConfigError(
            f"{run.folder} trained on {recorded:,} tokens, but its configuration and data now give {run.seen.total:,}: "
            "they have changed since; put the data back, or train it again"
        )


def _models_in(references: Path, runs: Sequence[Trained]) -> list[Trained]:
    """Ordinary models in a folder that have the data of one of ``runs``, finished or not."""
    data = [(run.config.data, run.config.partition.names) for run in runs]
    models = []
    for path in sorted(references.glob("*/config.yaml")):
        config = load(path)
        if config.method == "filter" and (config.data, config.partition.names) in data:
            models.append(_trained(path.parent, config))
            if models[-1].is_finished:
                _check_tokens(models[-1])
    return models


def _grid(run: Trained, known: Sequence[Trained], references: Path, shares: Sequence[float]) -> list[Trained]:
    """The ordinary models that ``run`` is measured against, those of ``known`` that fit among them."""
    fitting = [m for m in known if _fits(m, run) and (m.is_finished or m.share in shares)]
    fitting.sort(key=lambda m: abs(m.seen.retain - run.seen.retain), reverse=True)
    grid = {m.share: m for m in fitting}  # of several with one share the nearest
    for share in shares:
        if share not in grid:
            model = _new(run, references, share)
            if not any(np.array_equal(model.seen.counts, m.seen.counts) for m in grid.values()):  # not a document more
                grid[share] = model
    return [grid[share] for share in sorted(grid)]


def _fits(model: Trained, run: Trained) -> bool:
    """Whether the ordinary ``model`` is of ``run``'s kind, has seen as much retain data, and was warmed up alike."""
    t, of_run = model.config.train, run.config.train
    allowed = max(_SAME_RETAIN * run.seen.retain, model.seen.retain / t.steps)
    return (
        model.kind == run.kind
        and abs(model.seen.retain - run.seen.retain) <= allowed
        and abs(t.warmup_steps - of_run.warmup_steps * t.steps / of_run.steps) <= 1
    )


def _new(run: Trained, references: Path, share: float) -> Trained:
    """The ordinary model with ``share`` of the forget data that is to be trained for ``run``."""
    rows = _rows(run.config)
    config = _ordinary(run.config, rows, share)
    steps, seen = steps_to_see(config, rows, run.seen.retain)
    warmup = min(round(config.train.warmup_steps * steps / config.train.steps), steps - 1)
    config = replace(config, train=replace(config.train, steps=steps, warmup_steps=warmup))
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()
    name = f"u{share:.6g}-steps{steps}-seed{config.seed}-{digest[:8]}"
    return Trained(references / name, config, seen, share, run.kind)


def _ordinary(config: RunConfig, rows: Rows, share: float) -> RunConfig:
    """``config`` for an ordinary model with a share of the forget data: what only masking needs is left out.

    Documents that were labelled forget by mistake are left out as they are in the run: no retain parameter learned from
    them. What the run's labels depend on, these do too. Labels that the data comes with are set aside.
    """
    labels, fpr = config.labels, 0.0
    if _is_drawn(config):
        fpr = error_rates(labels, rows.categories, rows.documents, len(rows.domains))[1]
    drawn = LabelConfig(undiscovered=share) if not fpr else LabelConfig(tpr=1 - share, fpr=fpr)
    if labels.depends_on != "nothing":
        drawn = replace(drawn, depends_on=labels.depends_on, strength=labels.strength)
    partition = config.partition
    if not (config.model.expand or config.model.head_bias):  # then it shapes the model itself
        partition = PartitionConfig(domains={name: {"neurons": 1} for name in partition.domains})
    return replace(
        config,
        method="filter",
        partition=partition,
        labels=replace(drawn, retain_fraction=0.0, own=not rows.has_labels),
        train=replace(config.train, **_OF_MASKING, keep_checkpoints=TrainConfig.keep_checkpoints),
        evaluate=replace(config.evaluate, every=None),
        calibrate=replace(config.calibrate, every_evaluation=False),
    )


def _trained(folder: Path, config: RunConfig) -> Trained:
    rows = _rows(config)
    return Trained(folder, config, seen_tokens(config, rows), _share(config, rows), _kind(config, rows))


def _kind(config: RunConfig, rows: Rows) -> str:
    values = asdict(_ordinary(config, rows, share=0.0))
    del values["calibrate"]
    for section, keys in _NO_MATTER.items():
        values[section] = {key: value for key, value in values[section].items() if key not in keys}
    return json.dumps(values, sort_keys=True)


def _share(config: RunConfig, rows: Rows) -> float:
    labels = config.labels
    if method_of(config).use == "everything":
        return 1.0
    if labels.undiscovered is not None:
        return labels.undiscovered
    found = labels.recall if labels.tpr is None else labels.tpr
    if found is not None:
        return round(1 - found, 12)
    return 0.0 if _is_drawn(config) else _own_share(config, rows)


def _own_share(config: RunConfig, rows: Rows) -> float:
    """Share of the forget tokens that the data's own labels leave undiscovered."""
    seen = seen_tokens(replace(config, method="sgtm"), rows)
    missed, found = (sum(map(of, rows.domains)) for of in (seen.undiscovered, seen.labelled))
    return round(missed / max(missed + found, 1), 4)


def _is_drawn(config: RunConfig) -> bool:
    """Whether the labels are drawn, so that the forget documents of one share hold those of a smaller one."""
    return not _rows(config).labelled_by(config.labels).has_labels


def _rows(config: RunConfig) -> Rows:
    return _load_rows(json.dumps(asdict(config.data), sort_keys=True), config.partition.names)


@cache
def _load_rows(data: str, domains: tuple[str, ...]) -> Rows:
    return PreparedData.load(DataConfig(**json.loads(data)), domains).train
