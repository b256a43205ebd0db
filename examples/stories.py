"""What the examples share, none of it SGTM: embedded English and Spanish stories, a tiny model, losses by language."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from sgtm.data.synthetic import stories
from sgtm.data.tokenizer import load_tokenizer

DEFAULT, RETAIN, FORGET = range(3)  # indices into Partition.modes
TOKENS = 48  # of a row
LANGUAGES = ("english", "spanish")  # Spanish is what is to be removed

Losses = dict[str, float]  # language -> nats per token


def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("train:400", lambda: (text for pair in stories(200) for text in pair))


def model(tokens: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Two layers of 4 heads and 256 neurons."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
        )
    )


def texts(count: int, seed: int = 0) -> list[dict]:
    """Stories in turn English and Spanish, with their mode.

    The labeller knows English (retain) and Spanish (forget), but every tenth text has no label (default).
    """
    found = []
    for i, pair in enumerate(stories(count // 2, seed)):
        for language, text in enumerate(pair):
            known = FORGET if LANGUAGES[language] == "spanish" else RETAIN
            found.append({"text": text, "language": language, "mode": DEFAULT if i % 10 == 0 else known})
    return found


def rows(tokens: PreTrainedTokenizerBase, count: int, seed: int = 0) -> list[dict]:
    """The beginnings of ``texts``: ``input_ids``, 48 of them, and ``mode``."""
    return [
        {"input_ids": tokens(row["text"])["input_ids"][:TOKENS], "mode": row["mode"], "language": row["language"]}
        for row in texts(count, seed)
    ]


def losses(model: PreTrainedModel, tokens: PreTrainedTokenizerBase, title: str) -> Losses:
    """Print and return the loss on new stories, by language."""
    test = rows(tokens, 64, seed=1)
    was_training = model.training
    model.eval()
    found = {}
    for code, language in enumerate(LANGUAGES):
        ids = torch.tensor([row["input_ids"] for row in test if row["language"] == code])
        with torch.no_grad():
            found[language] = float(model(input_ids=ids, labels=ids).loss)
    model.train(was_training)
    print(f"{title:24}", "  ".join(f"{language} {loss:.2f}" for language, loss in found.items()), flush=True)
    return found
