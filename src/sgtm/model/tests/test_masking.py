"""What holds a mode, what is refused, and what else a mode works with; the method itself is in test_laws.py."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sgtm.config import MODES, Mode
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition
from sgtm.model.strategies import STRATEGIES, Strategy
from sgtm.model.tests.families import FAMILIES, REACHED, Family, gradients, logits, tokens


@pytest.fixture(params=["gpt_neo", "llama_grouped"])
def family(request: pytest.FixtureRequest) -> Family:
    """Two are enough here: the laws hold for all."""
    return FAMILIES[request.param]


@pytest.fixture
def partition(family: Family) -> Partition:
    return Partition.of(family.model(), **family.units)


@pytest.fixture
def sgtm(partition: Partition) -> Iterator[SGTM]:
    sgtm = SGTM(partition)
    yield sgtm
    assert sgtm.mode == "default"


def backward(model: nn.Module, seed: int = 0) -> None:
    model(**tokens(seed)).loss.backward()


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())


# ---- What is refused


@pytest.mark.parametrize("hold", ["batch", "forward"])
def test_unknown_mode(hold: str, sgtm: SGTM) -> None:
    rule = r"mode='forgte' is none of \['default', 'retain', 'forget'\]"
    with pytest.raises(ValueError, match=rule), getattr(sgtm, hold)("forgte"):
        pytest.fail("entered")
    with pytest.raises(ValueError, match=rule):
        sgtm.mask_gradients("forgte")


def test_unknown_strategy_names_the_nearest(partition: Partition) -> None:
    with pytest.raises(ValueError, match=r"strategy='parameter_maskin' is none of .*did you mean 'parameter_masking'"):
        SGTM(partition, "parameter_maskin")


def test_refused_sgtm_leaves_no_hook_behind(partition: Partition) -> None:
    with pytest.raises(ValueError, match="did you mean 'norms'"):
        SGTM(partition, joint=["norm"])
    assert not any(module._forward_pre_hooks for module in partition.model.modules())


def test_forget_batch_without_backward(sgtm: SGTM) -> None:
    backward(sgtm.partition.model)
    earlier = gradients(sgtm.partition.model)
    with pytest.raises(RuntimeError, match=r"call loss.backward\(\) inside the block"), sgtm.batch("forget"):
        loss = sgtm.partition.model(**tokens()).loss
    assert sgtm.mode == "default"
    assert same(gradients(sgtm.partition.model), earlier)
    assert loss.requires_grad


def test_forget_batch_without_gradients_needs_no_backward(sgtm: SGTM) -> None:
    backward(sgtm.partition.model)
    earlier = gradients(sgtm.partition.model)
    with torch.no_grad(), sgtm.batch("forget"):
        sgtm.partition.model(**tokens())
    assert same(gradients(sgtm.partition.model), earlier)


def test_forget_batch_that_trains_nothing_maskable(sgtm: SGTM) -> None:
    for name, p in sgtm.partition.model.named_parameters():
        p.requires_grad_(name in sgtm.partition.joint)
    with sgtm.batch("forget"):
        backward(sgtm.partition.model)
    assert all(p.grad is not None for p in sgtm.partition.joint.values())


def test_forget_batch_with_some_parameters_that_are_not_trained(sgtm: SGTM) -> None:
    still = sgtm.partition.retain[0].param.requires_grad_(False)
    with sgtm.batch("forget"):
        backward(sgtm.partition.model)
    assert still.grad is None


def test_stock_model_refuses_a_mode_argument(sgtm: SGTM) -> None:
    model = sgtm.partition.model
    with pytest.raises(TypeError, match=r"takes no sgtm_mode='forget'; .*with sgtm.batch\(mode\)"):
        model(**tokens(), sgtm_mode="forget")
    with pytest.raises((TypeError, ValueError), match="sgtm_mode"):
        model.generate(tokens()["input_ids"], max_new_tokens=1, sgtm_mode="retain")


# ---- Holding a mode


def test_contexts_restore_the_mode_around_them(sgtm: SGTM) -> None:
    with sgtm.batch("forget"):
        with sgtm.forward("retain"):
            with sgtm.forward("default"):
                assert sgtm.mode == "default"
            assert sgtm.mode == "retain"
        assert sgtm.mode == "forget"
        backward(sgtm.partition.model)


def test_evaluation_inside_a_batch_changes_no_gradient(sgtm: SGTM) -> None:
    with sgtm.batch("forget"):
        backward(sgtm.partition.model)
    plain = gradients(sgtm.partition.model)
    sgtm.partition.model.zero_grad()
    with sgtm.batch("forget"):
        with sgtm.forward("retain"):
            logits(sgtm.partition.model)
        backward(sgtm.partition.model)
    assert same(gradients(sgtm.partition.model), plain)


def test_exception_inside_nested_contexts(sgtm: SGTM) -> None:
    with sgtm.forward("retain"):
        with pytest.raises(KeyboardInterrupt), sgtm.forward("forget"):
            raise KeyboardInterrupt
        assert sgtm.mode == "retain"


@pytest.mark.parametrize("inner", MODES)
def test_batches_do_not_nest(inner: Mode, sgtm: SGTM) -> None:
    with sgtm.batch("retain"):
        with pytest.raises(RuntimeError, match=r"inside sgtm.batch\('retain'\)"), sgtm.batch(inner):
            pass
        assert sgtm.mode == "retain"
    with sgtm.batch(inner):  # the refusal leaves nothing behind
        backward(sgtm.partition.model)


@pytest.mark.parametrize("mode", MODES)
def test_forward_leaves_gradients_alone(mode: Mode, sgtm: SGTM) -> None:
    model = sgtm.partition.model
    backward(model)
    earlier = gradients(model)
    with sgtm.forward(mode):
        logits(model)
    assert same(gradients(model), earlier)


def test_forward_masks_no_gradient(sgtm: SGTM) -> None:
    model = sgtm.partition.model
    backward(model)
    unmasked = gradients(model)
    model.zero_grad()
    with sgtm.forward("forget"):
        backward(model)
    assert same(gradients(model), unmasked)


@pytest.mark.parametrize("mode", MODES)
def test_mask_gradients_zeroes_what_a_batch_may_not_change(mode: Mode, family: Family, partition: Partition) -> None:
    model = partition.model
    sgtm = SGTM(partition, joint=("embeddings", "norms"))
    backward(model)
    unmasked = gradients(model)
    sgtm.mask_gradients(mode)
    may_change = family.may_change(model, mode, "parameter_masking", ("embeddings", "norms"))
    assert same(gradients(model), {n: torch.where(may_change[n], grad, 0.0) for n, grad in unmasked.items()})


def test_close_takes_the_hooks_off(sgtm: SGTM) -> None:
    model = sgtm.partition.model
    sgtm.close()
    sgtm.close()
    assert not any(module._forward_pre_hooks for module in model.modules())
    for hold in (sgtm.forward("retain"), sgtm.batch(["retain"] * 3), sgtm.batch("forget"), sgtm.without()):
        with pytest.raises(RuntimeError, match="this SGTM is closed, so it masks nothing"), hold:
            pytest.fail("entered")


def test_deep_copy_of_a_masked_model_has_a_mode_of_its_own(sgtm: SGTM) -> None:
    copied = copy.deepcopy(sgtm.partition.model)
    intact = logits(copied)
    with sgtm.forward("retain"):
        assert torch.equal(logits(copied), intact)
        assert not torch.equal(logits(sgtm.partition.model), intact)


@pytest.mark.parametrize("held", ["forward", "without", "batch"])
def test_deep_copy_made_in_a_mode_is_in_none(held: str, sgtm: SGTM) -> None:
    model = sgtm.partition.model
    intact = logits(model)
    with {"forward": sgtm.forward("retain"), "without": sgtm.without(), "batch": sgtm.batch("retain")}[held]:
        copied, both = copy.deepcopy(model), copy.deepcopy((model, sgtm))
    for other in (copied, both[0]):
        assert torch.equal(logits(other), intact)
    with both[1].batch("retain"):  # and the two that were copied together belong together
        assert not torch.equal(logits(both[0]), intact)
        assert torch.equal(logits(model), intact)


def test_no_copy_is_made_where_modules_hold_forward_passes_of_their_own(sgtm: SGTM) -> None:
    with sgtm.forward(["retain", "forget", "default"]):
        with pytest.raises(
            RuntimeError, match=r"inside modes of shape \(3, 1\) would compute with this model's weights"
        ):
            copy.deepcopy(sgtm.partition.model)
    assert torch.equal(logits(copy.deepcopy(sgtm.partition.model)), logits(sgtm.partition.model))


@pytest.mark.parametrize("outer", ["batch", "forward"])
@pytest.mark.parametrize("inner", ["hearing", "spreading"])
def test_what_a_batch_may_change_is_settled_where_it_begins(outer: str, inner: str, sgtm: SGTM) -> None:
    modes = torch.tensor([[0], [1], [2]])
    with getattr(sgtm, outer)(modes):
        with pytest.raises(RuntimeError, match=rf"sgtm.{inner}\(...\) inside a batch comes too late"):
            getattr(sgtm, inner)().__enter__()
        if outer == "batch":
            backward(sgtm.partition.model)


@pytest.mark.parametrize("joint", [(), ("embeddings", "norms")], ids=str)
def test_hooks_that_take_gradients_as_they_arrive(joint: tuple[str, ...], partition: Partition) -> None:
    """An optimizer inside the backward pass: it has stepped before the block ends."""
    model = partition.model
    sgtm = SGTM(partition, joint=joint)
    with sgtm.batch("forget"):
        backward(model)
    expected, taken = gradients(model), {}
    model.zero_grad()
    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: taken.update({name: p.grad.clone()}))
    with sgtm.batch("forget"):
        backward(model)
    for name, grad in taken.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")  # its new name is 5.23's
@pytest.mark.parametrize("mode", ["default", "retain", ["retain", "forget", "default"]], ids=str)
def test_under_checkpointing_a_backward_pass_after_the_block_is_refused(mode, sgtm: SGTM) -> None:
    model = sgtm.partition.model.train()
    model.gradient_checkpointing_enable()
    for _ in range(2):  # the second time there are gradients already
        with sgtm.batch(mode):
            backward(model)
    with pytest.raises(RuntimeError, match=r"what is computed again for it would be in no mode"), sgtm.batch(mode):
        model(**tokens(0))
    with torch.no_grad(), sgtm.batch(mode):
        model(**tokens(0))


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (2, r"mode=2 is no mode; give one of \['default', 'retain', 'forget'\], a list of them, or a LongTensor"),
        (None, "mode=None is no mode"),
        ([0, 1, 2], "mode=0 is none of .*; codes go into a LongTensor"),
    ],
)
def test_what_is_no_mode(mode, message: str, sgtm: SGTM) -> None:
    with pytest.raises(ValueError, match=message), sgtm.batch(mode):
        pytest.fail("entered")


def test_a_model_is_no_partition(partition: Partition) -> None:
    with pytest.raises(TypeError, match=r"give a partition, SGTM\(Partition.of\(model, "):
        SGTM(partition.model)


# ---- Strategies


def test_strategies_are_the_ones_that_the_laws_describe() -> None:
    assert set(STRATEGIES) == set(REACHED)


def test_strategy_says_what_a_forget_batch_reaches(strategy: str) -> None:
    sites = ("attn.in", "attn.out", "attn.out bias", "mlp.in", "mlp.out", "mlp.out bias")
    row = STRATEGIES[strategy]
    found = {site for site in sites if row.reaches(site.removesuffix(" bias"), site.endswith("bias"))}
    assert found == REACHED[strategy]


def test_a_strategy_of_ones_own(partition: Partition) -> None:
    sgtm = SGTM(partition, Strategy(activations="detach", frozen=frozenset({"mlp.out"})))
    with sgtm.batch("forget"):
        backward(partition.model)
    for s in partition.retain:
        reached = s.site == "attn.out"
        assert bool(s.of(s.param.grad).any()) == reached, s


# ---- What a mode works with


def generate(model: nn.Module) -> Tensor:
    """Logits (batch, new tokens, vocabulary) of greedy generation with a cache."""
    out = model.generate(
        tokens()["input_ids"],
        attention_mask=torch.ones(3, 8, dtype=torch.long),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.logits, 1)


def test_generation_in_retain_mode_is_the_ablated_models(family: Family, sgtm: SGTM) -> None:
    intact = generate(sgtm.partition.model)
    with sgtm.forward("retain"):
        retained = generate(sgtm.partition.model)
    ablated = Partition.of(family.model(), **family.units)
    ablated.ablate()
    assert torch.equal(retained, generate(ablated.model))
    assert not torch.allclose(retained, intact, atol=1e-2)
    assert torch.equal(generate(sgtm.partition.model), intact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_retain_pass_in_other_precisions(dtype: torch.dtype, sgtm: SGTM) -> None:
    model = sgtm.partition.model.to(dtype)
    with sgtm.forward("retain"):
        retained = logits(model)
    sgtm.partition.ablate()
    assert torch.equal(retained, logits(model))


def test_retain_pass_does_not_hear_forget_units_that_overflow(sgtm: SGTM) -> None:
    for s in sgtm.partition.forget:
        if s.site == "mlp.in":
            s.of(s.param.data).fill_(torch.inf)
    with sgtm.forward("retain"):
        retained = logits(sgtm.partition.model)
    sgtm.partition.ablate()
    assert torch.equal(retained, logits(sgtm.partition.model))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")  # its new name is 5.23's
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_activation_checkpointing_gives_the_same_gradients(
    mode: Mode, reentrant: bool, partition: Partition, strategy: str
) -> None:
    model = partition.model.train()  # checkpointing is off in evaluation
    model.config.use_cache = False
    sgtm = SGTM(partition, strategy)
    with sgtm.batch(mode):
        backward(model)
    stored = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    with sgtm.batch(mode):
        backward(model)
    assert same(gradients(model), stored)
