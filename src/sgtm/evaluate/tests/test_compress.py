"""Rounded and pruned weights: bounds, counts, and everything put back."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sgtm.evaluate.compress import projections, pruned, quantized, round_to_nearest

SHARE = 0.3


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=16)).eval()


def weights(model):
    return {name: p.clone() for name, p in model.named_parameters()}


def outer(model) -> set[str]:
    return {name for name, _ in model.named_parameters() if "wte" in name or "wpe" in name or "ln_" in name}


@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_is_at_most_half_a_step_of_its_channel(bits):
    x = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)) * torch.tensor([[10.0**k] for k in range(-3, 4)])
    rounded = round_to_nearest(x, bits, 1)
    scale = x.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((x - rounded).abs() <= scale / 2 * (1 + 1e-5)).all()  # but for fp32's own rounding
    assert all(len(row.unique()) <= 2**bits - 1 for row in rounded)
    assert torch.equal(rounded.abs().amax(1), x.abs().amax(1))  # the largest of a channel stays


def test_zeros_stay_zeros():
    assert torch.equal(round_to_nearest(torch.zeros(3, 4), 8, 1), torch.zeros(3, 4))


@pytest.mark.parametrize("build", [None, gpt2], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_rounded_by_output_channel_and_put_back(model, build, bits):
    model = (build() if build else model).eval()
    before, inputs = weights(model), int(build is None)
    with quantized(model, bits):
        for module in projections(model):
            assert all(len(channel.unique()) <= 2**bits - 1 for channel in module.weight.unbind(1 - inputs))
        now = weights(model)
        assert all(torch.equal(now[name], before[name]) for name in outer(model))
        assert any(not torch.equal(now[name], before[name]) for name in before)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated; where it is gone there is nothing to compare with
def test_int8_dynamic_is_near_to_that_of_torch(model):
    """torch has one scale and zero point for a whole activation: both are off by some 8-bit steps, in other places."""
    ao = pytest.importorskip("torch.ao.quantization")
    if "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch has no engine for quantised linear maps")
    model.eval()
    ids = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model(ids).logits
        with quantized(model, 8, dynamic=True):
            ours = model(ids).logits
        assert torch.equal(model(ids).logits, exact)
        names = {name for name, m in model.named_modules() if any(m is p for p in projections(model))}
        theirs = ao.quantize_dynamic(model, dict.fromkeys(names, ao.per_channel_dynamic_qconfig))(ids).logits
    error = (theirs - exact).norm()
    assert error > 0
    assert (ours - exact).norm() < 2 * error
    assert (ours - theirs).norm() < 2 * error


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5])
def test_exactly_the_least_weights_are_pruned(model, scope, sparsity):
    before = weights(model)
    full = [m.weight.detach().clone() for m in projections(model)]
    with pruned(model, sparsity, scope):
        zeros = [int((m.weight == 0).sum()) for m in projections(model)]
        if scope == "layer":
            assert zeros == [round(sparsity * w.numel()) for w in full]
        assert sum(zeros) == pytest.approx(sparsity * sum(w.numel() for w in full), abs=len(full) / 2)
        if scope == "global":
            assert sum(zeros) == round(sparsity * sum(w.numel() for w in full))
            lost = torch.cat([w[m.weight == 0].abs() for w, m in zip(full, projections(model), strict=True)])
            kept = torch.cat([w[m.weight != 0].abs() for w, m in zip(full, projections(model), strict=True)])
            assert not len(lost) or lost.max() <= kept.min()
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in outer(model))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_weights_that_are_zero_already_do_not_count(sgtm, model):
    sgtm.partition.ablate()
    zeros = sum(int((m.weight == 0).sum()) for m in projections(model))
    total = sum(m.weight.numel() for m in projections(model))
    assert zeros > 0.1 * total
    with pruned(model, 0.1):
        assert sum(int((m.weight == 0).sum()) for m in projections(model)) == zeros + round(0.1 * (total - zeros))


def test_an_exception_inside_leaves_the_model_as_it_was(model):
    before = weights(model)
    for context in (quantized(model, 4, True), pruned(model, SHARE)):
        with pytest.raises(KeyError), context:
            raise KeyError
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(m._forward_pre_hooks for m in projections(model))
