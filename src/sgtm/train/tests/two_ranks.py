"""Trains a tiny model for a few steps, once for each case, and saves the weights: `two_ranks DATA OUT CASES.json`.

A case is {name, mixing, settings}: settings of TrainingArguments, and of SGTMTrainer after `trainer_`. The weights are
OUT/NAME-WORLD_SIZE.pt. Two processes take a GPU each where there are two (NCCL), else the CPU (gloo).
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from transformers import TrainingArguments

from sgtm.config import DataConfig, LabelConfig
from sgtm.data.mixture import PreparedData, training_rows
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition, Units
from sgtm.train.sampler import ModeSampler
from sgtm.train.tests.conftest import masked, tiny_model
from sgtm.train.tests.shard_on_cpu import shard_on_cpu
from sgtm.train.trainer import SGTMTrainer

BATCH = 4
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
ARGUMENTS = {
    "max_steps": 12,
    "per_device_train_batch_size": BATCH // WORLD // 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "optim": "adamw_torch",
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": WORLD == 1 or torch.cuda.device_count() < WORLD,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def train(data: PreparedData, out: Path, name: str, mixing: str, settings: dict[str, Any]) -> None:
    rows, _ = training_rows(data.train, LabelConfig(undiscovered=0.2), "modes", 0)
    model = tiny_model()
    sgtm = masked(model)
    if mixing == "domains":  # two that always hear each other, and no default row
        domains = {"biology": Units(heads=1), "cyber": Units(neurons=8)}
        sgtm = SGTM(Partition.of(model, domains=domains))
        rows = replace(rows, modes=(np.arange(len(rows)) % 3 + 1).astype(np.int8))
    own = {k.removeprefix("trainer_"): v for k, v in settings.items() if k.startswith("trainer_")}
    given = {k: v for k, v in settings.items() if not k.startswith("trainer_")}
    if WORLD == 1:
        given.pop("fsdp", None)
    trainer = SGTMTrainer(
        model,
        TrainingArguments(str(out / f"{name}-{WORLD}"), **(ARGUMENTS | given)),
        sgtm,
        sampler=ModeSampler(rows.modes, BATCH, "step" if mixing == "step" else "example"),
        train_dataset=rows,
        **({"update": "strict", "forget_lr_scale": 0.5, "hear_domains": 1.0} | own),
    )
    trainer.train()
    weights = {name: w.cpu() for name, w in trainer.accelerator.get_state_dict(trainer.model).items()}
    if trainer.is_world_process_zero():
        torch.save(weights, out / f"{name}-{WORLD}.pt")
    AcceleratorState._reset_state()


def main(data_folder: str, out: str, cases: str) -> None:
    shard_on_cpu()
    data = PreparedData.load(DataConfig(data_folder))
    for case in json.loads(Path(cases).read_text()):
        train(data, Path(out), **case)


if __name__ == "__main__":
    main(*sys.argv[1:])
