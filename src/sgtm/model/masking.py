"""The method, one batch at a time."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from sgtm.config import nearest
from sgtm.model.partition import Partition, Slice, Span
from sgtm.model.positions import Frozen, check_batch, frozen_modules, over, train_apart
from sgtm.model.sharding import has_shards, local
from sgtm.model.strategies import STRATEGIES, Strategy

Mode = str | Sequence[str] | Tensor
_DEFAULT, _RETAIN = 0, 1  # codes of modes; the domains follow


class Block(NamedTuple):
    """A part of a parameter that is updated as one: ``slice`` of it, or all of it (``slice=None``)."""

    name: str
    slice: Slice | None
    owner: str  # retain, joint, or a domain
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
    retain    forget units give zero       the rest (so forget units get no gradient)
    forget    as the strategy says         gradients of frozen retain slices are zeroed
    ========  ===========================  ==============================================

    With several domains each has a mode of its name in place of ``forget``: the units of the other domains give zero.
    A retain pass computes what the ablated model computes.

    A mode is a name for the whole batch; or names, one for each example; or codes (indices into ``partition.modes``), a
    LongTensor (batch,) or (batch, seq). Then one forward and one backward pass train every position in its own mode
    (``sgtm.model.positions`` says exactly what that means).

    Args:
        partition: which parameters are retain, forget and joint.
        strategy: a name of ``STRATEGIES``, or a ``Strategy``.
        joint: joint parameters that forget batches leave alone as well: groups or globs, see
            ``Partition.select_joint``. The paper masks none for TinyStories, ``("embeddings", "norms")`` for
            Wikipedia.

    Raises:
        ValueError: an unknown strategy or joint parameter.
        TypeError: no partition.
    """

    def __init__(
        self, partition: Partition, strategy: str | Strategy = "parameter_masking", joint: Sequence[str] = ()
    ) -> None:
        if not isinstance(partition, Partition):
            raise TypeError(
                f"SGTM({type(partition).__name__}): give a partition, SGTM(Partition.of(model, heads=1, ...))"
            )
        self.partition = partition
        self.strategy = strategy if isinstance(strategy, Strategy) else _named(strategy)
        self._forget = next(iter(partition.domains)) if len(partition.domains) == 1 else "forget"  # what that means
        self.mode: str | Tensor = "default"  # a name, or codes (batch, 1 or seq); () where all positions have one
        self._silenced: frozenset[str] = frozenset()  # domains whose units give zero whatever the mode
        self._heard: frozenset[str] = frozenset()  # domains whose units are not silenced by other modes
        self._in_batch = False
        self._are_apart = False  # inside train_apart
        self._is_closed = False
        self._checkpointing = [m for m in partition.model.modules() if hasattr(m, "gradient_checkpointing")]
        self.frozen = tuple(s for s in partition.retain if s.site in self.strategy.frozen)
        self.frozen_joint = partition.select_joint(joint)
        hooks = [w.module.register_forward_pre_hook(partial(self._mask_units, w.spans)) for w in partition.writers]
        hooks.append(partition.model.get_input_embeddings().register_forward_pre_hook(self._check_batch))
        if "sgtm_mode" not in inspect.signature(partition.model.forward).parameters:
            hooks.append(partition.model.register_forward_pre_hook(_refuse_mode_argument, with_kwargs=True))
        self._hooks = hooks

    @contextmanager
    def batch(self, mode: Mode) -> Iterator[None]:
        """Hold ``mode`` for the forward **and** the backward pass of one batch.

        On leaving a forget batch the gradients that it may not change are zeroed: those of *this* batch. Gradients
        that other batches accumulated before it in the same step are kept (they are set aside in between; run the
        forget batches of a step first and there is nothing to set aside). So nothing but forward and backward belongs
        inside: clear gradients before, step the optimizer after. Where each example or position has a mode of its
        own, in several processes, on sharded parameters (FSDP2), and where a hook takes gradients as they arrive (an
        optimizer inside the backward pass), they are masked as they arise: others see only the sum.

        Raises:
            ValueError: an unknown mode, or modes that do not fit the batch.
            RuntimeError: no backward pass was run inside a forget batch, so that nothing could be masked, or inside any
                under activation checkpointing; a batch inside a batch; or this SGTM is closed.
        """
        with self._batch(self._resolve(mode), _are_several_processes()):
            yield

    @contextmanager
    def batch_before_reduction(self, mode: Mode) -> Iterator[None]:
        """``batch``, where no other process gets the gradients of this backward pass before the block has ended.

        Under DDP that is so inside ``no_sync``. It is faster there for a mode that is one name.
        """
        with self._batch(self._resolve(mode), is_reduced=False):
            yield

    @contextmanager
    def _batch(self, mode: str | Tensor, is_reduced: bool) -> Iterator[None]:
        slices, joint = self._masked_by(mode)
        if isinstance(mode, str) and (slices or joint) and (is_reduced or self._are_gradients_taken(slices, joint)):
            code = self.partition.modes.index(mode)
            mode, slices, joint = torch.tensor(code, device=self.partition.model.device), (), ()
        if self._in_batch:
            raise RuntimeError(
                f"sgtm.batch({_shown(mode)}) inside sgtm.batch({_shown(self.mode)}): gradients of the two could not be "
                "told apart; end one before the next, and use sgtm.forward(mode) to evaluate inside"
            )
        held = self._set_gradients_aside(slices, joint)
        arrived = self._arrived()
        self._in_batch = True
        try:
            with self._hold(mode):
                yield
            if torch.is_grad_enabled():
                self._check_gradients(mode)
                self._zero(slices, joint)
                if arrived is not None and arrived == self._arrived():
                    raise _nothing_computed(mode, "what is computed again for it would be in no mode")
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

        Raises:
            ValueError: an unknown mode, or modes that do not fit the batch.
        """
        with self._hold(self._resolve(mode)):
            yield

    @contextmanager
    def without(self, *domains: str) -> Iterator[None]:
        """Compute what ``partition.ablate(*domains)`` would leave, without changing a weight; all domains by default.

        Raises:
            ValueError: a name that is no domain.
            RuntimeError: this SGTM is closed.
        """
        self._check_open()
        before, self._silenced = self._silenced, self._silenced | set(self.partition.select_domains(domains))
        try:
            yield
        finally:
            self._silenced = before

    @contextmanager
    def hearing(self, *domains: str) -> Iterator[None]:
        """Let the units of ``domains`` take part in batches that would silence them, without learning from these.

        A model of several domains is used with all of them, or all but some, though each domain trains while the others
        are silent. With some steps under ``hearing`` of a random part of them it learns to live with any part. It goes
        around ``batch``: ``with sgtm.hearing("cyber"), sgtm.batch("retain"):``.

        Raises:
            ValueError: a name that is no domain.
            RuntimeError: inside a batch.
        """
        self._check_outside("hearing")
        before, self._heard = self._heard, frozenset(self.partition.select_domains(domains) if domains else ())
        try:
            yield
        finally:
            self._heard = before

    @contextmanager
    def spreading(self) -> Iterator[None]:
        """Let batches of a domain update all that retain batches may, as well as the domain's own units.

        (GRAM's auxiliary spread, arXiv:2607.08077; what the strategy does to activations stays.) It goes around
        ``batch``.

        Raises:
            RuntimeError: inside a batch.
        """
        self._check_outside("spreading")
        before = self.frozen, self.frozen_joint
        self.frozen, self.frozen_joint = (), ()
        try:
            yield
        finally:
            self.frozen, self.frozen_joint = before

    @torch.no_grad()
    def mask_gradients(self, mode: Mode) -> None:
        """Zero the gradients that a batch of ``mode`` may not change; ``batch`` does it by itself.

        Gradients of a batch with several modes are masked as they arise: there is nothing left to do for it.

        Raises:
            ValueError: an unknown mode.
        """
        mode = self._resolve(mode)
        if isinstance(mode, Tensor) or mode == "default":
            return
        for s in self.partition.forget:
            if s.domain != mode:
                _zero_gradient(s)
        if mode != "retain":
            self._zero(self.frozen, self.frozen_joint)

    def blocks(self) -> list[Block]:
        """The parameters cut so that each part has one owner and one set of modes that may update it.

        Order: the model's parameters; retain before forget within one.
        """
        cuts: dict[str, list[Block]] = {}
        for s in (*self.partition.retain, *self.partition.forget):
            part = None if s.is_whole else s
            cuts.setdefault(s.name, []).append(Block(s.name, part, s.domain or "retain", self._updated_by(s)))
        everything = frozenset(self.partition.modes)
        for name in self.partition.joint:
            modes = everything - set(self.partition.domains) if name in self.frozen_joint else everything
            cuts[name] = [Block(name, None, "joint", modes)]
        return [block for name, _ in self.partition.named_parameters() for block in cuts[name]]

    def close(self) -> None:
        """Take the hooks off the model; this SGTM can hold no mode afterwards."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._is_closed = [], True

    def __deepcopy__(self, memo: dict[int, Any]) -> "SGTM":
        """Copies of a model take copies of its SGTM along, in its hooks: they are in no mode, whatever this one is."""
        if self._are_apart:
            raise RuntimeError(
                f"a copy made inside {_shown(self.mode)} would compute with this model's weights; copy it outside"
            )
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        unheld = {"mode": "default", "_silenced": frozenset(), "_heard": frozenset(), "_in_batch": False}
        vars(copied).update(deepcopy(vars(self) | unheld, memo))
        return copied

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("this SGTM is closed, so it masks nothing; make another: SGTM(Partition.of(model, ...))")

    def _check_outside(self, what: str) -> None:
        if self._in_batch or self._are_apart:
            raise RuntimeError(
                f"sgtm.{what}(...) inside a batch comes too late: what the batch may change is settled where it "
                f"begins; enter it first: `with sgtm.{what}(...), sgtm.batch(mode):`"
            )

    def _are_gradients_taken(self, slices: Sequence[Slice], joint: Sequence[str]) -> bool:
        """Whether somebody sees gradients as they arrive, before they could be masked."""
        return has_shards(self.partition.model) or any(map(_has_hooks, self._parameters(slices, joint)))

    def _arrived(self) -> list[tuple[int, int] | None] | None:
        """Which gradients there are and how often they were changed, where that has to be known: under activation
        checkpointing, whose backward pass computes the forward pass again."""
        if not any(module.gradient_checkpointing and module.training for module in self._checkpointing):
            return None
        parameters = list(self.partition.model.parameters())
        return None if any(map(_has_hooks, parameters)) else [_version(p.grad) for p in parameters]

    def _updated_by(self, s: Slice) -> frozenset[str]:
        if s.domain is not None:
            return frozenset({"default", s.domain})
        reached = self.strategy.reaches(s.site, s.is_output_bias)
        return frozenset(self.partition.modes) if reached else frozenset({"default", "retain"})

    def names_of(self, modes: Mode | Iterable[str]) -> frozenset[str]:
        """The modes that are meant: one name, several, or codes of any shape that ``batch`` takes.

        Raises:
            ValueError: an unknown mode, or none.
        """
        if isinstance(modes, Tensor):
            return frozenset(self.partition.modes[code] for code in self._codes(modes).unique().tolist())
        return frozenset(self._names(modes))

    def _names(self, modes: Any) -> tuple[str, ...]:
        known = self.partition.modes
        if not isinstance(modes, Iterable):
            raise ValueError(
                f"mode={modes!r} is no mode; give one of {list(known)}, a list of them, or a LongTensor of codes"
            )
        given = (modes,) if isinstance(modes, str) else modes
        names = tuple(self._forget if name == "forget" else name for name in given)
        for name in names:
            if name not in known:
                hint = "" if isinstance(name, str) else "; codes go into a LongTensor"
                raise ValueError(f"mode={name!r} is none of {list(known)}{hint}")
        if not names:
            raise ValueError("mode=[] names no mode; give one for each example of the batch")
        return names

    def _resolve(self, mode: Mode) -> str | Tensor:
        """``mode`` as a name, or as codes (batch, 1 or seq) on the model's device."""
        if isinstance(mode, Tensor):
            return self._codes(mode)
        names = self._names(mode)
        if isinstance(mode, str):
            return names[0]
        codes = [[self.partition.modes.index(name)] for name in names]
        return torch.tensor(codes, device=self.partition.model.device)

    def _codes(self, mode: Tensor) -> Tensor:
        if mode is self.mode:  # a block that is told the model's
            return mode
        known = self.partition.modes
        is_integer = not (mode.is_floating_point() or mode.is_complex() or mode.dtype == torch.bool)
        if mode.ndim not in (1, 2) or not is_integer or not mode.numel():
            raise ValueError(
                f"mode of shape {tuple(mode.shape)} and type {mode.dtype}: give codes of type torch.long, (batch,) or "
                "(batch, seq)"
            )
        low, high = (int(bound) for bound in mode.aminmax())
        if low < 0 or high >= len(known):
            raise ValueError(
                f"mode has the code {low if low < 0 else high}; the codes of {list(known)} are 0 to {len(known) - 1}"
            )
        return mode.to(self.partition.model.device, non_blocking=mode.device.type == "cpu").reshape(len(mode), -1)

    @contextmanager
    def _hold(self, mode: str | Tensor) -> Iterator[None]:
        self._check_open()
        before, were_apart = self.mode, self._are_apart
        are_apart = were_apart or isinstance(mode, Tensor)
        apart = self._frozen_modules() if are_apart and not were_apart else ()
        self.mode, self._are_apart = mode, are_apart
        try:
            with train_apart(apart, self._spared):
                yield
        finally:
            self.mode, self._are_apart = before, were_apart

    def _frozen_modules(self) -> list[Frozen]:
        heard = [s for s in self.partition.forget if s.domain in self._heard]
        return frozen_modules(self.partition.model, (*self.frozen, *heard), self.frozen_joint)

    def _spared(self, domain: str | None) -> Tensor | None:
        """Positions (batch, 1 or seq) that leave the parameters of ``domain`` (None: frozen retain and joint ones)
        alone; None where one mode holds for all."""
        if not isinstance(self.mode, Tensor):
            return None
        return self.mode > _RETAIN if domain is None else self._others(domain)

    def _others(self, domain: str) -> Tensor:
        """Positions (batch, 1 or seq) in retain mode or that of another domain."""
        assert isinstance(self.mode, Tensor)
        return (self.mode != _DEFAULT) & (self.mode != self.partition.modes.index(domain))

    def _check_batch(self, embedding: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(self.mode, Tensor) and args:
            check_batch(self.mode, args[0])

    def _mask_units(self, spans: tuple[Span, ...], module: nn.Module, args: tuple[Tensor, ...]) -> Any:
        """In front of an output projection: x (..., features), each span of which one owner's units have written."""
        treatments = [self._treatment(span.domain) for span in spans]
        if not any(treatments):
            return None
        x, *rest = args
        parts = [_treat(x[..., s.start : s.stop], t) for s, t in zip(spans, treatments, strict=True)]
        return torch.cat(parts, -1), *rest

    def _treatment(self, domain: str | None) -> "_Treatment | None":
        """What becomes of the activations of ``domain``'s units (None: of retain units), and at which positions."""
        if domain is None:
            how = self.strategy.activations
            if how == "keep" or self.mode in ("default", "retain"):
                return None
            return _Treatment(how, self._spared(None))
        if domain in self._silenced:
            return _Treatment("zero", None)
        if domain in self._heard or (not isinstance(self.mode, Tensor) and self.mode in ("default", domain)):
            return None
        return _Treatment("zero", self._others(domain) if isinstance(self.mode, Tensor) else None)

    def _masked_by(self, mode: str | Tensor) -> tuple[Sequence[Slice], Sequence[str]]:
        """Slices, and names of joint parameters, whose gradients are zeroed after a batch of ``mode``.

        Silent units get no gradient in the first place.
        """
        if isinstance(mode, Tensor) or mode == "default":
            return (), ()
        heard = [s for s in self.partition.forget if s.domain in self._heard - {mode}]
        return (heard, ()) if mode == "retain" else ((*self.frozen, *heard), self.frozen_joint)

    @torch.no_grad()
    def _zero(self, slices: Sequence[Slice], joint: Sequence[str]) -> None:
        for s in slices:
            _zero_gradient(s)
        for name in joint:
            grad = self.partition.model.get_parameter(name).grad
            if grad is not None:
                local(grad).zero_()

    def _parameters(self, slices: Sequence[Slice], joint: Sequence[str]) -> list[nn.Parameter]:
        by_name = {s.name: s.param for s in slices}
        by_name |= {name: self.partition.model.get_parameter(name) for name in joint}
        return list(by_name.values())

    def _set_gradients_aside(
        self, slices: Sequence[Slice], joint: Sequence[str]
    ) -> list[tuple[nn.Parameter, Tensor | None]]:
        held = [(p, p.grad) for p in self._parameters(slices, joint)]
        for p, _ in held:
            p.grad = None
        return held

    def _check_gradients(self, mode: str | Tensor) -> None:
        if isinstance(mode, Tensor) or mode not in self.partition.domains:
            return
        trainable = [p for p in self._parameters(self.frozen, self.frozen_joint) if p.requires_grad]
        if trainable and all(p.grad is None for p in trainable):
            raise _nothing_computed(mode, "none could be masked")


class _Treatment(NamedTuple):
    how: str  # zero or detach
    where: Tensor | None  # positions (batch, 1 or seq); None: everywhere


def _treat(part: Tensor, treatment: _Treatment | None) -> Tensor:
    """``part`` (..., features) of an activation."""
    if treatment is None:
        return part
    if treatment.where is None:
        return torch.zeros_like(part) if treatment.how == "zero" else part.detach()
    where = over(treatment.where, part)
    return part.masked_fill(where, 0.0) if treatment.how == "zero" else torch.where(where, part.detach(), part)


def _named(strategy: str) -> Strategy:
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is none of {sorted(STRATEGIES)}{nearest(strategy, STRATEGIES)}")
    return STRATEGIES[strategy]


def _shown(mode: str | Tensor) -> str:
    return repr(mode) if isinstance(mode, str) else f"modes of shape {tuple(mode.shape)}"


def _nothing_computed(mode: str | Tensor, why: str) -> RuntimeError:
    return RuntimeError(
        f"no gradient was computed inside sgtm.batch({_shown(mode)}), so {why}; call loss.backward() inside the block, "
        "or use sgtm.forward(...) where nothing is trained"
    )


def _are_several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _has_hooks(p: nn.Parameter) -> bool:
    return bool(getattr(p, "_post_accumulate_grad_hooks", None))


def _version(grad: Tensor | None) -> tuple[int, int] | None:
    return None if grad is None else (id(grad), grad._version)


def _zero_gradient(s: Slice) -> None:
    if s.param.grad is not None:
        s.local(s.param.grad).zero_()


def _refuse_mode_argument(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Hugging Face models swallow keyword arguments that they do not know."""
    if "sgtm_mode" in kwargs:
        raise TypeError(
            f"{type(model).__name__} takes no sgtm_mode={kwargs['sgtm_mode']!r}; hold the mode around forward and "
            "backward: `with sgtm.batch(mode): model(...).loss.backward()` (only GPTNeoForCausalLMSGTM takes the "
            "argument)"
        )
