"""What the model says: continuations before and after removal."""

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from sgtm.evaluate.loss import evaluating
from sgtm.model.masking import SGTM


def continue_text(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sgtm: SGTM | None = None,
    bias: torch.Tensor | None = None,
    new_tokens: int = 40,
) -> str:
    """The most likely continuation of ``prompt`` (greedy), up to the end of the text.

    Args:
        sgtm: if given, the *ablated* model speaks, by its retain pass.
        bias: (vocab,) added to the logits (calibration).
    """
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
    stop = tokenizer.eos_token_id
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=stop, pad_token_id=stop)
    processors = [] if bias is None else [lambda _, scores: scores + bias]
    with evaluating(model, sgtm):
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config, logits_processor=processors
        )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
