"""NPO, Negative Preference Optimization (arXiv:2404.05868): ascent that ends once the domain is unlikely enough.

    L = -(2 / beta) E log sigmoid(-beta log(p(x) / p^0(x))) + w L_retain

p(x) is the likelihood of a whole row x of the domain, p^0 that under the model as it was. For beta -> 0 its gradient is
that of ascent.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from sgtm.config import UnlearnConfig
from sgtm.train.unlearning import Batch, Objective
from sgtm.train.unlearning.ascent import token_losses


def objective(model: PreTrainedModel, reference: Callable[[], PreTrainedModel], config: UnlearnConfig) -> Objective:
    frozen = reference()

    def loss(forget: Batch, retain: Batch, domain: int) -> Tensor:
        with torch.no_grad():
            before = row_log_likelihoods(frozen, forget)
        ratio = row_log_likelihoods(model, forget) - before
        suppressed = -2 / config.beta * F.logsigmoid(-config.beta * ratio).mean()
        return suppressed + config.retain_weight * token_losses(model, retain).mean()

    return loss


def row_log_likelihoods(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(batch,) log p of each row's predicted tokens, summed."""
    logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), batch.labels[:, 1:], ignore_index=-100, reduction="none")
    return -losses.sum(-1)
