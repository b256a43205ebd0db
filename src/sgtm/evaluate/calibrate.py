"""Calibration: one bias per vocabulary entry, fitted on the ablated model (method.md, "Calibration").

Removal leaves superficial spikes: tokens of the removed domain get vanishing probability, which a reader of the losses
would take for deep forgetting. A bias on the logits takes such spikes away and cannot bring knowledge back. Every
method is calibrated alike.

The loss's gradient is mean_t softmax(z_t + b) - mean_t one-hot(y_t), with z_t the logits at token t: what is predicted
less what is there. Both means are over tokens drawn anew, what is there in every step. What is predicted costs a pass
of the head, so it is drawn in every ``reuse``-th step only and follows the bias in between: m(b + d) is taken to be
m(b) e^d / sum(m(b) e^d), as if all tokens had the mean's normaliser. Steps of the default rate are so small that
calibrated losses stay the same (docs/log.md).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sgtm.config import CalibrateConfig, Category
from sgtm.data.mixture import Rows
from sgtm.evaluate.loss import batches, evaluating
from sgtm.model.chunked_loss import entries_at_a_time
from sgtm.model.masking import SGTM
from sgtm.model.sharding import has_shards, whole_linear

_START_STD = 0.1
_FINAL_RATE = 0.1
_CACHE_BATCH = 64


def fit_bias(
    model: PreTrainedModel,
    rows: dict[Category, Rows],
    config: CalibrateConfig,
    sgtm: SGTM | None = None,
    seed: int = 0,
    without: Sequence[str] = (),
) -> Tensor:
    """The bias b (vocab,) that minimises forget + w retain (+ w adjacent) loss of softmax(logits + b).

    The trunk is frozen, so its hidden states are computed once; only b is trained (AdamW, rate falling linearly).

    Args:
        rows: training rows of each category.
        sgtm: if given, the *ablated* model is calibrated.
        without: the domains that the ablated model is without; all by default.

    Raises:
        ValueError: a family whose logits are not the head's output (they could not be rebuilt from hidden states).
    """
    generator = torch.Generator().manual_seed(seed)
    head: Any = whole_linear(model.get_output_embeddings())
    cached = {category: _hidden_states(model, head, found, sgtm, without) for category, found in rows.items()}
    removed = {category for category, r in rows.items() if category in (without or r.domains)}
    weights = {category: 1.0 if category in removed else config.retain_weight for category in rows}
    vocab_size, device = head.weight.shape[0], head.weight.device
    bias = nn.Parameter((torch.randn(vocab_size, generator=generator) * _START_STD).to(device))
    optimizer = torch.optim.AdamW([bias], lr=config.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, _FINAL_RATE, total_iters=config.steps)

    def drawn(category: Category) -> Tensor:
        return torch.randint(len(cached[category][1]), (config.tokens,), generator=generator).to(device)

    for step in range(config.steps):
        if step % config.reuse == 0:
            start = bias.detach().clone()
            predicted = {c: _mean_prediction(head, cached[c][0][drawn(c)], start) for c in cached}
        bias.grad = torch.zeros_like(bias)
        for category, (_, targets) in cached.items():
            there = torch.bincount(targets[drawn(category)], minlength=vocab_size) / config.tokens
            bias.grad += weights[category] * (_moved(predicted[category], bias.detach() - start) - there)
        optimizer.step()
        schedule.step()
    return bias.detach()


@torch.no_grad()
def _mean_prediction(head: Any, hidden: Tensor, bias: Tensor) -> Tensor:
    """(vocab,) mean softmax(head(hidden) + b), over (tokens, hidden)."""
    total = torch.zeros_like(bias)
    for some in hidden.split(max(1, entries_at_a_time(hidden.device) // len(bias))):
        total += (head(some).float() + bias).softmax(-1).sum(0)
    return total / len(hidden)


def _moved(predicted: Tensor, shift: Tensor) -> Tensor:
    """The mean prediction (vocab,) once the bias has moved by ``shift``, about."""
    moved = predicted * shift.exp()
    return moved / moved.sum()


@torch.no_grad()
def _hidden_states(
    model: PreTrainedModel, head: Any, rows: Rows, sgtm: SGTM | None, without: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """What the head reads (tokens, hidden), and the token that it should predict there (tokens,)."""
    hidden: list[Tensor] = []
    targets: list[Tensor] = []
    with evaluating(model, sgtm, without):
        for input_ids, labels in batches(model, rows, _CACHE_BATCH):
            states = _last_hidden_state(model, input_ids)
            if not hidden:
                _check_head(model, head, input_ids[:1])
            told = labels[:, 1:] != -100
            hidden.append(states[:, :-1][told])
            targets.append(labels[:, 1:][told])
    return torch.cat(hidden), torch.cat(targets)


def _last_hidden_state(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """(batch, seq, hidden), of a pass of the whole model if it is sharded: its root gathers the parameters."""
    if not has_shards(model):
        states: Tensor = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return states
    seen: list[Tensor] = []
    hook = model.base_model.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
    try:
        model(input_ids=input_ids, use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    return seen[0]


def _check_head(model: PreTrainedModel, head: Any, input_ids: Tensor) -> None:
    """By two passes of one shape: kernels for batches of different sizes round differently."""
    logits = model(input_ids=input_ids, use_cache=False).logits
    rebuilt = head(_last_hidden_state(model, input_ids))
    if not torch.allclose(rebuilt.float(), logits.float(), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"the logits of {type(model).__name__} are not its head's output on its last hidden state (a cap or a "
            "scale follows), so they cannot be rebuilt for calibration; such families are not supported yet"
        )
