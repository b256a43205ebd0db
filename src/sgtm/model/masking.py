"""The method, one batch at a time."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sgtm.config import MODES, Mode, nearest
from sgtm.model.partition import Partition, Slice
from sgtm.model.strategies import STRATEGIES, Strategy


class Block(NamedTuple):
    """A part of a parameter that is updated as one: ``slice`` of it, or all of it (``slice=None``)."""

    name: str
    slice: Slice | None
    is_forget: bool
    modes: frozenset[str]  # batches of these modes may update it


class SGTM:
    """Selective gradient masking of one model (arXiv:2512.05648 section 3).

    ::

        sgtm = SGTM(Partition.of(model, heads=1, neurons=64))
        with sgtm.batch("forget"):                      # forward and backward
            model(**batch).loss.backward()
        optimizer.step()

    ========  ===========================  ==============================================
    mode      forward                      backward
    ========  ===========================  ==============================================
    default   the untouched model          everything is updated
    forget    as the strategy says         gradients of frozen retain slices are zeroed
    retain    forget units give zero       the rest (so forget units get no gradient)
    ========  ===========================  ==============================================

    A retain pass computes what the ablated model computes.

    Args:
        partition: which parameters are retain, forget and joint.
        strategy: a name of ``STRATEGIES``, or a ``Strategy``.
        joint: joint parameters that forget batches leave alone as well: groups or globs, see
            ``Partition.select_joint``. The paper masks none for TinyStories, ``("embeddings", "norms")`` for
            Wikipedia.

    Raises:
        ValueError: an unknown strategy or joint parameter.
    """

    def __init__(
        self, partition: Partition, strategy: str | Strategy = "parameter_masking", joint: Sequence[str] = ()
    ) -> None:
        self.partition = partition
        self.strategy = strategy if isinstance(strategy, Strategy) else _named(strategy)
        self.mode: Mode = "default"
        self._in_batch = False
        self.frozen = tuple(s for s in partition.retain if s.site in self.strategy.frozen)
        self.frozen_joint = partition.select_joint(joint)
        hooks = [w.module.register_forward_pre_hook(partial(self._mask_units, w.split)) for w in partition.writers]
        if "sgtm_mode" not in inspect.signature(partition.model.forward).parameters:
            hooks.append(partition.model.register_forward_pre_hook(_refuse_mode_argument, with_kwargs=True))
        self._hooks = hooks

    @contextmanager
    def batch(self, mode: Mode) -> Iterator[None]:
        """Hold ``mode`` for the forward **and** the backward pass of one batch.

        On leaving a forget batch the gradients that it may not change are zeroed: those of *this* batch. Gradients
        that other batches accumulated before it in the same step are kept (they are set aside in between; run the
        forget batches of a step first and there is nothing to set aside). So nothing but forward and backward belongs
        inside: clear gradients before, step the optimizer after.

        Raises:
            ValueError: an unknown mode.
            RuntimeError: no backward pass was run inside a forget batch, so that nothing could be masked; or a batch
                inside a batch.
        """
        _check_mode(mode)
        if self._in_batch:
            raise RuntimeError(
                f"sgtm.batch({mode!r}) inside sgtm.batch({self.mode!r}): gradients of the two could not be told apart; "
                "end one before the next, and use sgtm.forward(mode) to evaluate inside"
            )
        held = self._set_gradients_aside() if mode == "forget" else []
        self._in_batch = True
        try:
            with self.forward(mode):
                yield
            if mode == "forget" and torch.is_grad_enabled():
                self._check_gradients()
                self.mask_gradients(mode)
        except BaseException:
            for p, grad in held:  # what this batch has left there is not masked
                p.grad = grad
            raise
        finally:
            self._in_batch = False
        for p, grad in held:
            if grad is not None:
                p.grad = grad if p.grad is None else grad.add_(p.grad)

    @contextmanager
    def forward(self, mode: Mode) -> Iterator[None]:
        """Hold ``mode`` for a forward pass, without touching gradients (evaluation, generation).

        Under activation checkpointing a mode that ends before the backward pass gives wrong gradients: to train, use
        ``batch``.
        """
        _check_mode(mode)
        before, self.mode = self.mode, mode
        try:
            yield
        finally:
            self.mode = before

    @torch.no_grad()
    def mask_gradients(self, mode: Mode) -> None:
        """Zero the gradients that a batch of ``mode`` may not change; ``batch`` does it by itself."""
        _check_mode(mode)
        if mode == "forget":
            for s in self.frozen:
                _zero_gradient(s)
            for name in self.frozen_joint:
                grad = self.partition.model.get_parameter(name).grad
                if grad is not None:
                    grad.zero_()
        elif mode == "retain":
            for s in self.partition.forget:
                _zero_gradient(s)

    def blocks(self) -> list[Block]:
        """The parameters cut so that each part has one owner and one set of modes that may update it.

        Order: the model's parameters; retain before forget within one.
        """
        cuts: dict[str, list[Block]] = {}
        retain = [(s, False) for s in self.partition.retain]
        for s, is_forget in retain + [(s, True) for s in self.partition.forget]:
            part = None if s.is_whole else s
            cuts.setdefault(s.name, []).append(Block(s.name, part, is_forget, self._updated_by(s, is_forget)))
        everything = frozenset(MODES)
        for name in self.partition.joint:
            modes = everything - {"forget"} if name in self.frozen_joint else everything
            cuts[name] = [Block(name, None, False, modes)]
        return [block for name, _ in self.partition.model.named_parameters() for block in cuts[name]]

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _updated_by(self, s: Slice, is_forget: bool) -> frozenset[str]:
        if is_forget:
            return frozenset({"default", "forget"})
        reached = self.strategy.reaches(s.site, s.is_output_bias)
        return frozenset(MODES) if reached else frozenset({"default", "retain"})

    def _mask_units(self, split: int, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """In front of an output projection: x (..., features), of which ``split:`` are the forget units'."""
        treatment = self.strategy.activations
        if self.mode == "default" or (self.mode == "forget" and treatment == "keep"):
            return None
        x, *rest = args
        retain, forget = x[..., :split], x[..., split:]
        if self.mode == "retain":
            forget = torch.zeros_like(forget)
        else:
            retain = retain.detach() if treatment == "detach" else torch.zeros_like(retain)
        return torch.cat((retain, forget), -1), *rest

    def _frozen_parameters(self) -> list[nn.Parameter]:
        by_name = {s.name: s.param for s in self.frozen}
        by_name |= {name: self.partition.model.get_parameter(name) for name in self.frozen_joint}
        return list(by_name.values())

    def _set_gradients_aside(self) -> list[tuple[nn.Parameter, Tensor | None]]:
        held = [(p, p.grad) for p in self._frozen_parameters()]
        for p, _ in held:
            p.grad = None
        return held

    def _check_gradients(self) -> None:
        trainable = [p for p in self._frozen_parameters() if p.requires_grad]
        if trainable and all(p.grad is None for p in trainable):
            raise RuntimeError(
                "no gradient was computed inside sgtm.batch('forget'), so none could be masked; call "
                "loss.backward() inside the block, or use sgtm.forward('forget') where nothing is trained"
            )


def _named(strategy: str) -> Strategy:
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is none of {sorted(STRATEGIES)}{nearest(strategy, STRATEGIES)}")
    return STRATEGIES[strategy]


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is none of {list(MODES)}")


def _zero_gradient(s: Slice) -> None:
    if s.param.grad is not None:
        s.of(s.param.grad).zero_()


def _refuse_mode_argument(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Hugging Face models swallow keyword arguments that they do not know."""
    if "sgtm_mode" in kwargs:
        raise TypeError(
            f"{type(model).__name__} takes no sgtm_mode={kwargs['sgtm_mode']!r}; hold the mode around forward and "
            "backward: `with sgtm.batch(mode): model(...).loss.backward()` (only GPTNeoForCausalLMSGTM takes the "
            "argument)"
        )
