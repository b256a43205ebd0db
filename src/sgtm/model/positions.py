"""Every position of a batch in its own mode, in one forward and one backward pass.

``mode[i, t]`` is the mode of position t of example i: the position that reads token t and predicts token t + 1. Each
module of a decoder but attention computes a position from that position alone, so what a mode means carries over as it
stands, position by position:

- activations: units that the mode silences (or detaches) are silent (detached) *at that position*;
- gradients: what is computed at that position with a parameter that the mode may not change counts as computed with a
  constant, ``where(mask, W, W.detach())``. All else is trained. The gradient with respect to activations is whole.
  Units that a mode silences are silent, not constant: keys and values of forget heads at a retain position still learn
  from forget positions that read them.

Attention lets positions read each other, whatever their modes: a later retain position reads the key and value of an
earlier forget position, and each was computed as its own position's mode says. So the loss of a retain position that
flows back to a forget position changes forget parameters there and no frozen one; and the loss of a forget position
that flows back to earlier retain positions changes, *there*, what a retain position may change. Where examples, or
packed documents that do not attend to each other, have one mode each, nothing flows across, and the gradient is the
sum of what batches of one mode each would give.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from sgtm.model.split_linear import SplitLinearOut

Forward = Callable[..., Any]
Spared = Callable[[str | None], "Tensor | None"]  # domain -> where its parameters are constant (None: retain's, joint)
_LINEAR = {nn.Linear.forward, Conv1D.forward, SplitLinearOut.forward}


class Part(NamedTuple):
    """Elements ``start:stop`` along ``dim`` of a parameter of ``domain`` (None: retain or joint)."""

    dim: int
    start: int
    stop: int
    domain: str | None


class Frozen(NamedTuple):
    """A module, and by name the parts of its parameters that some positions leave alone."""

    module: nn.Module
    parts: dict[str, list[Part]]

    @property
    def domains(self) -> list[str | None]:
        """Whose parts they are."""
        return list(dict.fromkeys(part.domain for parts in self.parts.values() for part in parts))


def frozen_modules(model: nn.Module, slices: Sequence[Any], joint: Sequence[str]) -> list[Frozen]:
    """The modules that hold ``slices`` (of a ``Partition``) or the parameters named ``joint``; tied ones all."""
    found: dict[int, Frozen] = {}

    def add(module: nn.Module, name: str, part: Part) -> None:
        found.setdefault(id(module), Frozen(module, {})).parts.setdefault(name, []).append(part)

    for s in slices:
        add(s.module, s.name.rpartition(".")[2], Part(s.dim, s.start, s.stop, s.domain))
    whole = {id(model.get_parameter(name)) for name in joint}
    for module in model.modules() if whole else ():
        for name, p in module.named_parameters(recurse=False):
            if id(p) in whole:
                add(module, name, Part(0, 0, len(p), None))
    return list(found.values())


@contextmanager
def train_apart(frozen: Sequence[Frozen], spared: Spared) -> Iterator[None]:
    """Meanwhile the modules' frozen parts are constants at the positions (batch, 1 or seq) that ``spared`` names.

    Raises:
        RuntimeError: at the end, if a frozen parameter got a gradient and its module was never called.
    """
    called: set[int] = set()
    before = [_gradients(one) for one in frozen]
    with ExitStack() as stack:
        for one in frozen:
            stack.enter_context(computing(one.module, _noted(called, one, spared)))
        yield
    for one, earlier in zip(frozen, before, strict=True):
        if id(one.module) not in called and _gradients(one) != earlier:
            raise RuntimeError(
                f"a weight of {type(one.module).__name__} ({sorted(one.parts)}), which some positions may not change, "
                "got a gradient though the module was not called: code that reads weights by itself (a fused or "
                "chunked loss, say) cannot be masked by position; turn it off, or use batches of one mode"
            )


def _noted(called: set[int], frozen: Frozen, spared: Spared) -> Forward:
    """The module's forward of the meantime; ``called`` is told that it, or what stands in for it, was asked."""
    forward, name = _apart(frozen, spared), id(frozen.module)

    def noted(*args: Any, **kwargs: Any) -> Any:
        called.add(name)
        return forward(*args, **kwargs)

    def constants() -> dict[str, Tensor]:
        called.add(name)
        where = spared(None)
        return {} if where is None else dict.fromkeys(frozen.parts, where)

    if all(len(parts) == 1 and parts[0].domain is None for parts in frozen.parts.values()):
        noted.constants = constants  # type: ignore[attr-defined]
    return noted


def constants_of(module: nn.Module) -> dict[str, Tensor]:
    """For code that computes ``module`` by itself: by name, the positions (batch, 1 or seq) at which its parameters
    are constants just now. It has to honour them; nobody else will."""
    constants = getattr(vars(module).get("forward"), "constants", dict)
    return constants()  # type: ignore[no-any-return]


def _gradients(frozen: Frozen) -> list[tuple[int, int] | None]:
    """Which gradients there are, and how often they were changed."""
    grads = [frozen.module.get_parameter(name).grad for name in frozen.parts]
    return [None if grad is None else (id(grad), grad._version) for grad in grads]


@contextmanager
def computing(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Meanwhile ``module`` computes ``forward``."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _apart(frozen: Frozen, spared: Spared) -> Forward:
    module, forward = frozen.module, frozen.module.forward
    if isinstance(module, nn.Embedding):
        return lambda *args, **kwargs: _detached(forward(*args, **kwargs), spared(None))
    if getattr(type(module), "forward", None) in _LINEAR and "forward" not in vars(module):
        return lambda x: _linear(frozen, x, spared)
    return lambda *args, **kwargs: _again(frozen, forward, spared, *args, **kwargs)


def over(positions: Tensor, x: Tensor) -> Tensor:
    """``positions`` (batch, 1 or seq) in a shape that broadcasts over x: (batch, seq, ...), (batch * seq, ...), or, as
    norms of queries and keys may have it, (batch, heads, seq, features).

    () is all positions, or none.

    Raises:
        ValueError: they do not fit.
    """
    if positions.ndim == 0:
        return positions
    batch, seq = positions.shape
    if x.ndim > 3 and 1 < seq == x.shape[1] == x.shape[2]:
        raise _misfit(
            positions, f"activations of shape {tuple(x.shape)}, whose heads and positions cannot be told apart"
        )
    if x.ndim > 2 and x.shape[0] in (1, batch) and (seq == 1 or x.shape[1] == seq):
        return positions.reshape(batch, seq, *(1,) * (x.ndim - 2))
    if x.ndim == 4 and x.shape[0] == batch and x.shape[2] == seq:
        return positions[:, None, :, None]
    if x.ndim == 2 and len(x) % (batch * seq) == 0 and (seq == 1 or len(x) == batch * seq):
        return positions.reshape(-1).repeat_interleave(len(x) // (batch * seq))[:, None]
    raise _misfit(positions, f"activations of shape {tuple(x.shape)}")


def check_batch(positions: Tensor, ids: Tensor) -> None:
    """Behind the embedding a batch of one would be repeated for each of ``positions`` without a word.

    Raises:
        ValueError: ``ids`` (batch, seq) are not as many examples as ``positions`` (batch, 1 or seq).
    """
    if positions.ndim and len(ids) != len(positions):
        raise _misfit(positions, f"a batch of shape {tuple(ids.shape)}")


def _misfit(positions: Tensor, what: str) -> ValueError:
    batch, seq = positions.shape
    return ValueError(
        f"modes of shape {(batch,) if seq == 1 else (batch, seq)} do not fit {what}; "
        "give one mode for each example of the batch, or one for each of its positions"
    )


def _detached(y: Tensor, where: Tensor | None) -> Tensor:
    return y if where is None else torch.where(over(where, y), y.detach(), y)


def _again(frozen: Frozen, forward: Forward, spared: Spared, *args: Any, **kwargs: Any) -> Any:
    """Any module that computes each position alone: once with its parameters, and once for each set of domains whose
    parts are constant at some position."""
    y = forward(*args, **kwargs)
    masks = {domain: spared(domain) for domain in frozen.domains}
    if any(mask is None for mask in masks.values()):
        return y
    if not isinstance(y, Tensor):
        raise TypeError(
            f"{type(frozen.module).__name__} holds {sorted(frozen.parts)}, which forget positions leave alone, and "
            "gives more than one tensor: only whole batches of one mode can do that; leave it out of joint"
        )
    for size in range(1, len(masks) + 1):
        for domains in combinations(masks, size):  # a larger set holds at fewer positions, and has the last word
            constant = {
                f"module.{name}": _constant(
                    frozen.module.get_parameter(name), [p for p in parts if p.domain in domains]
                )
                for name, parts in frozen.parts.items()
            }
            z = functional_call(_Bare(frozen.module, forward), constant, args, kwargs)
            where = torch.stack([masks[domain] for domain in domains]).all(0)  # type: ignore[misc]
            y = torch.where(over(where, y), z, y)
    return y


class _Bare(nn.Module):
    """``forward`` of a module without the module's hooks, which have run (FSDP's gather its parameters)."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.module, self.compute = module, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.compute(*args, **kwargs)


def _constant(p: Tensor, parts: list[Part]) -> Tensor:
    """``p`` without gradient in ``parts``."""
    mask = torch.zeros(p.shape, dtype=torch.bool, device=p.device)
    for part in parts:
        mask.narrow(part.dim, part.start, part.stop - part.start).fill_(True)
    return torch.where(mask, p.detach(), p)


def _linear(frozen: Frozen, x: Tensor, spared: Spared) -> Tensor:
    """``x`` (..., in) W^T + b (..., out); where ``spared``, frozen parts of W and b get no gradient."""
    module: Any = frozen.module
    weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
    bias = module.bias
    domains = frozen.domains
    masks = [spared(domain) for domain in domains]
    if any(mask is None for mask in masks):
        return F.linear(x, weight, bias)
    features = tuple(_features(frozen, domain) for domain in domains)
    device = x.device.type
    if torch.is_autocast_enabled(device):  # a function of our own is not cast by it
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    where = [over(mask, x) for mask in masks if mask is not None]
    y: Tensor = _MaskedLinear.apply(x, weight, bias, features, *where)  # type: ignore[no-untyped-call]
    return y


Runs = tuple[tuple[int, int], ...]


class Features(NamedTuple):
    """(outputs whose weights are frozen, inputs whose weights are, outputs whose bias is)."""

    rows: Runs
    columns: Runs
    biases: Runs


def _features(frozen: Frozen, domain: str | None) -> Features:
    """The features of ``domain``'s frozen parts."""
    found: dict[str, list[tuple[int, int]]] = {"rows": [], "columns": [], "biases": []}
    for name, parts in frozen.parts.items():
        for dim, start, stop, owner in parts:
            is_row = (dim == 0) != isinstance(frozen.module, Conv1D)
            kind = "biases" if name.startswith("bias") else "rows" if is_row else "columns"
            if owner == domain:
                found[kind].append((start, stop))
    return Features(*(tuple(runs) for runs in found.values()))


class _MaskedLinear(torch.autograd.Function):
    """y = x W^T + b, and in backward, with k = 1 - spared at each position:

    dL/dx = g W, dL/dW[r] = (k g[r])^T x for frozen outputs r, dL/dW[:, c] = g^T (k x[c]) for frozen inputs c,
    dL/db[r] = sum of k g[r] for frozen outputs r. Each domain's parts have a ``spared`` of their own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, features: tuple[Features, ...], *spared: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *spared)
        ctx.features = features
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, *spared = ctx.saved_tensors
        rows, columns, biases = zip(*ctx.features, strict=True)
        dx = g @ weight if ctx.needs_input_grad[0] else None
        masked = _silenced(g, rows, spared)
        dw = db = None
        if ctx.needs_input_grad[1]:
            dw = masked.flatten(0, -2).t() @ _silenced(x, columns, spared).flatten(0, -2)
        if ctx.needs_input_grad[2]:
            db = (masked if biases == rows else _silenced(g, biases, spared)).flatten(0, -2).sum(0)
        return dx, dw, db, None, *(None for _ in spared)


def _silenced(x: Tensor, runs: Sequence[Runs], where: Sequence[Tensor]) -> Tensor:
    """``x`` with the features in each of ``runs`` zero ``where``."""
    if not any(runs):
        return x
    if len(runs) == 1 and runs[0] == ((0, x.shape[-1]),):
        return x.masked_fill(where[0], 0.0)
    x = x.clone()
    for features, positions in zip(runs, where, strict=True):
        for start, stop in features:
            x[..., start:stop].masked_fill_(positions, 0.0)
    return x
