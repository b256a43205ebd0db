"""Unlearning: what is done to a finished model to suppress a capability. One file a method.

A method is a function (model, reference, config) -> objective, and an objective a function of a batch of the domain, a
batch of what is retained, and the domain's number -> the loss to minimise. ``reference()`` copies the model as it is
when the objective is made.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from sgtm.config import UnlearnConfig


class Batch(NamedTuple):
    """``input_ids`` and ``labels`` (batch, seq); labels are -100 at padding."""

    input_ids: Tensor
    labels: Tensor


Objective = Callable[[Batch, Batch, int], Tensor]
Make = Callable[[PreTrainedModel, Callable[[], PreTrainedModel], UnlearnConfig], Objective]


@dataclass(frozen=True)
class Phase:
    """Steps under one objective.

    Args:
        make: makes the objective.
        begin: what is done to the model then, before the first step.
        chooses: whether ``parameters`` of the configuration says what is trained; everything is otherwise.
    """

    make: Make
    steps: int
    learning_rate: float
    begin: Callable[[PreTrainedModel, UnlearnConfig], None] | None = None
    chooses: bool = True


def phases_of(config: UnlearnConfig) -> list[Phase]:
    """What the configured method does, in order."""
    from sgtm.train.unlearning import ascent, maxent, npo, rmu, undo

    simple: Mapping[str, Make] = {
        "rmu": rmu.objective,
        "ascent": ascent.objective,
        "maxent": maxent.objective,
        "npo": npo.objective,
    }
    name = config.undo.first if config.method == "undo" else config.method
    first = Phase(simple[name], config.steps, config.learning_rate)
    if config.method != "undo":
        return [first]
    return [first, Phase(undo.objective, config.undo.steps, config.undo.learning_rate, undo.add_noise, chooses=False)]
