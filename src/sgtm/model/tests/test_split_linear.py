"""SplitLinearOut is nn.Linear with its outputs held in two parameters."""

import copy

import pytest
import torch
from torch import nn

from sgtm.model.split_linear import SplitLinearOut

IN, OUT, RETAIN = 5, 7, 4


def pair(bias: bool = True, dtype: torch.dtype | None = None) -> tuple[nn.Linear, SplitLinearOut]:
    linear = nn.Linear(IN, OUT, bias, dtype=dtype)
    return linear, SplitLinearOut.from_linear(linear, RETAIN)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computes_what_the_whole_layer_computes(bias: bool, dtype: torch.dtype) -> None:
    linear, split = pair(bias, dtype)
    x = torch.randn(2, 3, IN, dtype=dtype, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    expected, got = linear(x), split(y)
    assert got.dtype == dtype
    assert torch.equal(got, expected)
    for out in (expected, got):
        out.square().sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert torch.equal(linear.weight.grad, torch.cat((split.weight_retain.grad, split.weight_forget.grad)))
    if bias:
        assert torch.equal(linear.bias.grad, torch.cat((split.bias_retain.grad, split.bias_forget.grad)))


@pytest.mark.parametrize("bias", [True, False])
def test_is_initialised_like_the_whole_layer(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(IN, OUT, bias)
    after = torch.rand(1)
    torch.manual_seed(0)
    split = SplitLinearOut(IN, OUT, RETAIN, bias)
    assert torch.equal(split.weight, linear.weight)
    assert split.bias is None if not bias else torch.equal(split.bias, linear.bias)
    assert torch.equal(torch.rand(1), after)


def test_from_linear_draws_no_random_numbers_and_shares_no_memory() -> None:
    linear = nn.Linear(IN, OUT)
    state = torch.get_rng_state()
    split = SplitLinearOut.from_linear(linear, RETAIN)
    assert torch.equal(torch.get_rng_state(), state)
    before = linear.weight.detach().clone()
    with torch.no_grad():
        split.weight_retain.zero_()
    assert torch.equal(linear.weight, before)


def test_from_linear_on_the_meta_device_stays_there() -> None:
    with torch.device("meta"):
        split = SplitLinearOut.from_linear(nn.Linear(IN, OUT, dtype=torch.bfloat16), RETAIN)
    assert {(p.device.type, p.dtype) for p in split.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize(("bias", "names"), [(True, {"weight", "bias"}), (False, {"weight"})])
def test_names_and_shapes(bias: bool, names: set[str]) -> None:
    _, split = pair(bias)
    shapes = {name: tuple(p.shape) for name, p in split.named_parameters()}
    assert set(shapes) == {f"{n}_{side}" for n in names for side in ("retain", "forget")}
    assert shapes["weight_retain"] == (RETAIN, IN)
    assert shapes["weight_forget"] == (OUT - RETAIN, IN)
    assert (split.in_features, split.out_features) == (IN, OUT)
    assert f"out_features={RETAIN}+{OUT - RETAIN}, bias={bias}" in repr(split)


@pytest.mark.parametrize("bias", [True, False])
def test_state_round_trips(bias: bool) -> None:
    _, split = pair(bias)
    other = SplitLinearOut(IN, OUT, RETAIN, bias)
    other.load_state_dict(copy.deepcopy(split).state_dict())
    assert torch.equal(other.weight, split.weight)


@pytest.mark.parametrize("retain", [-1, 0, OUT, OUT + 1])
def test_both_sides_must_have_outputs(retain: int) -> None:
    with pytest.raises(ValueError, match=rf"retain_features={retain} .*between 1 and .*{OUT - 1}.*use nn.Linear"):
        SplitLinearOut(IN, OUT, retain)
