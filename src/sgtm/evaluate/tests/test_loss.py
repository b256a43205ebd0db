"""Losses: token-weighted, exact, and of the right model."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import Gemma2Config, Gemma2ForCausalLM

from sgtm.data.mixture import Rows
from sgtm.evaluate import loss as loss_module
from sgtm.evaluate.loss import Loss, evaluate_categories, evaluate_loss, evaluate_losses, of_categories
from sgtm.model.chunked_loss import can_part


def rows_of(*lengths: int) -> Rows:
    rng = np.random.default_rng(0)
    data = Dataset.from_dict({"input_ids": [rng.integers(300, size=n).tolist() for n in lengths]})
    return Rows(data, np.zeros(len(lengths), np.int8), np.arange(len(lengths)))


def gemma(cap):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 4, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False}
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, final_logit_softcapping=cap)).eval()


def naive(model, rows, bias=0.0):
    """One row at a time, in double precision: sum of token losses / tokens."""
    total, count = 0.0, 0
    for row in rows.data:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits.double() + bias
        total += F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return total / count, count


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_loss_is_token_weighted_whatever_the_batches(model, batch_size):
    rows = rows_of(2, 16, 7, 3, 16, 11)
    expected, count = naive(model, rows)
    result = evaluate_loss(model, rows, batch_size=batch_size)
    assert result.num_tokens == count == 49
    assert result.mean == pytest.approx(expected, abs=1e-5)


def test_the_last_token_is_scored(model):
    """End-of-text is a token like any other, though rows are padded."""
    rows = rows_of(5, 3)
    assert evaluate_loss(model, rows).num_tokens == 4 + 2


def test_large_logits_are_cut_into_pieces(model, monkeypatch):
    rows = rows_of(*[16] * 10)
    whole = evaluate_loss(model, rows)
    seen = []
    model.register_forward_pre_hook(lambda m, a, k: seen.append(len(k["input_ids"])), with_kwargs=True)
    monkeypatch.setattr(loss_module, "_MAX_LOGITS", 3 * 16 * 300)
    monkeypatch.setattr("sgtm.model.chunked_loss._ENTRIES", 16 * 300)
    again = evaluate_loss(model, rows)
    assert again.mean == pytest.approx(whole.mean, abs=1e-6)
    assert seen[2:] == [3, 3, 3, 1]  # after two of one row that ask whether the head can be taken apart


@pytest.mark.parametrize("cap", [None, 30.0], ids=["plain", "capped"])
def test_rows_of_one_token_have_nothing_to_predict(cap):
    model = gemma(cap)
    assert evaluate_loss(model, rows_of(5, 5, 1), batch_size=2).num_tokens == 8
    with pytest.raises(ValueError, match="no token to predict"):
        evaluate_loss(model, rows_of(1, 1))


def test_losses_are_of_fp32_under_autocast():
    """A loss so low that it is lost in a bf16 sum over the vocabulary."""
    model = gemma(None)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    rows, bias = rows_of(9, 9), torch.zeros(300)
    ids = {i for row in rows.data for i in row["input_ids"][1:]}
    bias[list(ids)] = 12.0
    expected, _ = naive(model, rows, bias.double())
    floor = np.log(len(ids))
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate_loss(model, rows, bias=bias).mean
    assert 0 < expected - floor < 1e-3
    assert found - floor == pytest.approx(expected - floor, rel=1e-2)


def test_a_token_may_be_banned():
    model, bias = gemma(None), torch.zeros(300)
    rows = rows_of(9)
    bias[[i for i in range(300) if i not in rows.data[0]["input_ids"]]] = -torch.inf
    assert evaluate_loss(model, rows, bias=bias).mean == pytest.approx(naive(model, rows, bias.double())[0], abs=1e-5)


@pytest.mark.parametrize("cap", [None, 0.5], ids=["plain", "capped"])
def test_several_biases_take_one_pass(cap):
    """Logits that are capped behind the head cannot be made in parts, and are right all the same."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 4,
    }
    config = Gemma2Config(**sizes, num_key_value_heads=4, vocab_size=300, final_logit_softcapping=cap)
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval()
    assert can_part(model) == (cap is None)
    rows, biases = rows_of(2, 16, 7, 3), [None, torch.randn(300), torch.randn(300)]
    passes = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    found = evaluate_losses(model, rows, None, biases)
    assert len(passes) == 3  # two of them ask what ``can_part`` does
    for loss, bias in zip(found, biases, strict=True):
        assert loss.mean == pytest.approx(naive(model, rows, 0.0 if bias is None else bias.double())[0], abs=1e-5)


def test_the_ablated_loss_is_that_of_the_ablated_model(model, sgtm):
    rows = rows_of(16, 9, 12)
    before = copy.deepcopy(model.state_dict())
    ablated = evaluate_loss(model, rows, sgtm)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    intact = evaluate_loss(model, rows)
    sgtm.partition.ablate()
    assert ablated.mean == pytest.approx(naive(model, rows)[0], abs=1e-5)
    assert abs(ablated.mean - intact.mean) > 1e-3


def test_a_bias_is_added_to_the_logits(model):
    rows = rows_of(16, 9)
    bias = torch.randn(300, generator=torch.Generator().manual_seed(0))
    assert evaluate_loss(model, rows, bias=bias).mean == pytest.approx(naive(model, rows, bias.double())[0], abs=1e-5)


def test_dropout_is_off_and_the_mode_of_the_model_comes_back(model, sgtm):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    assert evaluate_loss(model, rows_of(16, 9)) == evaluate_loss(model, rows_of(16, 9))
    assert model.training
    assert sgtm.mode == "default"


def test_variants_and_categories(model, sgtm, data):
    rows = {c: data.test.of(c) for c in data.test.present}
    bias = torch.zeros(300)
    losses = evaluate_categories(model, rows, sgtm, bias, 64)
    assert set(losses) == {(c, v) for c in ("forget", "retain") for v in ("intact", "ablated", "calibrated")}
    for category in rows:
        assert losses[category, "calibrated"].mean == pytest.approx(losses[category, "ablated"].mean, abs=1e-6)
    plain = evaluate_categories(model, rows, None, None, 64)
    assert all(plain[c, "ablated"] == plain[c, "intact"] for c in rows)
    assert not any(variant == "calibrated" for _, variant in plain)


def test_rows_without_a_token_to_predict_are_refused(model):
    with pytest.raises(ValueError, match="at least two tokens"):
        evaluate_loss(model, rows_of(1, 1))


def test_losses_of_parts_make_those_of_categories():
    parts = {("retain/Culture", "intact"): Loss(2.0, 30), ("retain/STEM", "intact"): Loss(4.0, 10)}
    whole = of_categories({**parts, ("forget/STEM", "ablated"): Loss(5.0, 3)})
    assert whole == {("retain", "intact"): Loss(2.5, 40), ("forget", "ablated"): Loss(5.0, 3)}
