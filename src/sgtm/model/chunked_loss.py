"""The next-token loss without the logits of a whole batch.

    loss = sum_i -log softmax(W h_i + b)[y_i] / num_items

Logits are made for some tokens at a time, in the precision of the model's own head; their losses, and at once their
gradients, are taken in fp32 as the library does, and the logits are gone. So of (tokens, vocabulary) no more than
``_ENTRIES`` entries exist (more on a GPU, where one kernel makes losses and gradients). torch's own fused operator was
measured on CPUs: in bf16 it is wrong, and in fp32 slower.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from sgtm.model.positions import computing, constants_of
from sgtm.model.sharding import has_shards

_ENTRIES = 2**25  # of logits at a time on a CPU: 134 MB in fp32; fewer read a large head's weights too often
_ENTRIES_ELSEWHERE = 2**27  # on an H200 half of them takes up to a sixth longer, four times as many save 3 to 9 %
_LARGE = 2**20  # more of them are faster in chunks in fp32, as measured on a CPU
_LARGE_IN_LOW_PRECISION = 2**26  # in bf16 chunks are slower there, so they are for what would not fit otherwise
_LARGE_ELSEWHERE = 2**24  # from 2**25.6 on as fast as whole or faster, on an H200; fewer were not tried
_ALIGNED = 64  # GPUs multiply matrices of other sizes in half precision several times slower (GPT-2 has 50,257 tokens)
_IGNORED = -100


def chunked_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    entries: int | None = None,
    constant: dict[str, Tensor] | None = None,
) -> Tensor:
    """The sum of token losses of softmax(hidden weight^T + bias), in nats; () in fp32.

    Args:
        hidden: (tokens, hidden), what the head reads.
        weight, bias: (vocab, hidden) and (vocab,), of the head.
        targets: (tokens,); -100 where nothing is to be predicted.
        entries: of logits that exist at a time, about; by default what suits the device.
        constant: (tokens,) each, the tokens that give ``weight`` or ``bias`` no gradient.
    """
    entries = entries or entries_at_a_time(hidden.device)
    dtype = weight.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    wheres = [(constant or {}).get(name) for name in ("weight", "bias")]
    size, is_trained = max(1, entries // len(weight)), torch.is_grad_enabled()
    return _ChunkedLoss.apply(hidden, weight, bias, targets, dtype, size, is_trained, *wheres)  # type: ignore[no-any-return]


def entries_at_a_time(device: torch.device) -> int:
    """How many logits may exist at a time, for losses and what is fitted on them."""
    return _ENTRIES if device.type == "cpu" else _ENTRIES_ELSEWHERE


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, chunk by chunk; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        size: int,
        is_trained: bool,
        spares_weight: Tensor | None,
        spares_bias: Tensor | None,
    ) -> Tensor:
        fused = _compiled(dtype) if hidden.is_cuda and not torch.compiler.is_compiling() else None
        vocab, spare = len(weight), 0 if fused is None else -len(weight) % _ALIGNED
        w, b = _longer(weight.to(dtype), spare), None if bias is None else _longer(bias.to(dtype), spare)
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(t, dtype=torch.float32) if t is not None and needed and is_trained else None
            for t, needed in zip((hidden, w, b), ctx.needs_input_grad, strict=False)
        )
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden), size):
            here = slice(start, start + size)
            h, y = hidden[here].to(dtype), targets[here]
            z = F.linear(h, w, b)  # (tokens, vocab)
            if of_hidden is None and of_weight is None and of_bias is None:
                total += _losses(z[:, :vocab], y)
                continue
            loss, g = _losses_and_gradient(z, y) if fused is None else fused(z, y, vocab)
            del z
            total += loss
            if of_bias is not None:
                of_bias += _without(spares_bias, here, g).sum(0, dtype=torch.float32)
            if of_hidden is not None:
                of_hidden[here] = g @ w
            if of_weight is not None:
                _add_product(of_weight, g, _without(spares_weight, here, h))
        ctx.save_for_backward(of_hidden, *(None if of is None else of[:vocab] for of in (of_weight, of_bias)))
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Any:  # type: ignore[override]
        found = [
            None if saved is None else (saved * gradient).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)  # type: ignore[attr-defined]
        ]
        return (*found, *[None] * 6)


def _without(spared: Tensor | None, here: slice, x: Tensor) -> Tensor:
    """``x`` (tokens, ...), those of ``here``, with zeros for the ``spared`` of all tokens."""
    return x if spared is None else x.masked_fill(spared[here, None], 0.0)


def _longer(t: Tensor, spare: int) -> Tensor:
    """``t`` and ``spare`` zeros, or rows of zeros, behind it."""
    return torch.cat((t, t.new_zeros(spare, *t.shape[1:]))) if spare else t


def _losses(z: Tensor, y: Tensor) -> Tensor:
    """The sum of the losses of logits (tokens, vocab) at targets (tokens,); () in fp32."""
    told, y = y != _IGNORED, y.clamp_min(0)[:, None]
    z = z.float()
    return ((z.logsumexp(-1, keepdim=True) - z.gather(-1, y)) * told[:, None]).sum()


def _losses_and_gradient(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """``_losses``, and its gradient with respect to ``z``: softmax - one-hot, of the shape and type of ``z``."""
    dtype, told, y = z.dtype, (y != _IGNORED)[:, None], y.clamp_min(0)[:, None]
    z = z.float()
    highest, where = z.max(-1, keepdim=True)
    g = z.softmax(-1)
    log_sum = highest - g.gather(-1, where).log()  # from the one of which there is most: no exponential twice
    loss = ((log_sum - z.gather(-1, y)) * told).sum()
    return loss, g.scatter_add_(-1, y, g.new_full(y.shape, -1.0)).mul_(told).to(dtype)


def _fused(z: Tensor, y: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """As ``_losses_and_gradient`` of the first ``vocab`` logits, zeros behind them; for a compiler, as one kernel."""
    told, y, columns = (y != _IGNORED)[:, None], y.clamp_min(0)[:, None], torch.arange(z.shape[-1], device=z.device)
    x = torch.where(columns < vocab, z.float(), -torch.inf)
    log_sum = x.logsumexp(-1, keepdim=True)
    loss = ((log_sum - x.gather(-1, y)) * told).sum()
    return loss, (((x - log_sum).exp() - (columns == y).float()) * told).to(z.dtype)


@cache
def _compiled(dtype: torch.dtype) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None:
    """``_fused`` as a GPU's kernel for any number of tokens; None where torch cannot compile it for few (no Triton)."""
    compiled = torch.compile(_fused)

    def fused(z: Tensor, y: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        for t in (z, y):
            torch._dynamo.maybe_mark_dynamic(t, 0)
        return compiled(z, y, vocab)  # type: ignore[no-any-return]

    try:
        fused(torch.zeros(2, 8, device="cuda", dtype=dtype), torch.zeros(2, dtype=torch.long, device="cuda"), 8)
    except Exception as error:
        warnings.warn(
            "the loss is computed by torch's own operators, which is slower than one kernel: torch.compile failed with "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            stacklevel=2,
        )
        return None
    return fused


def _add_product(total: Tensor, g: Tensor, h: Tensor) -> None:
    """total += g^T h, summed in fp32."""
    if g.dtype == total.dtype:
        total.addmm_(g.T, h)
    elif g.is_cuda:
        torch.addmm(total, g.T, h, out_dtype=total.dtype, out=total)  # type: ignore[call-overload]
    else:
        total += g.T @ h


@torch.no_grad()
def can_chunk(model: PreTrainedModel) -> bool:
    """Whether the model's loss is that of its head on its last hidden state (no cap or scale after it), by trying."""
    if not _is_plain(model.get_output_embeddings()) or model.loss_function is not ForCausalLMLoss:
        return False
    with _tried(model) as ids:
        own = model(input_ids=ids, labels=ids, use_cache=False).loss
        with chunked(model):
            ours = model(input_ids=ids, labels=ids, use_cache=False).loss
    return bool(torch.allclose(own.float(), ours.float(), rtol=1e-3, atol=1e-4))


@torch.no_grad()
def can_part(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its head's output on what ``headless`` gives, by trying."""
    head: Any = model.get_output_embeddings()
    if not _is_plain(head) or has_shards(model):
        return False
    with _tried(model) as ids:
        own = model(input_ids=ids, use_cache=False).logits
        with headless(model):
            ours = model(input_ids=ids, use_cache=False).logits
        if ours.dtype != head.weight.dtype and not torch.is_autocast_enabled(ours.device.type):
            return False
    return bool(torch.allclose(own.float(), head(ours).float(), rtol=1e-3, atol=1e-4))


def _is_plain(head: Any) -> bool:
    """A linear layer of whole weights, nothing hooked to it."""
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter or "forward" in vars(head):
        return False
    return not head._forward_hooks and not head._forward_pre_hooks


@contextmanager
def _tried(model: PreTrainedModel) -> Iterator[Tensor]:
    """A few token ids (1, seq), while the model is without dropout."""
    head: Any = model.get_output_embeddings()
    was_training = model.training
    model.eval()
    try:
        yield torch.arange(min(8, head.out_features), device=head.weight.device)[None]
    finally:
        model.train(was_training)


@contextmanager
def headless(model: PreTrainedModel) -> Iterator[None]:
    """What ``model`` returns as logits is what its head would read: (batch, seq, hidden)."""
    with computing(model.get_output_embeddings(), _identity):
        yield


@contextmanager
def chunked(model: PreTrainedModel) -> Iterator[None]:
    """``model(labels=...)`` computes its loss in chunks; what it returns as logits is what its head would read.

    In a batch with a mode for each position the head's weights learn from those that may change them.
    """
    head: Any = model.get_output_embeddings()
    by_position = constants_of(head)

    def loss(
        logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Tensor | int | None = None, **kwargs: Any
    ) -> Tensor:
        hidden, targets = logits[:, :-1], labels[:, 1:].flatten()
        constants = by_position or constants_of(head)  # of a mode that is held around this, or within
        constant = {name: w.expand(labels.shape)[:, :-1].flatten() for name, w in constants.items()}
        total = chunked_loss(hidden.flatten(0, 1), head.weight, head.bias, targets, constant=constant)
        count = (targets != _IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return total / (count.to(total.device) if isinstance(count, Tensor) else count)

    model.loss_function = loss
    try:
        with headless(model):
            yield
    finally:
        del model._loss_function


def _identity(hidden: Tensor) -> Tensor:
    return hidden


def is_large(batch: dict[str, Any], model: PreTrainedModel, low_precision: bool = False) -> bool:
    """Whether the batch has so many logits that its loss is better made in chunks."""
    if "labels" not in batch or "shift_labels" in batch:
        return False
    head: Any = model.get_output_embeddings()
    if head is None:
        return False
    on_cpu = head.weight.device.type == "cpu"
    least = (_LARGE_IN_LOW_PRECISION if low_precision else _LARGE) if on_cpu else _LARGE_ELSEWHERE
    return bool(batch["labels"].numel() * len(head.weight) > least)
