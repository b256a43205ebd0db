"""UNDO, Unlearn-Noise-Distill-on-Outputs (arXiv:2506.06278): suppressed, damaged, and repaired without the domain.

First any other method (``undo.first``) makes a teacher. The student is the teacher with noise,

    theta' = (1 - a) theta + a theta_0,

where theta_0 are new weights as the family starts with and a is ``undo.noise``; then it learns on retained text to say
what the teacher says: L = E KL(p_teacher || p_student). What the teacher only hides, the student need not have.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from sgtm.config import UnlearnConfig
from sgtm.model.attention import plain_config
from sgtm.train.unlearning import Batch, Objective
from sgtm.train.unlearning.ascent import logits_of


def objective(model: PreTrainedModel, reference: Callable[[], PreTrainedModel], config: UnlearnConfig) -> Objective:
    """``reference()`` is the teacher here: the model before the noise."""
    teacher = reference()

    def loss(forget: Batch, retain: Batch, domain: int) -> Tensor:
        with torch.no_grad():
            said = logits_of(teacher, retain)[0].log_softmax(-1)
        says = logits_of(model, retain)[0].log_softmax(-1)
        return F.kl_div(says, said, log_target=True, reduction="batchmean")

    return loss


@torch.no_grad()
def add_noise(model: PreTrainedModel, config: UnlearnConfig) -> None:
    """Move every parameter the share ``undo.noise`` of the way to new weights."""
    torch.manual_seed(config.seed)
    fresh = type(model)(plain_config(model))
    for parameter, new in zip(model.parameters(), fresh.parameters(), strict=True):
        parameter.lerp_(new.to(parameter), config.undo.noise)
