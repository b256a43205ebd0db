"""Several forget domains: the laws for each of them and for every subset, against reference.py."""

from collections.abc import Iterable
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition, Units
from sgtm.model.tests.families import gradients, logits, tokens
from sgtm.model.tests.reference import HEADS, MAIN, NEURONS, TINY, Tiny, assert_close, owned_by, prepare, reference

Gradients = dict[str, Tensor]
DOMAINS = {"biology": Units(heads=2, neurons=2), "cyber": Units(heads=2), "chemistry": Units(neurons=3)}
MODES = ("default", "retain", *DOMAINS)
OWNERS = ("joint", "retain", *DOMAINS)
SUBSETS = [chosen for k in (1, 2, 3) for chosen in combinations(DOMAINS, k)]


@pytest.fixture(params=["llama", "gpt2"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return TINY[request.param]


@pytest.fixture(params=[False, True], ids=["joint_updated", "joint_frozen"])
def joint(request: pytest.FixtureRequest, tiny: Tiny) -> tuple[str, ...]:
    return tuple(tiny.joint) if request.param else ()


@pytest.fixture
def partition(tiny: Tiny) -> Partition:
    return Partition.of(tiny.model(), domains=DOMAINS)


def train(sgtm: SGTM, mode: object, batch: dict[str, Tensor], scale: float = 1.0) -> Gradients:
    with sgtm.batch(mode):
        (scale * sgtm.partition.model(**batch).loss).backward()
    return gradients(sgtm.partition.model)


def alone(tiny: Tiny, strategy: str, joint: Iterable[str], mode: object, batch: dict[str, Tensor]) -> Gradients:
    return train(prepare(tiny, strategy, tuple(joint), DOMAINS), mode, batch)


def zeroed(tiny: Tiny, domains: Iterable[str]) -> nn.Module:
    """The plain model with the units of ``domains`` zeroed by hand."""
    model = tiny.model()
    codes = [OWNERS.index(domain) for domain in domains]
    for name, owner in owned_by(tiny, model, DOMAINS).items():
        model.get_parameter(name).data[torch.isin(owner, torch.tensor(codes))] = 0.0
    return model


# ---- The partition


def test_domains_own_every_element_once(tiny: Tiny, partition: Partition) -> None:
    painted = {name: torch.full(p.shape, -1) for name, p in partition.model.named_parameters()}
    for s in (*partition.retain, *partition.forget):
        assert (s.of(painted[s.name]) == -1).all(), s
        s.of(painted[s.name]).fill_(OWNERS.index(s.domain or "retain"))
    for name in partition.joint:
        assert (painted[name] == -1).all(), name
        painted[name].fill_(0)
    assert_close(painted, owned_by(tiny, partition.model, DOMAINS), rtol=0, atol=0)


def test_domains_lie_in_their_order_behind_retain(partition: Partition) -> None:
    for writer in partition.writers:
        ends = [span.stop for span in writer.spans]
        assert [span.start for span in writer.spans] == [0, *ends[:-1]]
        assert ends[-1] in (2 * HEADS, NEURONS)
        assert [span.domain for span in writer.spans] in ([None, "biology", "cyber"], [None, "biology", "chemistry"])


def test_modes_and_units_of_all_domains(partition: Partition) -> None:
    assert partition.modes == MODES
    assert (partition.heads, partition.neurons) == (4, 5)


def test_num_parameters_adds_up(tiny: Tiny, partition: Partition) -> None:
    counts = partition.num_parameters()
    owned = torch.cat([owner.flatten() for owner in owned_by(tiny, partition.model, DOMAINS).values()])
    assert counts == {name: int((owned == i).sum()) for i, name in enumerate(OWNERS)}
    assert sum(counts.values()) == partition.model.num_parameters()


def test_str_shows_every_domain(partition: Partition) -> None:
    shown = str(partition)
    assert "biology: 2 heads, 2 neurons a layer; cyber: 2 heads, 0 neurons a layer" in shown
    assert shown.splitlines()[1].split() == ["retain", *DOMAINS, "joint"]
    assert shown.splitlines()[-1].split()[1:] == [f"{n:,}" for n in partition.num_parameters().values()]
    assert "'cyber': Units(heads=2, neurons=0)" in repr(partition)


def test_blocks_name_owners_and_modes(tiny: Tiny, joint: tuple[str, ...]) -> None:
    sgtm = prepare(tiny, joint=joint, domains=DOMAINS)
    model = sgtm.partition.model
    tiles = {name: torch.zeros(p.shape, dtype=torch.int) for name, p in model.named_parameters()}
    owned = owned_by(tiny, model, DOMAINS)
    for block in sgtm.blocks():
        part = block.slice.of if block.slice else lambda tensor: tensor
        part(tiles[block.name]).add_(1)
        assert (part(owned[block.name]) == OWNERS.index(block.owner)).all(), block
        if block.owner in DOMAINS:
            assert block.modes == {"default", block.owner}
        elif block.owner == "retain" or joint:
            assert block.modes == {"default", "retain"}
        else:
            assert block.modes == set(MODES)
    assert all((tile == 1).all() for tile in tiles.values())


# ---- Ablation


@pytest.mark.parametrize("chosen", SUBSETS, ids="-".join)
def test_ablation_zeroes_the_chosen_alone(chosen: tuple[str, ...], tiny: Tiny, partition: Partition) -> None:
    partition.ablate(*reversed(chosen))
    expected = dict(zeroed(tiny, chosen).named_parameters())
    assert_close(dict(partition.model.named_parameters()), expected, rtol=0, atol=0)


def test_ablation_without_names_is_of_all(tiny: Tiny, partition: Partition) -> None:
    partition.ablate()
    expected = dict(zeroed(tiny, DOMAINS).named_parameters())
    assert_close(dict(partition.model.named_parameters()), expected, rtol=0, atol=0)


def test_reinit_draws_the_chosen_alone(tiny: Tiny, partition: Partition) -> None:
    partition.ablate("cyber", reinit=True, generator=torch.Generator().manual_seed(1))
    assert torch.equal(logits(partition.model), logits(zeroed(tiny, ["cyber"])))
    intact = dict(tiny.model().named_parameters())
    for name, owner in owned_by(tiny, partition.model, DOMAINS).items():
        other = owner != OWNERS.index("cyber")
        assert torch.equal(partition.model.get_parameter(name)[other], intact[name][other])


@pytest.mark.parametrize("chosen", SUBSETS, ids="-".join)
def test_without_is_the_ablated_model(chosen: tuple[str, ...], tiny: Tiny) -> None:
    sgtm = prepare(tiny, domains=DOMAINS)
    model = sgtm.partition.model
    intact, expected = logits(model), logits(zeroed(tiny, chosen))
    with sgtm.without(*chosen):
        assert torch.equal(logits(model), expected)
        with sgtm.without():
            assert torch.equal(logits(model), logits(zeroed(tiny, DOMAINS)))
        with sgtm.forward(["default"] * 3):
            assert torch.equal(logits(model), expected)
        with sgtm.forward("retain"):
            assert torch.equal(logits(model), logits(zeroed(tiny, DOMAINS)))
        with sgtm.forward("cyber"):
            assert torch.equal(logits(model), logits(zeroed(tiny, {*DOMAINS} - {"cyber"} | {*chosen})))
    assert torch.equal(logits(model), intact)
    assert not torch.allclose(intact, expected, atol=1e-3)


def test_without_ends_with_an_exception(tiny: Tiny) -> None:
    sgtm = prepare(tiny, domains=DOMAINS)
    intact = logits(sgtm.partition.model)
    with pytest.raises(KeyboardInterrupt), sgtm.without("cyber"):
        raise KeyboardInterrupt
    assert torch.equal(logits(sgtm.partition.model), intact)


@pytest.mark.parametrize("strategy", MAIN)
def test_retain_pass_is_the_model_without_all_domains(strategy: str, tiny: Tiny) -> None:
    sgtm = prepare(tiny, strategy, domains=DOMAINS)
    with sgtm.forward("retain"):
        retained = logits(sgtm.partition.model)
    with sgtm.without():
        assert torch.equal(logits(sgtm.partition.model), retained)
    assert torch.equal(retained, logits(zeroed(tiny, DOMAINS)))


# ---- Batches


@pytest.mark.parametrize("domain", DOMAINS)
def test_pass_of_a_domain_does_not_hear_the_others(domain: str, tiny: Tiny) -> None:
    sgtm = prepare(tiny, domains=DOMAINS)
    with sgtm.forward(domain):
        heard = logits(sgtm.partition.model)
    assert torch.equal(heard, logits(zeroed(tiny, {*DOMAINS} - {domain})))


@pytest.mark.parametrize("domain", DOMAINS)
def test_batch_of_a_domain_changes_its_block_alone(domain: str, tiny: Tiny, joint: tuple[str, ...]) -> None:
    grads = alone(tiny, "parameter_masking", joint, domain, tokens())
    for name, owner in owned_by(tiny, tiny.model(), DOMAINS).items():
        own = owner == OWNERS.index(domain)
        may_change = own if joint else own | (owner == 0)
        assert not grads[name][~may_change].any(), name
        assert grads[name][own].all(), name
        assert joint or not (owner == 0).all() or grads[name].any(), name


@pytest.mark.parametrize("strategy", MAIN)
@pytest.mark.parametrize("mode", MODES)
def test_batch_equals_the_plain_reference(mode: str, strategy: str, tiny: Tiny, joint: tuple[str, ...]) -> None:
    codes = torch.full((3, 8), MODES.index(mode))
    expected = reference(tiny, strategy, joint, codes, tokens(), DOMAINS)
    assert_close(alone(tiny, strategy, joint, mode, tokens()), expected)


@pytest.mark.parametrize("strategy", MAIN)
def test_examples_of_all_modes_give_the_sum_of_their_batches(strategy: str, tiny: Tiny, joint: tuple[str, ...]) -> None:
    batch = tokens(rows=5)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        names = [MODES[i] for i in order]
        rows = [{name: values[[i]] for name, values in batch.items()} for i in range(5)]
        parts = [alone(tiny, strategy, joint, mode, row) for mode, row in zip(names, rows, strict=True)]
        mixed = train(prepare(tiny, strategy, joint, DOMAINS), names, batch, scale=5)
        assert_close(mixed, {name: sum(part[name] for part in parts) for name in mixed})


@pytest.mark.parametrize("strategy", MAIN)
def test_positions_of_all_modes_equal_the_plain_reference(strategy: str, tiny: Tiny, joint: tuple[str, ...]) -> None:
    codes = torch.randint(0, 5, (3, 8), generator=torch.Generator().manual_seed(3))
    assert set(codes.flatten().tolist()) == set(range(5))
    expected = reference(tiny, strategy, joint, codes, tokens(), DOMAINS)
    assert_close(alone(tiny, strategy, joint, codes, tokens()), expected)


@pytest.mark.parametrize("strategy", MAIN)
def test_gradients_of_other_domains_survive(strategy: str, tiny: Tiny, joint: tuple[str, ...]) -> None:
    sgtm = prepare(tiny, strategy, joint, DOMAINS)
    expected = {name: torch.zeros(()) for name in gradients(sgtm.partition.model)}
    for seed, mode in enumerate(("cyber", "biology", "retain", "chemistry", "cyber", "default", "biology")):
        part = alone(tiny, strategy, joint, mode, tokens(seed))
        expected = {name: expected[name] + grad for name, grad in part.items()}
        assert_close(train(sgtm, mode, tokens(seed)), expected)


@pytest.mark.parametrize("mode", MODES[1:])
def test_mask_gradients_keeps_what_a_batch_may_change(mode: str, tiny: Tiny, joint: tuple[str, ...]) -> None:
    sgtm = prepare(tiny, joint=joint, domains=DOMAINS)
    grads = train(sgtm, "default", tokens())
    sgtm.mask_gradients(mode)
    kept = {block.name: torch.zeros_like(grads[block.name]) for block in sgtm.blocks()}
    owned = owned_by(tiny, sgtm.partition.model, DOMAINS)
    for name, owner in owned.items():
        frozen = mode != "retain" and bool(joint)
        may_change = (owner == OWNERS.index(mode)) | ((owner == 0) & (not frozen))
        kept[name] = torch.where(may_change, grads[name], 0.0)
    assert_close(gradients(sgtm.partition.model), kept, rtol=0, atol=0)


def test_domain_batch_without_backward(tiny: Tiny) -> None:
    sgtm = prepare(tiny, domains=DOMAINS)
    with pytest.raises(RuntimeError, match=r"inside sgtm.batch\('cyber'\), so none"), sgtm.batch("cyber"):
        sgtm.partition.model(**tokens())
    assert sgtm.mode == "default"


# ---- What is refused


@pytest.mark.parametrize(
    ("domains", "rule"),
    [
        ({}, r"domains={} leaves no forget units"),
        ({"biology": Units(heads=2), "cyber": Units()}, r"heads=0 and neurons=0 leave no forget units \(cyber\)"),
        ({"default": Units(heads=2)}, "'default' cannot name a domain"),
        ({"retain": Units(heads=2)}, "'retain' cannot name a domain"),
        ({"joint": Units(heads=2)}, "'joint' cannot name a domain"),
        ({"": Units(heads=2)}, "'' cannot name a domain"),
        ({"bio-logy": Units(heads=2)}, "'bio-logy' cannot name a domain; use a word of letters, digits and _"),
        ({"a": Units(heads=4), "b": Units(heads=4)}, "heads=8 of 8: a layer has 8 heads; use 0 to 7 in all"),
        ({"a": Units(neurons=6), "b": Units(neurons=7)}, "neurons=13 of 12: .* use 0 to 11 in all"),
        ({"a": Units(neurons=-1), "b": Units(neurons=3)}, "whole numbers from 0 on"),
        (
            {"a": Units(heads=1), "b": Units(heads=1)},
            "heads=1 splits a key/value group of 2 heads; use a mul",
        ),
    ],
    ids=str,
)
def test_domains_that_cannot_be(domains: dict[str, Units], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Partition.of(TINY["llama"].model(), domains=domains)


@pytest.mark.parametrize("units", [{"heads": 2}, {"neurons": 1}])
def test_domains_and_units_of_the_one_domain(units: dict[str, int], tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"give domains=.*, or heads and neurons of the one domain, not both"):
        Partition.of(tiny.model(), domains=DOMAINS, **units)


def test_unknown_domain_names_the_nearest(tiny: Tiny) -> None:
    sgtm = prepare(tiny, domains=DOMAINS)
    model = sgtm.partition.model
    intact = logits(model)
    rule = r"'cybr' is no domain; did you mean 'cyber'\? \(domains: biology, cyber, chemistry\)"
    with pytest.raises(ValueError, match=rule):
        sgtm.partition.ablate("biology", "cybr")
    with pytest.raises(ValueError, match=rule), sgtm.without("cybr"):
        pytest.fail("entered")
    for mode in ("forget", ["forget"] * 3):
        with pytest.raises(ValueError, match="mode='forget' is none of"), sgtm.batch(mode):
            pytest.fail("entered")
    with pytest.raises(ValueError, match="mode has the code 5"), sgtm.batch(torch.tensor([0, 5, 1])):
        pytest.fail("entered")
    assert torch.equal(logits(model), intact)


# ---- Hearing other domains


@pytest.mark.parametrize("mode", ["retain", "biology"])
@pytest.mark.parametrize("accumulated", [False, True])
def test_heard_domains_take_part_and_do_not_learn(
    mode: str, accumulated: bool, tiny: Tiny, joint: tuple[str, ...]
) -> None:
    """As default mode without what stays silent, and then masked by hand."""
    sgtm = prepare(tiny, "parameter_masking", joint, DOMAINS)
    model = sgtm.partition.model
    silent = ("chemistry",) if mode == "biology" else ("biology", "chemistry")
    with sgtm.without(*silent):
        expected_logits = logits(model)
        everything = train(sgtm, "default", tokens(1))
    model.zero_grad()
    earlier = train(sgtm, "default", tokens(2)) if accumulated else {}
    with sgtm.hearing("cyber"):
        with sgtm.forward(mode):
            assert torch.equal(logits(model), expected_logits)
        found = train(sgtm, mode, tokens(1))
    for block in sgtm.blocks():
        part = block.slice.of if block.slice else lambda tensor: tensor
        allowed = mode in block.modes
        expected = part(everything[block.name]) if allowed else torch.zeros_like(part(everything[block.name]))
        before = part(earlier[block.name]) if accumulated else 0.0
        torch.testing.assert_close(part(found[block.name]) - before, expected, rtol=1e-9, atol=1e-11, msg=str(block))


def test_hearing_ends_and_refuses(partition: Partition) -> None:
    sgtm = SGTM(partition)
    with sgtm.forward("retain"):
        silent = logits(partition.model)
    with sgtm.hearing(), sgtm.forward("retain"):
        assert torch.equal(logits(partition.model), silent)
    with sgtm.hearing(*DOMAINS), sgtm.forward("retain"):
        assert not torch.allclose(logits(partition.model), silent)
    with sgtm.forward("retain"):
        assert torch.equal(logits(partition.model), silent)
    with pytest.raises(ValueError, match="'cybr' is no domain; did you mean 'cyber'"), sgtm.hearing("cybr"):
        pass
    assert sgtm.mode == "default"


@pytest.mark.parametrize("heard", [("cyber",), ("biology", "chemistry"), tuple(DOMAINS)], ids="+".join)
@pytest.mark.parametrize("strategy", MAIN)
def test_positions_that_hear_equal_the_plain_reference(
    strategy: str, heard: tuple[str, ...], tiny: Tiny, joint: tuple[str, ...]
) -> None:
    codes = torch.randint(0, 5, (3, 8), generator=torch.Generator().manual_seed(3))
    expected = reference(tiny, strategy, joint, codes, tokens(), DOMAINS, heard=heard)
    sgtm = prepare(tiny, strategy, joint, DOMAINS)
    with sgtm.hearing(*heard):
        assert_close(train(sgtm, codes, tokens()), expected)
    deaf = alone(tiny, strategy, joint, codes, tokens())
    assert any(not torch.allclose(deaf[name], expected[name]) for name in deaf)


@pytest.mark.parametrize("strategy", MAIN)
def test_examples_that_hear_give_the_sum_of_their_batches(strategy: str, tiny: Tiny, joint: tuple[str, ...]) -> None:
    batch, heard = tokens(rows=5), ("cyber", "chemistry")
    parts = []
    for i, mode in enumerate(MODES):
        sgtm = prepare(tiny, strategy, joint, DOMAINS)
        with sgtm.hearing(*heard):
            parts.append(train(sgtm, mode, {name: values[[i]] for name, values in batch.items()}))
    sgtm = prepare(tiny, strategy, joint, DOMAINS)
    with sgtm.hearing(*heard):
        mixed = train(sgtm, MODES, batch, scale=5)
    assert_close(mixed, {name: sum(part[name] for part in parts) for name in mixed})


def test_modules_that_are_run_again_for_each_set_of_domains(joint: tuple[str, ...]) -> None:
    """Projections of a class of their own, which hold units of several owners."""

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.t() + (0 if self.bias is None else self.bias)

    tiny, heard = TINY["llama"], tuple(DOMAINS)
    codes = torch.randint(0, 5, (3, 8), generator=torch.Generator().manual_seed(3))
    expected = reference(tiny, "parameter_masking", joint, codes, tokens(), DOMAINS, heard=heard)
    sgtm = prepare(tiny, "parameter_masking", joint, DOMAINS)
    for module in sgtm.partition.model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Own
    with sgtm.hearing(*heard):
        assert_close(train(sgtm, codes, tokens()), expected)


@pytest.mark.parametrize("name", ["forget", "biology"])
def test_the_only_domain_goes_by_forget_too(name: str, tiny: Tiny) -> None:
    """As a name and in a list of names."""
    only = {"biology": DOMAINS["biology"]}
    expected = train(prepare(tiny, domains=only), torch.tensor([2, 2, 1]), tokens())
    assert_close(train(prepare(tiny, domains=only), [name, name, "retain"], tokens()), expected)
    whole = train(prepare(tiny, domains=only), name, tokens())
    assert_close(whole, train(prepare(tiny, domains=only), torch.tensor([2, 2, 2]), tokens()))
