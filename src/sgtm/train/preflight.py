"""What a run would stumble over at its end, tried before its first step: disk, memory, every kind of computation."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from sgtm.config import MODES, Category, ConfigError, RunConfig
from sgtm.data.mixture import Rows, collate
from sgtm.evaluate.calibrate import fit_bias
from sgtm.evaluate.loss import evaluate_categories
from sgtm.model.masking import SGTM

_FP32 = 4  # bytes
_MOMENTS = 2  # that AdamW keeps of a parameter
_ROWS = 2  # of each kind that are tried


@dataclass(frozen=True)
class Needs:
    """Bytes that a run needs: on the disk at most, and in the memory of a device without activations."""

    disk: int
    memory: int


def preflight(
    config: RunConfig,
    folder: Path,
    model: PreTrainedModel,
    sgtm: SGTM | None,
    train: Rows,
    test: dict[Category, Rows],
    device: torch.device,
) -> None:
    """Try what the run will need, at ``folder`` and on a few rows; nothing is changed.

    Args:
        device: where the run computes; the model is there afterwards.

    Raises:
        ConfigError: the disk or the GPU is too small.
        Exception: whatever a computation raises, with a note that says which it was.
    """
    needs = needs_of(config, model.num_parameters())
    check_disk(needs, folder)
    check_memory(needs, device)
    model.to(device)  # type: ignore[arg-type]
    with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        try_everything(config, model, sgtm, train, test)


def needs_of(config: RunConfig, num_parameters: int) -> Needs:
    """From the sizes of weights, gradients and AdamW's two moments, all in fp32."""
    t = config.train
    weights = num_parameters * _FP32
    every = t.save_every or max(1, t.steps // 10)
    kept = -(-t.steps // every) if t.keep_checkpoints is None else t.keep_checkpoints
    is_sharded = bool(t.arguments.get("fsdp"))
    checkpoint = weights * (1 + is_sharded + _MOMENTS)  # FSDP's own file of weights stands beside the usual one
    shards = int(os.environ.get("WORLD_SIZE", "1")) if is_sharded else 1
    return Needs((kept + 1) * checkpoint + weights, weights * (2 + _MOMENTS) // shards)  # one more while it is written


def check_disk(needs: Needs, folder: Path) -> None:
    """Raise a ConfigError if what the run writes does not fit on the disk."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    written = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    free = shutil.disk_usage(there).free + written  # a run that goes on has some of its checkpoints already
    if free < needs.disk:
        raise ConfigError(
            f"{folder} has room for {_gb(free)} and the run writes up to {_gb(needs.disk)} (checkpoints with the "
            "optimizer's state, and the model); free some space, or set train.keep_checkpoints=1"
        )


def check_memory(needs: Needs, device: torch.device) -> None:
    """Raise a ConfigError if weights, gradients and optimizer state alone do not fit into a GPU."""
    if device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(device).total_memory
    if needs.memory > total:
        raise ConfigError(
            f"weights, gradients and optimizer state take {_gb(needs.memory)} and the GPU has {_gb(total)}; use a "
            "smaller model"
        )


def try_everything(
    config: RunConfig, model: PreTrainedModel, sgtm: SGTM | None, train: Rows, test: dict[Category, Rows]
) -> None:
    """A forward and backward pass of each mode, an evaluation and a calibration, on a few rows.

    Neither weights nor generators are changed, so the run is the same, bit for bit.

    Raises:
        Exception: whatever one of them raises, with a note that says which it was.
    """
    few = {category: rows.select(np.arange(min(_ROWS, len(rows)))) for category, rows in test.items()}
    tiny = replace(config.calibrate, steps=1, tokens=_ROWS, rows=_ROWS)
    with _generators_kept(model.device):
        for mode in MODES[:1] if sgtm is None else sgtm.partition.modes:
            with _named(f"a training step in mode {mode}"):
                _step(model, sgtm, mode, train)
        with _named("an evaluation"):
            bias = fit_bias(model, few, tiny, sgtm)
            evaluate_categories(model, few, sgtm, bias, _ROWS)


def _step(model: PreTrainedModel, sgtm: SGTM | None, mode: str, train: Rows) -> None:
    longest = np.argsort(-train.lengths, kind="stable")[:_ROWS]
    batch = collate([{key: train[int(i)][key] for key in ("input_ids",)} for i in longest])
    given = {key: value.to(model.device) for key, value in batch.items()}
    was_training = model.training
    model.train()
    with nullcontext() if sgtm is None else sgtm.batch(mode):
        model(**given, use_cache=False).loss.backward()
    model.train(was_training)
    model.zero_grad(set_to_none=True)


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"This was {what} on a few rows, tried before the first step.")
        raise


def _gb(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.1f} MB"
