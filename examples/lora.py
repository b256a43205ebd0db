"""SGTM on LoRA adapters (peft): their last ranks learn Spanish, and are removed before merging.

::

    pip install peft
    python examples/lora.py
"""

import torch
from peft import LoraConfig, get_peft_model
from stories import Losses, losses, model, rows, tokenizer

from sgtm import SGTM
from sgtm.model.lora import lora_partition


def main(steps: int = 150) -> dict[str, Losses]:
    """Losses by language, intact and ablated, in nats per token."""
    tokens = tokenizer()
    base = model(tokens)
    data = rows(tokens, 1000)
    train(base, [row for row in data if row["language"] == 0], steps)  # what the base model knows, it keeps
    losses(base, tokens, "base model")

    lora = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    sgtm = SGTM(lora_partition(lora, ranks=8))  # the last 8 of the 16 ranks of every adapter
    print(sgtm.partition)
    train(lora, data, steps, sgtm)
    found = {"intact": losses(lora, tokens, "adapted")}
    sgtm.partition.ablate()
    merged = lora.merge_and_unload()  # a stock model again
    return found | {"ablated": losses(merged, tokens, "ablated and merged")}


def train(model: torch.nn.Module, data: list[dict], steps: int, sgtm: SGTM | None = None) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = [data[i] for i in torch.randint(len(data), (16,), generator=generator)]
        ids = torch.tensor([row["input_ids"] for row in batch])
        optimizer.zero_grad()
        if sgtm is None:
            model(input_ids=ids, labels=ids).loss.backward()
        else:
            with sgtm.batch(torch.tensor([row["mode"] for row in batch])):
                model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
