"""The next-token loss without the logits of a whole batch.

    loss = sum_i -log softmax(W h_i + b)[y_i] / num_items

Logits are made for some tokens at a time, in the precision of the model's own head; their losses, and at once their
gradients, are taken in fp32 as the library does, and the logits are gone. So of (tokens, vocabulary) no more than
``_ENTRIES`` entries exist (more on a GPU). torch's own fused operator was measured on CPUs: in bf16 it is wrong, and in
fp32 slower.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from sgtm.model.sharding import has_shards

_ENTRIES = 2**25  # of logits at a time on a CPU: 134 MB in fp32; fewer read a large head's weights too often
_ENTRIES_ELSEWHERE = 2**27  # half a gigabyte, so that a GPU has enough to do; a guess, not measured there
_LARGE = 2**20  # more of them are faster in chunks in fp32, as measured on a CPU
_LARGE_IN_LOW_PRECISION = 2**26  # in bf16 chunks are slower, so they are for what would not fit otherwise
_IGNORED = -100


def chunked_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, entries: int | None = None
) -> Tensor:
    """The sum of token losses of softmax(hidden weight^T + bias), in nats; () in fp32.

    Args:
        hidden: (tokens, hidden), what the head reads.
        weight, bias: (vocab, hidden) and (vocab,), of the head.
        targets: (tokens,); -100 where nothing is to be predicted.
        entries: of logits that exist at a time, about; by default what suits the device.
    """
    entries = entries or entries_at_a_time(hidden.device)
    dtype = weight.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    return _ChunkedLoss.apply(hidden, weight, bias, targets, dtype, max(1, entries // len(weight)))  # type: ignore[no-any-return]


def entries_at_a_time(device: torch.device) -> int:
    """How many logits may exist at a time, for losses and what is fitted on them."""
    return _ENTRIES if device.type == "cpu" else _ENTRIES_ELSEWHERE


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, chunk by chunk; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype, size: int
    ) -> Tensor:
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(t, dtype=torch.float32) if t is not None and needed else None
            for t, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        )
        w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden), size):
            here = slice(start, start + size)
            h, y = hidden[here].to(dtype), targets[here]
            told = (y != _IGNORED)[:, None]
            y = y.clamp_min(0)[:, None]
            z = F.linear(h, w, b).float()  # (tokens, vocab)
            if of_hidden is None and of_weight is None and of_bias is None:
                total += ((z.logsumexp(-1, keepdim=True) - z.gather(-1, y)) * told).sum()
                continue
            highest, where = z.max(-1, keepdim=True)
            g = z.softmax(-1)
            log_sum = highest - g.gather(-1, where).log()  # from the one of which there is most: no exponential twice
            total += ((log_sum - z.gather(-1, y)) * told).sum()
            g.scatter_add_(-1, y, g.new_full(y.shape, -1.0)).mul_(told)  # softmax - one-hot: the logits' gradient
            if of_bias is not None:
                of_bias += g.sum(0)
            g = g.to(dtype)
            if of_hidden is not None:
                of_hidden[here] = g @ w
            if of_weight is not None:
                _add_product(of_weight, g, h)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Any:  # type: ignore[override]
        found = [
            None if saved is None else (saved * gradient).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)  # type: ignore[attr-defined]
        ]
        return (*found, None, None, None)


def _add_product(total: Tensor, g: Tensor, h: Tensor) -> None:
    """total += g^T h, summed in fp32."""
    if g.dtype == total.dtype:
        total.addmm_(g.T, h)
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
    head: Any = model.get_output_embeddings()
    head.forward = _identity
    try:
        yield
    finally:
        del head.forward


@contextmanager
def chunked(model: PreTrainedModel) -> Iterator[None]:
    """``model(labels=...)`` computes its loss in chunks; what it returns as logits is what its head would read."""
    head: Any = model.get_output_embeddings()

    def loss(
        logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Tensor | int | None = None, **kwargs: Any
    ) -> Tensor:
        targets = labels[:, 1:].flatten()
        total = chunked_loss(logits[:, :-1].flatten(0, 1), head.weight, head.bias, targets)
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
    return bool(batch["labels"].numel() * len(head.weight) > (_LARGE_IN_LOW_PRECISION if low_precision else _LARGE))
