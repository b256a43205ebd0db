"""Labels of tokens: rows packed from English and Spanish, and each position in the mode of the token it predicts.

::

    python examples/token_labels.py
"""

import torch
from stories import DEFAULT, LANGUAGES, Losses, model, rows, tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from sgtm import SGTM, Partition


def packed(data: list[dict]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, modes and languages of tokens, (rows, 48) each: half English and half Spanish, in turn."""
    found = []
    for i in range(0, len(data), 2):
        row = data[i : i + 2][:: 1 if i % 4 else -1]
        found.append([(token, r["mode"], r["language"]) for r in row for token in r["input_ids"][:24]])
    return torch.tensor(found).unbind(-1)


def losses(llama: PreTrainedModel, test: tuple[Tensor, Tensor, Tensor], title: str) -> Losses:
    """Print and return the loss of English and of Spanish tokens."""
    ids, _, languages = test
    with torch.no_grad():
        logits = llama(input_ids=ids).logits
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    found = {name: float(each[languages[:, 1:].flatten() == code].mean()) for code, name in enumerate(LANGUAGES)}
    print(f"{title:24}", "  ".join(f"{name} {loss:.2f}" for name, loss in found.items()), flush=True)
    return found


def main(steps: int = 150) -> dict[str, Losses]:
    """Losses by language, intact and ablated, in nats per token."""
    tokens = tokenizer()
    llama = model(tokens)
    sgtm = SGTM(Partition.of(llama, heads=1, neurons=64))
    optimizer = torch.optim.AdamW(llama.parameters(), lr=3e-3)
    ids, labels, _ = packed(rows(tokens, 1000))
    # Position t predicts token t + 1 and is trained in its mode; the last one predicts nothing.
    modes = torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], DEFAULT)), 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(ids), (16,), generator=generator)
        optimizer.zero_grad()
        with sgtm.batch(modes[chosen]):  # (batch, seq)
            llama(input_ids=ids[chosen], labels=ids[chosen]).loss.backward()
        optimizer.step()
    test = packed(rows(tokens, 64, seed=1))
    found = {"intact": losses(llama, test, "as trained")}
    sgtm.partition.ablate()
    return found | {"ablated": losses(llama, test, "without forget units")}


if __name__ == "__main__":
    main()
