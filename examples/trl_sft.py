"""SGTM with TRL's ``SFTTrainer``: the dataset has a column ``mode``, the collator keeps it, the trainer holds it.

::

    pip install trl
    python examples/trl_sft.py

Packing and ``padding_free`` put several texts in one row and take no collator of your own; without them each text is
a row, with one mode. For LoRA, wrap the model with ``peft`` yourself (not ``SFTTrainer(peft_config=...)``), so that
there is something to partition: see lora.py. SFTTrainer reads the head's weight without calling the head, so modes in
one batch cannot protect it: leave ``head``, and tied ``embeddings``, out of ``SGTM(joint=...)``.
"""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from stories import Losses, losses, model, texts, tokenizer
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sgtm import SGTM, Partition


class ModeCollator(DataCollatorForLanguageModeling):
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return super().torch_call(examples) | {"mode": torch.tensor([example["mode"] for example in examples])}


class MySFTTrainer(SFTTrainer):
    sgtm: SGTM

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        mode = inputs.pop("mode")  # LongTensor (batch,)
        with self.sgtm.batch(mode):
            return super().training_step(model, inputs, *args, **kwargs)


def main(steps: int = 150) -> dict[str, Losses]:
    """Losses by language, intact and ablated, in nats per token."""
    tokens = tokenizer()
    llama = model(tokens)
    sgtm = SGTM(Partition.of(llama, heads=1, neurons=64))
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            folder,
            max_steps=steps,
            max_length=48,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            remove_unused_columns=False,  # "mode" is no argument of the model
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = MySFTTrainer(
            llama,
            args,
            train_dataset=Dataset.from_list(texts(1000)),  # columns text and mode
            processing_class=tokens,
            data_collator=ModeCollator(tokens.eos_token_id),
        )
        trainer.sgtm = sgtm
        trainer.train()
    found = {"intact": losses(llama, tokens, "as trained")}
    sgtm.partition.ablate()
    return found | {"ablated": losses(llama, tokens, "without forget units")}


if __name__ == "__main__":
    main()
