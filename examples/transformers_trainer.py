"""SGTM with ``transformers.Trainer``: our Trainer in place of the library's, or one method in a Trainer of your own.

::

    python examples/transformers_trainer.py
"""

import tempfile
from typing import Any

import torch
from stories import Losses, losses, model, rows, tokenizer
from transformers import Trainer, TrainingArguments

from sgtm import SGTM, Partition, SGTMTrainer
from sgtm.data.mixture import collate  # input_ids, labels and mode (batch,)


class MyTrainer(Trainer):
    """Any Trainer learns it in one method. One pass for all modes, exact under gradient accumulation as well."""

    sgtm: SGTM

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        mode = inputs.pop("mode")  # LongTensor (batch,), or (batch, seq)
        with self.sgtm.batch(mode):
            return super().training_step(model, inputs, *args, **kwargs)


def train(kind: str, steps: int) -> dict[str, Losses]:
    tokens = tokenizer()
    llama = model(tokens)
    sgtm = SGTM(Partition.of(llama, heads=1, neurons=64))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            remove_unused_columns=False,  # "mode" is no argument of the model
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = [{"input_ids": row["input_ids"], "mode": row["mode"]} for row in rows(tokens, 1000)]
        if kind == "SGTMTrainer":  # adds frozen optimizer state (update="strict"), checks, and a sampler
            trainer: Trainer = SGTMTrainer(llama, args, sgtm, train_dataset=data)
        else:
            trainer = MyTrainer(llama, args, train_dataset=data, data_collator=collate)
            trainer.sgtm = sgtm
        trainer.train()
    found = {"intact": losses(llama, tokens, f"{kind}, as trained")}
    sgtm.partition.ablate()
    return found | {"ablated": losses(llama, tokens, f"{kind}, ablated")}


def main(steps: int = 150) -> dict[str, dict[str, Losses]]:
    """Losses by language, intact and ablated, in nats per token, of both."""
    return {kind: train(kind, steps) for kind in ("SGTMTrainer", "MyTrainer")}


if __name__ == "__main__":
    main()
