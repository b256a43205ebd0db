"""Trains a tiny model for a few steps and saves its weights as WORLD_SIZE.pt: `two_ranks DATA OUT MIXING`."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import TrainingArguments

from sgtm.config import DataConfig, LabelConfig
from sgtm.data.mixture import PreparedData, training_rows
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition, Units
from sgtm.train.sampler import ModeSampler
from sgtm.train.tests.conftest import masked, tiny_model
from sgtm.train.trainer import SGTMTrainer

BATCH = 4


def main(data_folder: str, out: str, mixing: str) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rows, _ = training_rows(PreparedData.load(DataConfig(data_folder)).train, LabelConfig(undiscovered=0.2), "modes", 0)
    model = tiny_model()
    sgtm = masked(model)
    if mixing == "domains":  # two that always hear each other, and no default row
        domains = {"biology": Units(heads=1), "cyber": Units(neurons=8)}
        sgtm = SGTM(Partition.of(model, domains=domains))
        rows = replace(rows, modes=(np.arange(len(rows)) % 3 + 1).astype(np.int8))
    arguments = TrainingArguments(
        str(Path(out) / f"run{world}"),
        max_steps=12,
        per_device_train_batch_size=BATCH // world // 2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        optim="adamw_torch",
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = SGTMTrainer(
        model,
        arguments,
        sgtm,
        update="strict",
        forget_lr_scale=0.5,
        hear_domains=1.0,
        sampler=ModeSampler(rows.modes, BATCH, "step" if mixing == "step" else "example"),
        train_dataset=rows,
    )
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(model.state_dict(), Path(out) / f"{world}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
