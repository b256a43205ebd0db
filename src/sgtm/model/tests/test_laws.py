"""The laws of the method, for each case: a family, a strategy and a choice of joint parameters.

A family earns its row in ``ARCHITECTURES`` here. Laws 9 to 13 stand where their subjects do.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from sgtm.config import MODES, Mode
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition
from sgtm.model.tests.families import DEVICE, FORGET, JOINT, RETAIN, Case, Family, gradients, logits, tokens

Gradients = dict[str, Tensor]
OWNERS = {"retain": RETAIN, "forget": FORGET, "joint": JOINT}


def prepare(case: Case, dtype: torch.dtype = torch.float32) -> SGTM:
    return SGTM(Partition.of(case.family.model(dtype), **case.family.units), case.strategy, case.joint)


def run(sgtm: SGTM, mode: Mode | Sequence[str], seed: int = 0, scale: float = 1.0, rows: slice = slice(None)) -> None:
    """One batch of ``mode``; gradients accumulate."""
    batch = {name: values[rows] for name, values in tokens(seed).items()}
    with sgtm.batch(mode):
        (scale * sgtm.partition.model(**batch).loss).backward()


def assert_equal(actual: Gradients, expected: Gradients) -> None:
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def assert_close(actual: Gradients, expected: Gradients) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


# ---- Law 1: default mode is the untouched model, bit for bit


def test_default_mode_is_the_untouched_model(case: Case) -> None:
    stock = case.family.model()
    stock(**tokens()).loss.backward()
    sgtm = prepare(case)
    model = sgtm.partition.model
    run(sgtm, "retain")
    run(sgtm, "forget")
    model.zero_grad()
    assert torch.equal(logits(model), logits(stock))
    run(sgtm, "default")
    assert_equal(gradients(model), gradients(stock))


# ---- Law 2: retain, forget and joint are disjoint and cover all parameters


def test_partition_owns_every_element_once(family: Family) -> None:
    partition = Partition.of(family.model(), **family.units)
    painted = {name: torch.full(p.shape, -1, device=p.device) for name, p in partition.model.named_parameters()}
    for owner, slices in ((RETAIN, partition.retain), (FORGET, partition.forget)):
        for s in slices:
            assert (s.of(painted[s.name]) == -1).all(), s
            s.of(painted[s.name]).fill_(owner)
    for name in partition.joint:
        assert (painted[name] == -1).all(), name
        painted[name].fill_(JOINT)
    assert_equal(painted, family.owners(partition.model))


def test_slices_name_their_parameter_and_site(family: Family) -> None:
    partition = Partition.of(family.model(), **family.units)
    sites = family.sites()
    for s in (*partition.retain, *partition.forget):
        assert s.param is partition.model.get_parameter(s.name)
        assert s.site == sites[s.name].removesuffix(" bias")
        assert s.name.startswith(f"{family.blocks}.{s.layer}.")


def test_blocks_tile_every_parameter_once(case: Case) -> None:
    sgtm = prepare(case)
    model = sgtm.partition.model
    may_change = {mode: case.may_change(model, mode) for mode in MODES}
    owners = case.family.owners(model)
    tiles = {name: torch.zeros(p.shape, dtype=torch.int, device=p.device) for name, p in model.named_parameters()}
    for block in sgtm.blocks():
        part = block.slice.of if block.slice else lambda tensor: tensor
        part(tiles[block.name]).add_(1)
        assert (block.slice is None) == (part(tiles[block.name]).numel() == tiles[block.name].numel())
        assert (part(owners[block.name]) == OWNERS[block.owner]).all(), block
        for mode in MODES:
            assert (part(may_change[mode][block.name]) == (mode in block.modes)).all(), (block, mode)
    assert all((tile == 1).all() for tile in tiles.values())


# ---- Law 3: a retain batch's output equals the ablated model's


def test_retain_pass_is_the_ablated_model(case: Case) -> None:
    sgtm = prepare(case)
    ablated = case.family.model()
    Partition.of(ablated, **case.family.units).ablate()
    for hold in (sgtm.forward, sgtm.batch):
        with hold("retain"):
            # Bit-equal: a silent unit adds +-0 to the same sums.
            assert torch.equal(logits(sgtm.partition.model), logits(ablated))


def test_ablation_changes_the_model(family: Family, ablated: Partition) -> None:
    assert not torch.allclose(logits(family.model()), logits(ablated.model), atol=1e-2)


# ---- Law 4: gradients lie inside what the batch may change, and all of that is reached


@pytest.mark.parametrize("mode", MODES)
def test_batch_changes_what_it_may_and_all_of_it(mode: Mode, case: Case) -> None:
    sgtm = prepare(case)
    model = sgtm.partition.model
    family, may_change = case.family, case.may_change(model, mode)
    owners, still, cut_off = family.owners(model), family.still(model), case.cut_off(model, mode)
    run(sgtm, mode)
    for name, grad in gradients(model).items():
        assert not grad[~may_change[name]].any(), name
        if name in cut_off:
            assert not grad.any(), name
        elif may_change[name].any() and (owners[name] == JOINT).all():
            assert grad.any(), name
        else:  # every element that a unit owns
            assert grad[may_change[name] & ~still[name]].all(), name
            assert (grad[still[name]].abs() < 1e-5).all(), name  # rounding


# ---- Law 5: gradients equal the plain reference


def treat_input(module: nn.Module, treat: Callable[[Tensor], Tensor]) -> None:
    """``y = treat(x) W^T + b``."""
    plain = module.forward
    module.forward = lambda x: plain(treat(x))


def treatment(mode: Mode, strategy: str, forget: Tensor) -> Callable[[Tensor], Tensor]:
    """What stands in front of an output projection whose ``forget`` inputs (features,) are the forget units'."""
    if mode == "retain":
        return lambda x: torch.where(forget, 0.0, x)
    if mode == "forget" and strategy == "activation_masking":
        return lambda x: torch.where(forget, x, 0.0)
    if mode == "forget" and strategy == "gradient_routing":
        return lambda x: torch.where(forget, x, x.detach())
    return lambda x: x


def reference(case: Case, mode: Mode) -> tuple[Tensor, Gradients]:
    """Loss and gradients of the plain model with parameters ``where(mask, W, W.detach())``."""
    model = case.family.model(torch.float64)
    for path, forget in case.family.forget_inputs(model).items():
        treat_input(model.get_submodule(path), treatment(mode, case.strategy, forget))
    masks = case.may_change(model, mode)
    # A retain batch spares the forget units by silencing them, not by masking.
    masked = {n: torch.where(masks[n], p, p.detach()) if mode == "forget" else p for n, p in model.named_parameters()}
    loss = functional_call(model, masked, kwargs=tokens()).loss
    loss.backward()
    return loss.detach(), gradients(model)


def use_double(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What models cast to fp32, whatever their dtype (norms, rotary embeddings, softmax), they cast to fp64."""
    case.family.model(torch.float64)  # made, and kept, before torch is changed
    for name in ("float32", "float"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture
def double(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    use_double(case, monkeypatch)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("mode", ["retain", "forget"])
def test_gradients_equal_the_plain_reference(mode: Mode, case: Case) -> None:
    sgtm = prepare(case, torch.float64)
    loss, expected = reference(case, mode)
    with sgtm.forward(mode), torch.no_grad():
        torch.testing.assert_close(sgtm.partition.model(**tokens()).loss, loss, rtol=1e-12, atol=0)
    run(sgtm, mode)
    assert_close(gradients(sgtm.partition.model), expected)


# ---- Law 6: ablation is idempotent, survives save and load, and units can be made to learn again


@pytest.fixture
def ablated(family: Family) -> Partition:
    partition = Partition.of(family.model(), **family.units)
    partition.ablate()
    return partition


def test_ablation_zeroes_the_forget_slices_alone(family: Family, ablated: Partition) -> None:
    owners = family.owners(ablated.model)
    intact = dict(family.model().named_parameters())
    expected = {name: torch.where(owners[name] == FORGET, 0.0, p) for name, p in intact.items()}
    assert_equal(dict(ablated.model.named_parameters()), expected)


def test_ablation_is_idempotent(ablated: Partition) -> None:
    once = copy.deepcopy(ablated.model.state_dict())
    ablated.ablate()
    assert_equal(ablated.model.state_dict(), once)


def test_ablation_survives_save_and_load(family: Family, ablated: Partition, tmp_path: Path) -> None:
    ablated.model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="eager").eval().to(DEVICE)
    assert_equal(dict(loaded.named_parameters()), dict(ablated.model.named_parameters()))
    torch.testing.assert_close(logits(loaded), logits(ablated.model))  # sums may go by how weights lie in memory
    assert not any(s.of(s.param).any() for s in Partition.of(loaded, **family.units).forget)


def test_reinit_keeps_the_function(family: Family, ablated: Partition) -> None:
    partition = Partition.of(family.model(), **family.units)
    partition.ablate(reinit=True, generator=torch.Generator().manual_seed(1))
    assert torch.equal(logits(partition.model), logits(ablated.model))


def test_reinit_draws_input_weights_alone(family: Family, ablated: Partition) -> None:
    ablated.ablate(reinit=True, generator=torch.Generator().manual_seed(1))
    std = family.config.init_std if family.config.model_type == "opt" else family.config.initializer_range
    for s in ablated.forget:
        drawn = s.of(s.param) / std
        if s.site.endswith(".in") and s.param.ndim == 2:
            assert drawn.abs().max() < 6
            assert 0.5 < drawn.std() < 1.5
        else:
            assert not drawn.any(), s


def test_reinit_follows_its_generator(family: Family) -> None:
    def reinit(seed: int) -> Gradients:
        partition = Partition.of(family.model(), **family.units)
        partition.ablate(reinit=True, generator=torch.Generator().manual_seed(seed))
        return dict(partition.model.named_parameters())

    assert_equal(reinit(1), reinit(1))
    one, two = reinit(1), reinit(2)
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_ablated_units_are_dead_and_reinitialised_ones_learn(family: Family, ablated: Partition) -> None:
    still = family.still(ablated.model)

    def learning(above: float = 0.0) -> dict[str, set[bool]]:
        """Whether elements of forget units get a gradient, on the input and on the output side."""
        ablated.model.zero_grad()
        ablated.model(**tokens()).loss.backward()
        found: dict[str, set[bool]] = {"in": set(), "out": set()}
        for s in ablated.forget:
            reached = s.of(s.param.grad)[~s.of(still[s.name])].abs() > above
            found[s.site.partition(".")[2]] |= set(reached.tolist())
        return found

    assert learning(above=family.at_zero) == {"in": {False}, "out": {False}}
    ablated.ablate(reinit=True, generator=torch.Generator().manual_seed(1))
    assert learning() == {"in": {False}, "out": {True}}
    torch.optim.SGD(ablated.model.parameters(), lr=0.1).step()
    assert learning() == {"in": {True}, "out": {True}}


# ---- Law 7: an exception inside a batch leaves the mode at default, and earlier gradients as they were


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("mode", MODES)
def test_exception_before_backward(mode: Mode, case: Case) -> None:
    sgtm = prepare(case)
    model = sgtm.partition.model
    intact = logits(model)
    run(sgtm, "default")
    earlier = gradients(model)
    with pytest.raises(KeyboardInterrupt), sgtm.batch(mode):
        interrupt(model(**tokens(1)).loss)
    assert sgtm.mode == "default"
    assert torch.equal(logits(model), intact)
    assert_equal(gradients(model), earlier)


@pytest.mark.parametrize("accumulated", [False, True])
def test_exception_after_backward(accumulated: bool, case: Case) -> None:
    sgtm = prepare(case)
    model = sgtm.partition.model
    if accumulated:
        run(sgtm, "default")
    earlier = gradients(model)
    with pytest.raises(KeyboardInterrupt), sgtm.batch("forget"):
        interrupt(model(**tokens(1)).loss.backward())
    assert sgtm.mode == "default"
    for name, may_change in case.may_change(model, "forget").items():
        assert torch.equal(gradients(model)[name][~may_change], earlier[name][~may_change]), name


# ---- Law 8: accumulated micro-batches equal one batch


def alone(case: Case, mode: Mode, seed: int) -> Gradients:
    sgtm = prepare(case, torch.float64)
    run(sgtm, mode, seed)
    return gradients(sgtm.partition.model)


@pytest.mark.usefixtures("double")
def test_modes_mix_in_any_order(case: Case) -> None:
    sgtm = prepare(case, torch.float64)
    model = sgtm.partition.model
    parts = [alone(case, mode, seed) for seed, mode in enumerate(MODES)]
    earlier = alone(case, "default", 9)
    for i, order in enumerate(permutations(enumerate(MODES))):
        with_earlier = i % 2 == 0  # each mode comes first once with gradients from before, and once without
        for name, p in model.named_parameters():
            p.grad = earlier[name].clone() if with_earlier else None
        for seed, mode in order:
            run(sgtm, mode, seed)
        expected = {name: with_earlier * grad + sum(part[name] for part in parts) for name, grad in earlier.items()}
        assert_close(gradients(model), expected)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("mode", ["retain", "forget"])
def test_micro_batches_equal_one_batch(mode: Mode, case: Case) -> None:
    sgtm = prepare(case, torch.float64)
    for i in range(3):
        run(sgtm, mode, scale=1 / 3, rows=slice(i, i + 1))
    assert_close(gradients(sgtm.partition.model), alone(case, mode, 0))


@pytest.mark.usefixtures("double")
def test_one_pass_with_a_mode_for_each_example_equals_the_sum(case: Case) -> None:
    order = ("forget", "default", "retain")
    sgtm = prepare(case, torch.float64)
    run(sgtm, order)
    one_pass = gradients(sgtm.partition.model)
    sgtm.partition.model.zero_grad()
    for i, mode in enumerate(order):
        run(sgtm, mode, scale=1 / 3, rows=slice(i, i + 1))
    assert_close(one_pass, gradients(sgtm.partition.model))
