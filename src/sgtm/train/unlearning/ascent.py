"""Gradient ascent on the domain, descent on the rest: L = -L_forget + w L_retain, in nats per token."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from sgtm.config import UnlearnConfig
from sgtm.train.unlearning import Batch, Objective


def objective(model: PreTrainedModel, reference: Callable[[], PreTrainedModel], config: UnlearnConfig) -> Objective:
    def loss(forget: Batch, retain: Batch, domain: int) -> Tensor:
        return -token_losses(model, forget).mean() + config.retain_weight * token_losses(model, retain).mean()

    return loss


def token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(predicted tokens,) -log p of each, in fp32."""
    logits, targets = logits_of(model, batch)
    return F.cross_entropy(logits, targets, reduction="none")


def logits_of(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (predicted tokens, vocab) in fp32, and what they should predict (predicted tokens,)."""
    targets = batch.labels[:, 1:]
    told = targets != -100
    logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1]
    return logits[told].float(), targets[told]
