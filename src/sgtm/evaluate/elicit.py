"""Prompts that bring back what was removed: the best of many texts, and vectors that are trained.

The model is frozen; only what stands in front of a row is chosen, as in the elicitation attack of GRAM
(arXiv:2607.08077). A *hard* prompt is the beginning of a training row: of N drawn ones, that with the least loss behind
it on rows which are kept for choosing. A *soft* prompt is ``length`` vectors where embeddings of tokens would stand,
begun with those of the best hard prompt of the domain and trained by Adam on other training rows:

    argmin_v  mean_(x, t) -log p(x_t | v, x_<t)

Rows are cut, so that prompt and row fit into the context; the same tokens of the same rows are scored with and without
a prompt, and never a row's first, which depends on what stands in front. A soft prompt also *teaches*: what it gives to
a model that never had the text is no elicitation, so it is to be read against such a model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from sgtm.config import ConfigError, ElicitConfig, Stream
from sgtm.data.labels import Codes
from sgtm.data.mixture import Rows, collate
from sgtm.evaluate.loss import evaluate_loss, evaluating
from sgtm.model.loading import context_of

_LEAST = 2  # tokens of a row: one that is given, one that is predicted


class Prompted(nn.Module):
    """``model`` with a prompt in front of every row; stands for a model whose logits are those of the row alone.

    Args:
        vectors: (length, hidden), where embeddings of tokens would stand.
    """

    def __init__(self, model: PreTrainedModel, vectors: Tensor) -> None:
        super().__init__()
        self.model, self.vectors = model, vectors

    def get_output_embeddings(self) -> Any:
        return self.model.get_output_embeddings()

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        """``logits`` (batch, seq, vocab) of ``input_ids`` (batch, seq)."""
        rows = self.model.get_input_embeddings()(input_ids)
        prompt = self.vectors.to(rows).expand(len(rows), -1, -1)
        found = self.model(inputs_embeds=torch.cat([prompt, rows], 1), use_cache=use_cache)
        return SimpleNamespace(logits=found.logits[:, len(self.vectors) :])


@dataclass(frozen=True)
class Prompt:
    """One that was found, and what it cost.

    Args:
        vectors: (length, hidden).
        loss: behind it, on the rows kept for choosing (nats per token).
        steps: of training, all learning rates together.
        tokens: of the domain's text that was looked at to find it: prompts, rows to choose by and rows of steps.
    """

    vectors: Tensor
    loss: float
    steps: int
    tokens: int


@dataclass(frozen=True)
class Beginning:
    """The first ``length`` tokens of a row; a ``Treatment`` of ``Rows``."""

    length: int

    def __call__(self, input_ids: NDArray[Any], labels: Codes, document: int) -> dict[str, Any]:
        return {"input_ids": np.asarray(input_ids, np.int64)[: self.length]}


def cut(rows: Rows, model: PreTrainedModel, config: ElicitConfig) -> Rows:
    """``rows`` without the tokens that a prompt leaves no room for.

    Raises:
        ConfigError: the prompt leaves none at all.
    """
    context = context_of(model)
    if context - config.length < _LEAST:
        raise ConfigError(
            f"elicit.length={config.length} leaves {max(0, context - config.length)} tokens of a context of {context}; "
            "use a shorter prompt"
        )
    return replace(rows, labels=None, token_labels=None, treat=Beginning(context - config.length))


def split(rows: Rows, config: ElicitConfig, seed: int) -> tuple[Rows, Rows]:
    """(rows that prompts are made of, rows that they are chosen by), drawn at random.

    Raises:
        ConfigError: not enough rows for both.
    """
    need = config.rows + max(config.prompts, config.batch_size)
    if len(rows) < need:
        raise ConfigError(
            f"prompts need {need} training rows to be made of and chosen by, and there are {len(rows)}; use fewer "
            "elicit.rows, elicit.prompts or elicit.batch_size"
        )
    order = np.random.default_rng((seed, Stream.ELICIT)).permutation(len(rows))
    return rows.select(np.sort(order[config.rows :])), rows.select(np.sort(order[: config.rows]))


def best_prompt(model: PreTrainedModel, texts: Rows, choosing: Rows, config: ElicitConfig, seed: int) -> Prompt:
    """The best of ``config.prompts`` beginnings of ``texts``.

    Args:
        choosing: rows that the loss behind a prompt is measured on.

    Raises:
        ConfigError: too few texts are as long as a prompt.
    """
    choosing = cut(choosing, model, config)
    long = np.flatnonzero(texts.lengths >= config.length)
    if len(long) < config.prompts:
        raise ConfigError(
            f"{len(long)} training rows have elicit.length={config.length} tokens and elicit.prompts={config.prompts} "
            "are to be drawn; use fewer, or shorter ones"
        )
    rng = np.random.default_rng((seed, Stream.ELICIT, 1))
    drawn = rng.choice(long, config.prompts, replace=False)
    found, scored = [], 0
    for row in drawn:
        vectors = embedded(model, texts.data[int(row)]["input_ids"][: config.length])
        loss = evaluate_loss(Prompted(model, vectors), choosing)  # type: ignore[arg-type]
        found.append((loss.mean, vectors))
        scored = loss.num_tokens
    best, vectors = min(found, key=lambda pair: pair[0])
    return Prompt(vectors, best, 0, config.prompts * config.length + scored)


@torch.no_grad()
def embedded(model: PreTrainedModel, tokens: Any) -> Tensor:
    """(length, hidden) embeddings of ``tokens`` (length,)."""
    ids = torch.as_tensor(np.asarray(tokens, np.int64), device=model.device)
    vectors: Tensor = model.get_input_embeddings()(ids[None])[0]
    return vectors.clone()


def soft_prompt(
    model: PreTrainedModel, start: Prompt, texts: Rows, choosing: Rows, config: ElicitConfig, seed: int
) -> Prompt:
    """The best prompt on the way from ``start`` with any of the learning rates, measured every ``config.every`` steps.

    Args:
        texts: rows that are trained on.
        choosing: rows that say which is the best.
    """
    best, tokens = start, start.tokens
    for rate in config.learning_rates:
        for found in _trained(model, start.vectors, cut(texts, model, config), config, rate, seed):
            loss = evaluate_loss(Prompted(model, found.vectors), cut(choosing, model, config)).mean  # type: ignore[arg-type]
            if loss < best.loss:
                best = replace(found, loss=loss)
        tokens += found.tokens
    return replace(best, steps=config.steps * len(config.learning_rates), tokens=tokens)


def _trained(
    model: PreTrainedModel, start: Tensor, texts: Rows, config: ElicitConfig, rate: float, seed: int
) -> Iterator[Prompt]:
    """The prompt after every ``config.every`` steps, and after the last; its loss is not measured yet."""
    vectors = start.float().clone().requires_grad_()
    optimizer = torch.optim.Adam([vectors], rate)
    rng, prompted, tokens = np.random.default_rng((seed, Stream.ELICIT, 2)), Prompted(model, vectors), 0
    for step in range(1, config.steps + 1):
        rows = rng.choice(len(texts), config.batch_size, replace=False)
        batch = collate([texts[int(row)] for row in rows])
        ids, targets = (batch[key].to(model.device) for key in ("input_ids", "labels"))
        with evaluating(model, None), torch.enable_grad():
            logits = prompted(ids).logits[:, :-1]
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)
        (vectors.grad,) = torch.autograd.grad(loss, [vectors])  # of the prompt alone: the model gets none
        optimizer.step()
        tokens += int((targets[:, 1:] != -100).sum())
        if step % config.every == 0 or step == config.steps:
            yield Prompt(vectors.detach().clone(), float("nan"), step, tokens)
