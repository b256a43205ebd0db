"""Maximum entropy: on the domain the model shall know nothing, its predictions be uniform (as in arXiv:2410.08827).

L = E KL(U || p(. | x_forget)) + w L_retain,   KL(U || p) = -log V - (1 / V) sum_v log p(v)
"""

import math
from collections.abc import Callable

from torch import Tensor
from transformers import PreTrainedModel

from sgtm.config import UnlearnConfig
from sgtm.train.unlearning import Batch, Objective
from sgtm.train.unlearning.ascent import logits_of, token_losses


def objective(model: PreTrainedModel, reference: Callable[[], PreTrainedModel], config: UnlearnConfig) -> Objective:
    def loss(forget: Batch, retain: Batch, domain: int) -> Tensor:
        logits, _ = logits_of(model, forget)
        from_uniform = -logits.log_softmax(-1).mean() - math.log(logits.shape[-1])
        return from_uniform + config.retain_weight * token_losses(model, retain).mean()

    return loss
