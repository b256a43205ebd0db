"""Unlikelihood of some tokens beside the likelihood of the rest (SLUNG, arXiv:2505.03052; Welleck et al. 2019,
arXiv:1908.04319). ``sgtm.data.token_loss`` says which tokens, and why.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def unlikelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """Sum over tokens of -log(1 - p(token)), p = softmax(logits); in fp32.

    1 - p is never formed, as it vanishes where p is near 1: -log(1 - p_y) = logsumexp(z) - logsumexp(z without z_y).

    Args:
        logits: (tokens, vocab).
        tokens: (tokens,).
    """
    logits = logits.float()
    others = logits.scatter(1, tokens[:, None], -torch.inf)
    return (logits.logsumexp(1) - others.logsumexp(1)).sum()


def selective_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None, *, unlikely: Tensor
) -> Tensor:
    """Next-token loss, -log p or, where ``unlikely``, -log(1 - p); nats per token, a mean over tokens of both kinds.

    Args:
        outputs: of the model; ``logits`` (batch, seq, vocab).
        labels: (batch, seq); -100 is no target.
        num_items_in_batch: tokens to divide by; by default those of the batch.
        unlikely: (batch, seq) of bool.
    """
    logits, targets, unlikely = outputs.logits[:, :-1], labels[:, 1:], unlikely[:, 1:] & (labels[:, 1:] != -100)
    likely = targets.masked_fill(unlikely, -100)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), likely.flatten(), ignore_index=-100, reduction="sum")
    loss = loss + unlikelihood(logits[unlikely], targets[unlikely])
    return loss / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)
