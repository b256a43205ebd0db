"""What the model says: continuations before and after removal."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from sgtm.config import Category
from sgtm.data.mixture import Rows
from sgtm.evaluate.loss import evaluating
from sgtm.model.loading import context_of
from sgtm.model.masking import SGTM

_PROMPT = 12  # tokens, at most; less where the text is short
_NEW_TOKENS = 32


def continuations(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Mapping[Category, Rows],
    sgtm: SGTM | None = None,
    bias: torch.Tensor | None = None,
    number: int = 2,
    before_removed: str = "",
) -> Iterator[dict[str, str]]:
    """Beginnings of texts of every category, continued by the intact, the ablated and the calibrated model.

    Greedy: no random number is drawn.

    Args:
        number: rows of each category, from the first on.
        before_removed: text put before what the ablated and the calibrated model are given (conditional training).

    Yields:
        category, prompt, truth (how the text goes on), variant, text.
    """
    changed = sgtm is not None or bool(before_removed)
    for category, found in rows.items():
        for i in range(min(number, len(found))):
            prompt, truth = _beginning(found.data[i]["input_ids"], tokenizer)
            about = {"category": category, "prompt": prompt, "truth": truth}
            asked = before_removed + prompt
            yield about | {
                "variant": "intact",
                "text": continue_text(model, tokenizer, prompt, None, None, _NEW_TOKENS),
            }
            if changed:
                text = continue_text(model, tokenizer, asked, sgtm, None, _NEW_TOKENS)
                yield about | {"variant": "ablated", "text": text}
            if bias is not None:
                text = continue_text(model, tokenizer, asked, sgtm, bias, _NEW_TOKENS)
                yield about | {"variant": "calibrated", "text": text}


def _beginning(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The longest stretch of one text in a row: its beginning, and how it goes on."""
    stretches: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.eos_token_id:
            stretches.append([])
        else:
            stretches[-1].append(token)
    longest = max(stretches, key=len)
    half = max(1, min(_PROMPT, len(longest) // 2))
    words = (i for i in range(half, len(longest)) if str(tokenizer.decode(longest[i : i + 1]))[:1].isspace())
    cut = next(words, half)  # before a word, where there is one that begins with a space
    prompt, truth = (tokenizer.decode(part) for part in (longest[:cut], longest[cut : cut + _NEW_TOKENS]))
    return str(prompt), str(truth)


def continue_text(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sgtm: SGTM | None = None,
    bias: torch.Tensor | None = None,
    new_tokens: int = 40,
) -> str:
    """The most likely continuation of ``prompt`` (greedy), up to the end of the text or of the model's positions.

    Args:
        sgtm: if given, the *ablated* model speaks, by its retain pass.
        bias: (vocab,) added to the logits (calibration).
    """
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
    length = ids.shape[1]
    new_tokens = min(new_tokens, context_of(model, length + new_tokens) - length)
    if new_tokens < 1:
        return ""
    stop = tokenizer.eos_token_id
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=stop, pad_token_id=stop)
    processors = [] if bias is None else [lambda _, scores: scores + bias]
    with evaluating(model, sgtm):
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config, logits_processor=processors
        )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
