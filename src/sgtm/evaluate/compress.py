"""Coarser and sparser models: what removal suppressed rather than took away may come back when weights are rounded.

All projections of the layers are changed; embeddings, norms and the head are not. Quantisation is simulated in
floating point, with the values that integers would have: symmetric, round to nearest, one scale for each output channel
of a weight and, where ``dynamic``, for each token's activation (8 bits) in front of a projection::

    s = max|x| / (2^(b-1) - 1)        Q(x) = s clip(round(x / s))        |x - Q(x)| <= s / 2
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Scope = Literal["global", "layer"]
_ACTIVATION_BITS = 8


def projections(model: PreTrainedModel) -> list[Any]:
    """The linear maps of the layers."""
    head = model.get_output_embeddings()
    return [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]


def round_to_nearest(x: Tensor, bits: int, dim: int) -> Tensor:
    """Q(x), with one scale for all elements along ``dim``."""
    limit = 2 ** (bits - 1) - 1
    scale = x.abs().amax(dim, keepdim=True) / limit
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (x / scale).round().clamp(-limit, limit) * scale


@contextmanager
def quantized(model: PreTrainedModel, bits: int, dynamic: bool = False) -> Iterator[None]:
    """``model`` with weights of ``bits`` bits; afterwards as it was.

    Args:
        dynamic: activations are rounded to 8 bits as well, as they come.
    """
    with _restored(model) as modules:
        for module in modules:
            inputs = 0 if isinstance(module, Conv1D) else 1
            module.weight.data = round_to_nearest(module.weight.data, bits, inputs)
        hooks = [module.register_forward_pre_hook(_round_input) for module in modules if dynamic]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def pruned(model: PreTrainedModel, sparsity: float, scope: Scope = "global") -> Iterator[None]:
    """``model`` without the share ``sparsity`` of weights that are least in magnitude; afterwards as it was.

    Args:
        sparsity: of the weights that are not zero; units that were removed by zeros count for nothing.
        scope: the share is of all projections together, or of each by itself.
    """
    with _restored(model) as modules:
        for group in [modules] if scope == "global" else [[module] for module in modules]:
            weights = [(module, "weight") for module in group]
            amount = _num_pruned(group, sparsity)
            prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=amount)  # type: ignore[no-untyped-call]
        for module in modules:
            prune.remove(module, "weight")  # type: ignore[no-untyped-call]
        yield


def _num_pruned(modules: list[Any], sparsity: float) -> int:
    """Weights that are zero in the end."""
    total = sum(int(module.weight.numel()) for module in modules)
    zeros = sum(int((module.weight == 0).sum()) for module in modules)
    return zeros + round(sparsity * (total - zeros))


@contextmanager
def _restored(model: PreTrainedModel) -> Iterator[list[Any]]:
    """The projections, whose weights are put back afterwards."""
    modules = projections(model)
    before = [module.weight for module in modules]
    for module in modules:
        module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)
    try:
        yield modules
    finally:
        for module, weight in zip(modules, before, strict=True):
            module.weight = weight


def _round_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return round_to_nearest(args[0], _ACTIVATION_BITS, -1), *args[1:]
