"""The loss in chunks is the loss, and so are its gradients."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from sgtm.model import chunked_loss as module
from sgtm.model.chunked_loss import can_chunk, chunked, chunked_loss, is_large

TINY = {
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
    "llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4},
    "cohere": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma2": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "final_logit_softcapping": 0.5,
    },
}


def inputs(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, b = (torch.randn(size, generator=generator).to(dtype) for size in ((37, 8), (50, 8), (50,)))
    b = b if bias else None
    targets = torch.randint(50, (37,), generator=generator)
    targets[[0, 11, 36]] = -100
    return [t if t is None else t.requires_grad_() for t in (hidden, weight, b)], targets


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("entries", [1, 50 * 7, 10**6])
def test_it_equals_the_whole_loss(entries, bias):
    """fp32 against one fp64 reference: sums of 34 losses in another order."""
    (hidden, weight, b), targets = inputs(bias=bias)
    whole = F.cross_entropy(F.linear(hidden, weight, b), targets, ignore_index=-100, reduction="sum")
    expected = torch.autograd.grad(3 * whole, [t for t in (hidden, weight, b) if t is not None])
    (hidden, weight, b), targets = inputs(torch.float32, bias)
    ours = chunked_loss(hidden, weight, b, targets, entries)
    found = torch.autograd.grad(3 * ours, [t for t in (hidden, weight, b) if t is not None])
    assert ours.item() == pytest.approx(whole.item(), rel=1e-6)
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spare", [0, 14])
def test_what_a_gpu_compiles_computes_the_same(spare):
    """Logits behind the vocabulary count for nothing, whatever they are."""
    (hidden, weight, b), targets = inputs(torch.float32)
    z = F.linear(hidden, weight, b).detach()
    loss, gradient = module._losses_and_gradient(z.clone(), targets)
    found, padded = module._fused(F.pad(z, (0, spare), value=9.0), targets, 50)
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(padded[:, :50], gradient)
    assert not padded[:, 50:].any()
    assert loss == module._losses(z, targets)


@pytest.mark.parametrize("entries", [50 * 7, 10**6])
def test_some_tokens_give_weight_or_bias_no_gradient(entries):
    generator = torch.Generator().manual_seed(1)
    where = {name: torch.rand(37, generator=generator) < 0.5 for name in ("weight", "bias")}
    (hidden, weight, b), targets = inputs()
    w = torch.where(where["weight"][:, None, None], weight.detach(), weight)  # (tokens, vocab, hidden)
    c = torch.where(where["bias"][:, None], b.detach(), b)
    z = (w @ hidden[:, :, None]).squeeze(-1) + c
    whole = F.cross_entropy(z, targets, ignore_index=-100, reduction="sum")
    expected = torch.autograd.grad(whole, [hidden, weight, b])
    (hidden, weight, b), targets = inputs(torch.float32)
    found = torch.autograd.grad(chunked_loss(hidden, weight, b, targets, entries, constant=where), [hidden, weight, b])
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-5)


def test_no_more_logits_exist_than_asked(monkeypatch):
    (hidden, weight, b), targets = inputs(torch.float32)
    sizes, linear = [], F.linear
    monkeypatch.setattr(module.F, "linear", lambda h, *rest: sizes.append(len(h)) or linear(h, *rest))
    chunked_loss(hidden, weight, b, targets, 50 * 7)
    assert sizes == [7, 7, 7, 7, 7, 2]


def test_low_precision_is_that_of_the_model():
    """Under bf16 autocast the loss is the library's to its own precision, not more wrong than that."""
    (hidden, weight, b), targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = chunked_loss(hidden, weight, b, targets, 350)
        theirs = F.cross_entropy(F.linear(hidden, weight, b).float(), targets, ignore_index=-100, reduction="sum")
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    found = torch.autograd.grad(ours, weight)[0]
    expected = torch.autograd.grad(theirs, weight)[0]
    assert (found - expected).abs().max() < 1e-2 * expected.abs().max()


def model_of(name):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=60, **TINY[name], pad_token_id=None, bos_token_id=0, eos_token_id=0)
    return AutoModelForCausalLM.from_config(config).eval()  # no dropout


@pytest.mark.parametrize("name", TINY)
def test_models_of_any_family(name, monkeypatch):
    monkeypatch.setattr(module, "_ENTRIES", 200)
    model = model_of(name)
    assert can_chunk(model) is (name != "gemma2"), "a cap behind the head is not chunked"
    ids = torch.randint(60, (3, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(9) > 6, -100)
    results = {}
    for kind in ("own", "chunked"):
        model.zero_grad()
        if kind == "chunked" and name != "gemma2":
            with chunked(model):
                loss = model(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(40)).loss
        else:
            loss = model(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(40)).loss
        loss.backward()
        results[kind] = (loss.detach(), [p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(results["own"], results["chunked"], rtol=1e-4, atol=1e-6)
    assert model(input_ids=ids).logits.shape == (3, 9, 60), "afterwards it is as it was"


def test_without_gradients_none_is_made(monkeypatch):
    monkeypatch.setattr(module, "_losses_and_gradient", None)
    (hidden, weight, b), targets = inputs(torch.float32)
    whole = F.cross_entropy(F.linear(hidden, weight, b), targets, ignore_index=-100, reduction="sum")
    with torch.no_grad():
        assert chunked_loss(hidden, weight, b, targets, 50 * 7).item() == pytest.approx(whole.item(), rel=1e-6)


def test_a_model_without_a_head_is_left_alone():
    model = AutoModelForSequenceClassification.from_config(model_of("gpt2").config)
    assert not is_large({"labels": torch.zeros(2**8, 2**10)}, model)


def test_small_batches_are_left_alone():
    model = model_of("llama")
    assert not is_large({"labels": torch.zeros(8, 64)}, model)
    assert is_large({"labels": torch.zeros(2**8, 2**10)}, model)
    assert not is_large({"labels": torch.zeros(2**8, 2**10)}, model, low_precision=True), "whole, it is faster"
    assert not is_large({}, model)
