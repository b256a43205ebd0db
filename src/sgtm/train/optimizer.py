"""The optimizer's own view of a partitioned model: one parameter for each part that is updated as one.

A zero gradient is no frozen weight: AdamW's momentum and weight decay go on moving it. Here the optimizer is given
*views* of the weights' storage, one for retain and one for forget units; a view without gradient is skipped, bit for
bit, its optimizer state included. It is also what gives forget units a learning rate of their own.
"""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from torch import nn

from sgtm.model.masking import SGTM, Block


class _Part(NamedTuple):
    block: Block
    weight: nn.Parameter
    param: nn.Parameter  # what the optimizer holds: the weight itself, or a view of it


class BlockParameters:
    """Parameters for an optimizer, and their gradients.

    The optimizer must not be a fused one: torch's fused AdamW writes to wrong elements of non-contiguous views.
    """

    def __init__(self, sgtm: SGTM) -> None:
        self.parts = [_part(block, sgtm.partition.model.get_parameter(block.name)) for block in sgtm.blocks()]

    def groups(
        self, learning_rate: float, weight_decay: float, decayed: Collection[str], forget_lr_scale: float = 1.0
    ) -> list[dict[str, Any]]:
        """Parameter groups: retain and joint, then forget; each with and without weight decay.

        Args:
            decayed: names of the parameters that weight decay applies to.
        """
        return [
            {
                "params": [
                    p.param for p in self.parts if p.block.is_forget is forget and (p.block.name in decayed) is decay
                ],
                "lr": learning_rate * (forget_lr_scale if forget else 1.0),
                "weight_decay": weight_decay if decay else 0.0,
            }
            for forget in (False, True)
            for decay in (True, False)
        ]

    def set_gradients(self, modes: Iterable[str] | None = None) -> None:
        """Give each part its share of its weight's gradient, ready for ``optimizer.step()``.

        Args:
            modes: the modes of this step's batches. Parts that none of them may update get no gradient, so that the
                optimizer leaves them alone (``update: strict``). All parts get theirs by default.
        """
        present = None if modes is None else frozenset(modes)
        for part in self.parts:
            updated = part.weight.grad is not None and (present is None or bool(present & part.block.modes))
            if part.block.slice is None:
                if not updated:
                    part.weight.grad = None
                continue
            if part.param.untyped_storage().data_ptr() != part.weight.untyped_storage().data_ptr():
                # Moving or wrapping a model gives its weights new storage.
                part.param.data = part.block.slice.of(part.weight.detach())
            part.param.grad = part.block.slice.of(part.weight.grad) if updated else None  # type: ignore[arg-type]

    def clear_gradients(self) -> None:
        for part in self.parts:
            part.param.grad = None


def _part(block: Block, weight: nn.Parameter) -> _Part:
    if block.slice is None:
        return _Part(block, weight, weight)
    return _Part(block, weight, nn.Parameter(block.slice.of(weight.detach()), requires_grad=weight.requires_grad))
