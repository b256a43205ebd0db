"""The optimizer's own view of a partitioned model: one parameter for each part that is updated as one.

A zero gradient is no frozen weight: AdamW's momentum and weight decay go on moving it. Here the optimizer is given
*views* of the weights' storage, one for each owner's part; a view without gradient is skipped, bit for bit, its
optimizer state included. It is also what gives forget units a learning rate, a state and a step count of their own.

On sharded parameters (FSDP2) each process has views of the elements that it holds; a part of which it holds nothing is
empty. That is exact for optimizers that compute each element by itself.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from sgtm.config import ConfigError
from sgtm.model.masking import SGTM, Block, Mode
from sgtm.model.sharding import is_sharded, local, norm_over_shards


class _Part(NamedTuple):
    block: Block
    weight: nn.Parameter
    param: nn.Parameter  # what the optimizer holds: the weight itself, a view of it, or a contiguous copy
    is_copy: bool

    @property
    def is_held(self) -> bool:
        """Whether the optimizer holds the weight itself."""
        return self.param is self.weight

    def of(self, tensor: Tensor) -> Tensor:
        """This part of the weight, or of what is shaped and sharded like it: a view."""
        return local(tensor) if self.block.slice is None else self.block.slice.local(tensor)


class BlockParameters:
    """Parameters for an optimizer, and their gradients.

    ::

        blocks = BlockParameters(sgtm)
        optimizer = torch.optim.AdamW(blocks.groups(1e-3, 0.1, decayed))  # names of the parameters that decay
        blocks.attach(optimizer)
        with sgtm.batch("forget"):
            model(**batch).loss.backward()
        blocks.set_gradients("forget")  # the modes of the step's batches
        optimizer.step()                # which also clears gradients

    Args:
        contiguous: hold parts that do not lie contiguously in memory (columns) as copies, which are read before and
            written back after each step. Kernels on raw pointers need it: torch's fused optimizers write to wrong
            elements of a view with strides.
    """

    def __init__(self, sgtm: SGTM, contiguous: bool = False) -> None:
        self._sgtm, self._is_attached = sgtm, False
        model = sgtm.partition.model
        self.parts = [_part(block, model.get_parameter(block.name), contiguous) for block in sgtm.blocks()]

    def groups(
        self,
        learning_rate: float,
        weight_decay: float,
        decayed: Collection[str],
        forget_lr_scale: float = 1.0,
        by_owner: bool = False,
    ) -> list[dict[str, Any]]:
        """Parameter groups: retain and joint, then forget; each with and without weight decay.

        Args:
            decayed: names of the parameters that weight decay applies to.
            by_owner: a group for each owner instead: joint, retain, and each domain.
        """
        owners: dict[str, list[_Part]] = {}
        for part in self.parts:
            is_forget = part.block.owner not in ("joint", "retain")
            owners.setdefault(part.block.owner if by_owner else "forget" if is_forget else "retain", []).append(part)
        return [
            {
                "params": [p.param for p in parts if (p.block.name in decayed) is decay],
                "lr": learning_rate * (1.0 if owner in ("joint", "retain") else forget_lr_scale),
                "weight_decay": weight_decay if decay else 0.0,
                "owner": owner,
            }
            for owner, parts in sorted(owners.items(), key=lambda item: item[0] not in ("joint", "retain"))
            for decay in (True, False)
        ]

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep copies and weights equal around every step, and clear the gradients after it.

        Several optimizers may share the parts (Muon for matrices, AdamW for the rest): attach each.

        Raises:
            ValueError: it holds none of the parts, or is fused and holds parts that are not contiguous.
        """
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        parts = [part for part in self.parts if id(part.param) in own]
        if not parts:
            raise ValueError(f"this {type(optimizer).__name__} holds none of the parts; make it of blocks.groups(...)")
        fused = {id(p) for group in optimizer.param_groups if group.get("fused") for p in group["params"]}
        if any(id(part.param) in fused and not part.param.is_contiguous() for part in parts):
            raise ValueError(
                f"a fused {type(optimizer).__name__} would write to wrong elements of parts that do not lie "
                "contiguously in memory; make them with BlockParameters(sgtm, contiguous=True)"
            )
        self._is_attached = True
        optimizer.register_step_pre_hook(lambda *_: _read(parts))
        optimizer.register_step_post_hook(lambda *_: _write(parts))

    def set_gradients(self, modes: Mode | Iterable[str] | None = None) -> None:
        """Give each part its share of its weight's gradient, ready for ``optimizer.step()``.

        Args:
            modes: the modes of this step's batches, in any form that ``SGTM.batch`` takes. Parts that none of them may
                update get no gradient, so that the optimizer leaves them alone (``update: strict``). All parts get
                theirs by default.

        Raises:
            ValueError: an unknown mode.
            RuntimeError: no optimizer is attached.
        """
        if not self._is_attached:
            raise RuntimeError("no optimizer is attached to these parts; call blocks.attach(optimizer) once")
        present = None if modes is None else self._sgtm.names_of(modes)
        for part in self.parts:
            updated = part.weight.grad is not None and (present is None or bool(present & part.block.modes))
            if part.is_held:
                if not updated:
                    part.weight.grad = None
                continue
            if not part.is_copy and _storage(part.param) != _storage(local(part.weight)):
                part.param.data = part.of(part.weight.detach())  # moving a model gives it new storage
            part.param.grad = part.of(part.weight.grad) if updated and part.param.numel() else None  # type: ignore[arg-type]

    def gradients_by_owner(self) -> Iterator[tuple[str, list[Tensor]]]:
        """(owner, gradients of its parts), for owners that have any."""
        found: dict[str, list[Tensor]] = {}
        for part in self.parts:
            if part.param.grad is not None:
                found.setdefault(part.block.owner, []).append(part.param.grad)
        yield from found.items()

    def clip(self, max_norm: float) -> Tensor:
        """Scale each owner's gradients to a norm of at most ``max_norm`` (0: never); returns the norm of all."""
        found, norms = dict(self.gradients_by_owner()), []
        example = self.parts[0].weight
        for owner in sorted({part.block.owner for part in self.parts}):  # the same ones on all processes
            gradients = found.get(owner) or [local(example).new_zeros(1)]
            norm = norm_over_shards(torch.nn.utils.get_total_norm(gradients), example)
            for grad in gradients if max_norm else ():
                grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
            norms.append(norm)
        whole: Tensor = torch.stack(norms).norm()
        return whole


def scale_to_the_end(schedule: object, ratio: float, steps: int) -> None:
    """Let the rates of the forget units' groups (``BlockParameters.groups``) also go from 1 to ``ratio``, linearly.

    Raises:
        ConfigError: the schedule has no factor for each group.
    """
    if not isinstance(schedule, LambdaLR):
        raise ConfigError(
            f"forget_lr_end cannot be had with a {type(schedule).__name__}; use lr_scheduler_type linear, cosine, "
            "cosine_warmup_with_min_lr or another that is a function of the step"
        )

    def scaled(factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: factor(step) * (1 + (ratio - 1) * min(step / steps, 1))

    schedule.lr_lambdas = [
        factor if group["owner"] in ("joint", "retain") else scaled(factor)
        for factor, group in zip(schedule.lr_lambdas, schedule.optimizer.param_groups, strict=True)
    ]


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the layers, AdamW for embeddings, head, norms and biases, under one learning rate.

    Muon's steps are scaled to the size of AdamW's (``match_rms_adamw``, arXiv:2502.16982), so rate and decay fit both.
    Each parameter is orthogonalised by itself: with parts of weights (``BlockParameters``), the retain part and each
    domain's part by themselves.

    Args:
        params: parameter groups.
        by_adamw: the matrices that AdamW updates.
        betas: of AdamW.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        by_adamw: Iterable[Tensor] = (),
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        apart = {id(p) for p in by_adamw}
        groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for group in params:
            for is_muon, found in groups.items():
                chosen = [p for p in group["params"] if (p.ndim == 2 and id(p) not in apart) is is_muon]
                found += [{**group, "params": chosen}] if chosen else []
        self._inner: dict[str, torch.optim.Optimizer] = {}
        if groups[True]:
            muon = torch.optim.Muon(groups[True], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            self._inner["muon"] = muon
        if groups[False]:
            adamw = torch.optim.AdamW(groups[False], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
            self._inner["adamw"] = adamw
        whole = [{**g, "optimizer": name} for name, inner in self._inner.items() for g in inner.param_groups]
        super().__init__(whole, {"lr": lr, "weight_decay": weight_decay})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Both optimizers' steps, on the groups and the state of this one."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for name, inner in self._inner.items():
            inner.param_groups = [group for group in self.param_groups if group["optimizer"] == name]
            inner.state = self.state
            inner.step()
        return loss


def muon(
    model: nn.Module, learning_rate: float, betas: tuple[float, float], eps: float = 1e-8
) -> tuple[type[MuonAndAdamW], dict[str, Any]]:
    """``optimizer_cls_and_kwargs`` of a Trainer: ``MuonAndAdamW``, which leaves embeddings and head to AdamW."""
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    head = model.get_output_embeddings()  # type: ignore[operator]
    return MuonAndAdamW, {"by_adamw": [*tables, head.weight], "lr": learning_rate, "betas": betas, "eps": eps}


@torch.no_grad()
def _read(parts: list[_Part]) -> None:
    for part in parts:
        if part.is_copy and part.param.grad is not None:
            part.param.copy_(part.of(part.weight))
            part.param.grad = part.param.grad.contiguous()  # after clipping, which changes the weight's gradient


@torch.no_grad()
def _write(parts: list[_Part]) -> None:
    for part in parts:
        if part.is_copy and part.param.grad is not None:
            part.of(part.weight).copy_(part.param)
        part.param.grad = part.weight.grad = None  # views of the latter that other optimizers hold stay


def _storage(p: Tensor) -> int:
    return p.untyped_storage().data_ptr()


def _part(block: Block, weight: nn.Parameter, contiguous: bool) -> _Part:
    if block.slice is None and not is_sharded(weight):
        return _Part(block, weight, weight, is_copy=False)
    part = _Part(block, weight, weight, is_copy=False).of(weight.detach())
    is_copy = contiguous and not part.is_contiguous()
    param = nn.Parameter(part.contiguous() if is_copy else part, requires_grad=weight.requires_grad)
    return _Part(block, weight, param, is_copy)
