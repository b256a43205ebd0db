"""Sharded parameters: the one place that knows what they are.

``fully_shard`` (FSDP2) leaves each process a part of every parameter, its own rows, and wraps them in a ``DTensor``. A
slice of a DTensor is a redistributed *copy*: what is written to it is lost without a word. So whatever writes to slices
of weights, gradients or optimizer state goes by ``local`` and ``local_range``.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Placement, Replicate, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of ``tensor``."""
    return isinstance(tensor, DTensor)


def has_shards(model: nn.Module) -> bool:
    """Whether ``model`` is sharded, even while some of its parameters are gathered for a forward pass."""
    return any(isinstance(m, FSDPModule) for m in model.modules()) or any(map(is_sharded, model.parameters()))


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """The elements of ``tensor`` that this process holds, in the same storage; all of a tensor that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_range(tensor: Tensor, dim: int, start: int, stop: int) -> tuple[int, int]:
    """Where the elements ``start:stop`` along ``dim`` lie in ``local(tensor)``: an empty range if they are elsewhere.

    Raises:
        ValueError: this process does not hold one run of elements along ``dim``.
    """
    if not isinstance(tensor, DTensor):
        return start, stop
    here = tuple(place if place.is_shard(dim) else Replicate() for place in tensor.placements)
    held = _held(tensor.device_mesh, here, tensor.shape[dim], dim, local(tensor).device)
    if held is None:
        raise ValueError(
            f"a parameter of shape {tuple(tensor.shape)} is sharded as {tensor.placements}, not in runs along {dim}; "
            "use fully_shard with its default placement"
        )
    first, last = held
    return min(max(start, first), last) - first, min(max(stop, first), last) - first


@cache
def _held(
    mesh: DeviceMesh, placements: tuple[Placement, ...], size: int, dim: int, device: torch.device
) -> tuple[int, int] | None:
    """Which of ``size`` elements along ``dim`` this process holds, found out once: the host waits for it to be told.

    None if they are no run.
    """
    numbers = torch.arange(size, device=device)
    numbers = numbers.reshape(-1, *(1,) * dim).transpose(0, dim)  # along `dim`, so that the placements fit
    found = distribute_tensor(numbers, mesh, placements, src_data_rank=None).to_local().flatten()
    if not len(found):
        return 0, 0
    first, last = int(found[0]), int(found[-1]) + 1
    return (first, last) if last - first == len(found) else None


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, gathered from the processes that share it (all of them must ask)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """The state dict of a sharded model, gathered on the CPU of the first process (all must ask); empty elsewhere.

    None for a model that is not sharded.
    """
    if not has_shards(model):
        return None
    weights: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    return {name: weight for name, weight in weights.items() if name not in tied}


def whole_linear(linear: Any) -> Any:
    """A linear layer that every process can call by itself: ``linear``, or a copy of a sharded one."""
    if not (is_sharded(linear.weight) or isinstance(linear, FSDPModule)):
        return linear
    bias = getattr(linear, "bias", None)
    weight = whole(linear.weight).detach()
    copy = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    copy.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        copy.bias = nn.Parameter(whole(bias).detach(), requires_grad=False)
    return copy


def norm_over_shards(norm: Tensor, like: Tensor) -> Tensor:
    """The norm of all elements from that of the local ones, which are sharded as ``like`` is."""
    if not isinstance(like, DTensor):
        return norm
    square = norm.square()
    for dim, place in enumerate(like.placements):
        if place.is_shard():
            distributed.all_reduce(square, group=like.device_mesh.get_group(dim))
    return square.sqrt()
