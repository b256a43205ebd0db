"""Losses of tokens: unlikelihood and masking against plain torch."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sgtm.config import ConfigError, LabelConfig
from sgtm.data.mixture import collate, training_rows
from sgtm.train.tests.conftest import tiny_model
from sgtm.train.tests.test_trainer import first_gradients
from sgtm.train.unlikelihood import selective_loss, unlikelihood


def test_unlikelihood_is_minus_log_of_one_minus_p():
    torch.manual_seed(0)
    logits = torch.randn(50, 7, dtype=torch.float64) * 3
    tokens = torch.randint(7, (50,))
    p = logits.softmax(1)[torch.arange(50), tokens]
    expected = -torch.log1p(-p).sum().item()
    assert unlikelihood(logits, tokens).item() == pytest.approx(expected, rel=1e-5)  # ours is in fp32


def test_unlikelihood_of_a_certain_token_is_large_and_finite():
    """1 - p rounds to 0 in fp32 here; the gradient must still push the token down."""
    logits = torch.zeros(1, 3)
    logits[0, 1] = 60.0
    logits.requires_grad_()
    loss = unlikelihood(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(60 - np.log(2), rel=1e-5)
    assert logits.grad[0].tolist() == pytest.approx([-0.5, 1.0, -0.5])


def by_hand(model, batch, unlikely):
    """Gradients of the mean over tokens, token by token, in plain torch."""
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].log_softmax(-1)
    total, count = torch.zeros(()), 0
    for i, row in enumerate(batch["labels"][:, 1:].tolist()):
        for t, token in enumerate(row):
            if token != -100:
                log_p = logits[i, t, token]
                total = total - (torch.log(1 - log_p.exp()) if unlikely[i, t + 1] else log_p)
                count += 1
    (total / count).backward()
    return {n: p.grad for n, p in model.named_parameters()}


def examples_of(rows, labelled):
    """16 rows; ``labelled(row, position)`` tokens are unlikely."""
    return [
        {**rows[i], "mode": 0, "unlikely": np.array([labelled(i, t) for t in range(len(rows[i]["input_ids"]))])}
        for i in range(16)
    ]


@pytest.mark.parametrize("labelled", [lambda i, t: i % 3 == 0, lambda i, t: (i + t) % 4 == 0, lambda i, t: True])
@pytest.mark.parametrize(("micro", "accumulate"), [(16, 1), (4, 4)])
def test_gradients_of_unlikely_rows_and_tokens(make_trainer, rows, labelled, micro, accumulate):
    examples = examples_of(rows, labelled)
    trainer = make_trainer(
        strategy=None,
        train_dataset=examples,
        max_steps=1,
        max_grad_norm=0.0,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
    )
    got = first_gradients(trainer)
    batch = collate(examples)
    for name, expected in by_hand(tiny_model(), batch, batch["unlikely"]).items():
        torch.testing.assert_close(got[name], expected, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_batch_without_unlikely_tokens_has_the_models_own_loss(rows):
    model, batch = tiny_model(), collate([rows[i] for i in range(8)])
    batch.pop("mode")
    outputs = model(**batch)
    nothing = torch.zeros_like(batch["labels"], dtype=torch.bool)
    torch.testing.assert_close(selective_loss(outputs, batch["labels"], unlikely=nothing), outputs.loss)


def test_unlikely_tokens_and_another_loss_are_refused(make_trainer, rows):
    trainer = make_trainer(
        strategy=None, train_dataset=examples_of(rows, lambda i, t: True), trainer_compute_loss_func=lambda *_, **__: 0
    )
    with pytest.raises(ConfigError, match="leave out compute_loss_func"):
        trainer.train()


# ---- Token masking


def test_masked_tokens_give_the_gradient_of_ignored_ones(make_trainer, data):
    masked, _ = training_rows(data.train, LabelConfig(undiscovered=0.3), "mask", 0)
    labelled, others = (np.flatnonzero(masked.labels == label)[:4] for label in (0, 2))
    few = masked.select(np.concatenate([labelled, others]))  # one step of all
    got = first_gradients(make_trainer(strategy=None, train_dataset=few, max_steps=1, max_grad_norm=0.0))
    model, ids = tiny_model(), torch.tensor([row["input_ids"] for row in few.data])
    targets = ids.clone()
    targets[:4] = -100
    logits = model(input_ids=ids).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_step_without_a_target_changes_nothing(make_trainer, data):
    """Its loss is 0 / 0, its gradient is zero."""
    masked, _ = training_rows(data.train, LabelConfig(undiscovered=0.0), "mask", 0)
    forget = masked.select(np.flatnonzero(masked.labels == 0))
    trainer = make_trainer(strategy=None, train_dataset=forget, weight_decay=0.0)
    trainer.train()
    assert trainer.state.num_input_tokens_seen == 0
    assert all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), tiny_model().parameters(), strict=True))
