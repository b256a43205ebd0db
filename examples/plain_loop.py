"""SGTM in a PyTorch loop of your own; new lines are marked.

::

    python examples/plain_loop.py
"""

import torch
from stories import Losses, losses, model, rows, tokenizer

from sgtm import SGTM, Partition


def main(steps: int = 150) -> dict[str, Losses]:
    """Losses by language, intact and ablated, in nats per token."""
    tokens = tokenizer()
    llama = model(tokens)
    partition = Partition.of(llama, heads=1, neurons=64)  # new: the last head and 64 neurons of each layer
    sgtm = SGTM(partition)  # new
    optimizer = torch.optim.AdamW(llama.parameters(), lr=3e-3)
    data = rows(tokens, 1000)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = [data[i] for i in torch.randint(len(data), (16,), generator=generator)]
        ids = torch.tensor([row["input_ids"] for row in batch])
        modes = torch.tensor([row["mode"] for row in batch])  # new: (batch,) indices into partition.modes
        optimizer.zero_grad()
        with sgtm.batch(modes):  # new; or one mode for the whole batch: sgtm.batch("forget")
            llama(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    found = {"intact": losses(llama, tokens, "as trained")}
    partition.ablate()  # new: and the forget units are gone
    return found | {"ablated": losses(llama, tokens, "without forget units")}


if __name__ == "__main__":
    main()
