"""Shots in front of what is scored."""

import numpy as np
import pytest
import torch

from sgtm.config import ConfigError
from sgtm.evaluate.few_shot import Shots, few_shot_losses


@pytest.fixture
def forget(data):
    return data.train.of("forget"), data.test.of("forget", 20)


def test_shots_stand_in_front_and_the_same_tokens_are_scored(forget, data):
    train, test = forget
    end, ids = data.tokenizer.eos_token_id, np.asarray(test.data[0]["input_ids"])
    made = {k: Shots(train, k, 3, 5, 4, end, 0)(ids, np.zeros(len(ids)), 7) for k in (0, 1, 3)}
    for k, example in made.items():
        given, targets = example["input_ids"], example["labels"]
        assert given[-4:].tolist() == ids[:4].tolist()
        assert targets[-3:].tolist() == ids[1:4].tolist()
        assert (targets[:-3] == -100).all()
        assert (given[:-4] == end).sum() >= k  # one at least at the end of each
        assert len(given) <= 4 + 5 * k
    assert made[3]["input_ids"][:-4].tolist()[: len(made[1]["input_ids"]) - 4] == made[1]["input_ids"][:-4].tolist()


def test_shots_are_texts_of_training_rows_and_differ_by_document(forget, data):
    train, _ = forget
    shots = Shots(train, 1, 1, 6, 4, data.tokenizer.eos_token_id, 0)
    starts = {tuple(row["input_ids"][:4]) for row in train.data}
    drawn = [tuple(shots(np.arange(4), np.zeros(4), d)["input_ids"][:4].tolist()) for d in range(10)]
    assert all(any(shot == start[: len(shot)] for start in starts) for shot in drawn)
    assert len(set(drawn)) > 3


def test_losses_count_the_same_tokens_for_every_number_of_shots(model, forget, data):
    train, test = forget
    found = few_shot_losses(model, test, train, [0, 1, 2], data.tokenizer.eos_token_id)
    assert len({loss.num_tokens for loss in found.values()}) == 1
    assert found[0].num_tokens == sum(min(4, len(row["input_ids"])) - 1 for row in test.data)
    assert len({loss.mean for loss in found.values()}) == 3


def test_a_model_that_copies_profits_from_shots(forget, data):
    """A `model` that predicts whatever followed the token last time: only what stands in the context helps it."""
    train, test = forget

    class Copier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(1, len(data.tokenizer))
            self.config = type("Config", (), {"max_position_embeddings": 64})()

        def get_output_embeddings(self):
            return self.head

        def forward(self, input_ids, use_cache):
            logits = torch.zeros(*input_ids.shape, len(data.tokenizer))
            for b, row in enumerate(input_ids.tolist()):
                for t in range(len(row)):
                    for s in range(t):
                        if row[s] == row[t]:
                            logits[b, t, row[s + 1]] += 3
            return type("Output", (), {"logits": logits})()

    found = few_shot_losses(Copier(), test, train, [0, 4], data.tokenizer.eos_token_id)
    assert found[4].mean < found[0].mean - 0.2


def test_more_shots_than_the_context_holds_are_refused(model, forget, data):
    train, test = forget
    with pytest.raises(ConfigError, match=r"shots=8 leave 1 tokens for each in a context of 16; use fewer"):
        few_shot_losses(model, test, train, [8], data.tokenizer.eos_token_id)
