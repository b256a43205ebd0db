"""Gradients of a run's test examples, checkpoint by checkpoint, as records.

A record (a line of gradients.jsonl) has: step, category, example (its number among those of the category, the same at
every step), part, norm, relative_norm and cosines by direction (null where undefined); ``sgtm.evaluate.gradients`` says
what they are. Computed in fp32, whatever the run's precision.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.utils.logging import disable_progress_bar

from sgtm.config import Category, ConfigError, RunConfig, load
from sgtm.data.mixture import PreparedData, Rows, training_rows
from sgtm.environment import tune_malloc
from sgtm.evaluate.gradients import example_batches, example_gradients, update_directions
from sgtm.model.build import partition_of
from sgtm.train.checkpoints import checkpoints_of
from sgtm.train.run import load_model

Checkpoints = Literal["last", "all"]


def gradients_of_run(
    folder: Path,
    out: Path,
    num_examples: int,
    num_rows: int,
    checkpoints: Checkpoints = "last",
    report: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measure a run's gradients, write them to ``out`` and return the records of the last step.

    Args:
        num_examples: test rows of each category, at most.
        num_rows: training rows of each direction, at most; labelled as the run labels them.
        report: is told how far it is.

    Raises:
        ConfigError: no run, none of its models, or no data.
    """
    for name, value in (("examples", num_examples), ("rows", num_rows)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    config = _config_of(folder)
    models = _models(folder, config, checkpoints)
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; make it, or choose another --out")
    if checkpoints == "all" and config.train.keep_checkpoints is not None:
        report(f"the run kept its last {config.train.keep_checkpoints} checkpoints alone (train.keep_checkpoints)")
    data = PreparedData.load(config.data, config.partition.names)
    labelled, _ = training_rows(data.train, config.labels, "modes", config.seed)
    examples = {category: data.test.of(category, num_examples, config.seed) for category in data.test.present}
    tune_malloc()
    disable_progress_bar()  # of the weights being loaded: ``report`` is enough
    partial = out.with_name(out.name + ".partial")  # what is killed leaves no half of a file
    records: list[dict[str, Any]] = []
    with partial.open("w", encoding="utf-8") as file:
        for number, (step, path) in enumerate(models.items(), 1):
            report(f"step {step} ({number} of {len(models)}): {path}")
            records = list(_records(config, step, path, labelled, examples, num_rows))
            file.writelines(json.dumps(record) + "\n" for record in records)
    partial.replace(out)
    return records


def _records(
    config: RunConfig, step: int, path: Path, labelled: Rows, examples: dict[Category, Rows], num_rows: int
) -> Iterator[dict[str, Any]]:
    model, sgtm = load_model(config, path)
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    partition = partition_of(model, config.partition) if sgtm is None else sgtm.partition
    directions = update_directions(model, sgtm, labelled, num_rows, config.seed)
    for category, rows in examples.items():
        found = example_gradients(model, partition, example_batches(model, rows), directions)
        for number, parts in enumerate(found):
            for part, gradient in parts.items():
                yield {"step": step, "category": category, "example": number, "part": part, **asdict(gradient)}


def _config_of(folder: Path) -> RunConfig:
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} holds no run (no config.yaml in it); give a folder written by `sgtm train`")
    return load(folder / "config.yaml")


def _models(folder: Path, config: RunConfig, checkpoints: Checkpoints) -> dict[int, Path]:
    """Step -> model, in order.

    Raises:
        ConfigError: the run is not finished, or has no checkpoints beside its final model where all are asked for.
    """
    final = folder / "model"
    found = checkpoints_of(folder / "checkpoints")
    if (final / "config.json").is_file():
        found[config.train.steps] = final
    if not found:
        raise ConfigError(f"{folder} holds no model yet: no model/ and no checkpoint; train it first")
    if checkpoints == "last":
        step = max(found)
        return {step: found[step]}
    if len(found) == 1:
        raise ConfigError(
            f"{folder} has a model of step {max(found)} alone, and no checkpoints of other steps; train it with "
            "--train.keep-checkpoints None (and --train.save-every N), or measure --checkpoints last"
        )
    return found
