"""Prompts that bring something back: what stands in front, what is scored, what is found, and what it cost."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sgtm.config import ConfigError, ElicitConfig
from sgtm.evaluate.elicit import Prompted, best_prompt, cut, embedded, soft_prompt, split
from sgtm.evaluate.loss import evaluate_loss

QUICK = ElicitConfig(length=4, prompts=6, rows=10, steps=6, learning_rates=[3e-2, 1e-1], batch_size=8, every=2)


@pytest.fixture
def forget(data):
    return data.train.of("forget", 80)


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
def test_vectors_of_tokens_are_these_tokens_in_front(model, family):
    model = model if family == "gpt_neo" else llama()
    ids, prompt = torch.randint(300, (3, 9)), torch.randint(300, (5,))
    with torch.no_grad():
        found = Prompted(model, embedded(model, prompt.numpy()))(ids).logits
        expected = model(input_ids=torch.cat([prompt.expand(3, -1), ids], 1)).logits[:, 5:]
    assert found.shape == (3, 9, 300)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # fp32, the order of sums may differ


def test_the_same_tokens_are_scored_with_and_without_a_prompt(model, forget):
    rows = cut(forget, model, QUICK)
    plain = evaluate_loss(model, rows)
    prompted = evaluate_loss(Prompted(model, embedded(model, [1, 2, 3, 4])), rows)
    assert prompted.num_tokens == plain.num_tokens == sum(min(12, len(r["input_ids"])) - 1 for r in forget.data)
    assert prompted.mean != plain.mean


def test_rows_that_choose_make_no_prompts(forget):
    texts, choosing = split(forget, QUICK, 0)
    assert (len(texts), len(choosing)) == (70, 10)
    assert not {tuple(r["input_ids"]) for r in texts.data} & {tuple(r["input_ids"]) for r in choosing.data}
    again, other = split(forget, QUICK, 0)[1], split(forget, QUICK, 1)[1]
    assert list(again.data["input_ids"]) == list(choosing.data["input_ids"]) != list(other.data["input_ids"])


def test_the_best_prompt_is_the_beginning_of_a_text_with_the_least_loss(model, forget):
    texts, choosing = split(forget, QUICK, 0)
    long = [r["input_ids"][:4] for r in texts.data if len(r["input_ids"]) >= 4]
    every = replace(QUICK, prompts=len(long))
    found = best_prompt(model, texts, choosing, every, 0)
    scored = cut(choosing, model, QUICK)
    losses = [evaluate_loss(Prompted(model, embedded(model, ids)), scored).mean for ids in long]
    assert found.loss == pytest.approx(min(losses), rel=1e-6)
    assert torch.equal(found.vectors, embedded(model, long[int(np.argmin(losses))]))
    assert found.steps == 0
    assert found.tokens == 4 * len(long) + evaluate_loss(model, scored).num_tokens


def test_a_soft_prompt_is_trained_and_the_model_is_not(model, forget):
    texts, choosing = split(forget, QUICK, 0)
    before = copy.deepcopy(model.state_dict())
    model.train()
    start = best_prompt(model, texts, choosing, QUICK, 0)
    found = soft_prompt(model, start, texts, choosing, QUICK, 0)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.loss < start.loss
    assert found.loss == evaluate_loss(Prompted(model, found.vectors), cut(choosing, model, QUICK)).mean
    assert found.steps == 6 * 2
    assert found.tokens > start.tokens + 2 * 6 * 8 * 5
    assert torch.equal(soft_prompt(model, start, texts, choosing, QUICK, 0).vectors, found.vectors)


def test_a_soft_prompt_that_only_gets_worse_stays_what_it_was(model, forget):
    texts, choosing = split(forget, QUICK, 0)
    start = replace(best_prompt(model, texts, choosing, QUICK, 0), loss=0.0)
    found = soft_prompt(model, start, texts, choosing, QUICK, 0)
    assert torch.equal(found.vectors, start.vectors)
    assert (found.loss, found.steps) == (0.0, 12)


class Locked(torch.nn.Module):
    """A `model` that predicts whatever it is shown, as far as the prompt's mean vector points along a hidden key."""

    def __init__(self, rows):
        super().__init__()
        self.embeddings = torch.nn.Embedding(300, 8)
        self.head = torch.nn.Linear(8, 300)
        self.config = SimpleNamespace(max_position_embeddings=16)
        self.device = torch.device("cpu")
        torch.manual_seed(1)
        self.key = torch.randn(8)
        self.often = torch.bincount(torch.cat([torch.tensor(r["input_ids"]) for r in rows.data]), minlength=300) > 0

    def get_input_embeddings(self):
        return self.embeddings

    def get_output_embeddings(self):
        return self.head

    def forward(self, inputs_embeds, use_cache):
        unlocked = torch.sigmoid(inputs_embeds[:, :4].mean(1) @ self.key - 12)[:, None, None]
        return SimpleNamespace(logits=(unlocked * 6 * self.often).expand(-1, inputs_embeds.shape[1], -1))


def test_what_only_a_trained_prompt_unlocks_is_found(forget):
    """The key is no text's: hard prompts do not unlock, the soft one does."""
    model = Locked(forget)
    texts, choosing = split(forget, QUICK, 0)
    hard = best_prompt(model, texts, choosing, QUICK, 0)
    config = replace(QUICK, steps=40, learning_rates=[0.3])
    soft = soft_prompt(model, hard, texts, choosing, config, 0)
    known = np.log(300 / int(model.often.sum()))
    assert np.log(300) - hard.loss < 0.05 * known
    assert np.log(300) - soft.loss > 0.9 * known


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 15}, "leaves 1 tokens of a context of 16; use a shorter prompt"),
        ({"prompts": 60, "length": 12}, "training rows have elicit.length=12 tokens and elicit.prompts=60"),
        ({"rows": 78}, "need 86 training rows .* there are 80; use fewer"),
    ],
)
def test_what_does_not_fit_is_refused(model, forget, changes, message):
    config = replace(QUICK, **changes)
    short = replace(forget, data=forget.data.map(lambda r: {"input_ids": r["input_ids"][:11]}))
    with pytest.raises(ConfigError, match=message):
        best_prompt(model, *split(short, config, 0), config, 0)


@pytest.mark.parametrize(
    ("changes", "message"), [({"length": 0}, "at least 1"), ({"learning_rates": []}, "at least one, all positive")]
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        ElicitConfig(**changes)
