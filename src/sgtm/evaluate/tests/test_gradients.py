"""Norms and cosines equal those that autograd and tables written by hand give."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from sgtm import SGTM, Partition, Units
from sgtm.config import LabelConfig
from sgtm.data.mixture import Rows, training_rows
from sgtm.evaluate.gradients import (
    Batch,
    example_batches,
    example_gradients,
    label_batches,
    mean_gradient,
    median_interval,
    update_directions,
)
from sgtm.evaluate.tests.test_loss import rows_of
from sgtm.model.tests.families import FAMILIES, FORGET, FROZEN, JOINT, RETAIN

# Separate projections, grouped heads, Conv1D, interleaved, all in one, some layers, no neurons, experts.
EACH_KIND = ["gpt_neo", "llama_grouped", "gpt2", "gpt_neox", "phi3", "gpt_neo_layers", "llama_no_neurons", "mixtral"]
HEAD = "transformer.wte.weight"
CLOSE = {"rtol": 1e-4, "atol": 1e-6}  # fp32 gradients, summed in another order


def naive_gradient(model, rows):
    """name -> gradient of the mean loss over all tokens of ``rows`` (1, seq) each, by autograd."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    losses = [F.cross_entropy(model(input_ids=i).logits[0, :-1], i[0, 1:], reduction="sum") for i in rows]
    loss = torch.stack(losses).sum() / sum(i.shape[1] - 1 for i in rows)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, grads, strict=True))


def elements(tensors, owners, owner):
    """Those of one owner (None: of all), in one vector, in fp64."""
    kept = [
        t.detach()[torch.ones_like(owners[n], dtype=torch.bool) if owner is None else owners[n] == owner]
        for n, t in tensors.items()
    ]
    return torch.cat(kept).double()


def random_rows(*lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 24, (1, n), generator=generator) for n in lengths]


def ids_of(rows):
    return [torch.tensor([r["input_ids"]]) for r in rows.data]


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", EACH_KIND)
def test_norms_and_cosines_equal_brute_force(name):
    """Which elements belong to forget units says the table of the family."""
    family = FAMILIES[name]
    model = family.model()
    owners, weights = family.owners(model), dict(model.named_parameters())
    u = naive_gradient(model, random_rows(8, seed=2))
    rows = random_rows(5, 6, 7)
    partition = Partition.of(model, **family.units)
    found = list(example_gradients(model, partition, [Batch(i, i) for i in rows], {"other": u}))
    assert len(found) == 3
    for ids, parts in zip(rows, found, strict=True):
        g = naive_gradient(model, [ids])
        for part, owner in {"retain": RETAIN, "forget": FORGET, "joint": JOINT, "all": None}.items():
            x, w, y = (elements(tensors, owners, owner) for tensors in (g, weights, u))
            assert parts[part].norm == pytest.approx(x.norm().item(), rel=1e-5)
            assert parts[part].relative_norm == pytest.approx((x.norm() / w.norm()).item(), rel=1e-5)
            assert parts[part].cosines["other"] == pytest.approx(F.cosine_similarity(x, y, dim=0).item(), abs=1e-5)
        squares = [parts[part].norm ** 2 for part in ("retain", "forget", "joint")]
        assert sum(squares) == pytest.approx(elements(g, owners, None).square().sum().item(), rel=1e-5)


def test_parts_of_several_domains_cover_everything(model):
    domains = {"biology": Units(neurons=8), "cyber": Units(heads=1, neurons=4)}
    partition = Partition.of(model, domains=domains)
    (ids,) = random_rows(12)
    (parts,) = example_gradients(model, partition, [Batch(ids, ids)], {})
    assert list(parts) == ["retain", "biology", "cyber", "joint", "all"]
    g = naive_gradient(model, [ids])
    assert parts["all"].norm ** 2 == pytest.approx(sum(p.norm**2 for n, p in parts.items() if n != "all"), rel=1e-9)
    assert parts["all"].norm == pytest.approx(torch.cat([t.flatten() for t in g.values()]).norm().item(), rel=1e-5)
    cyber = [s.of(g[s.name]).flatten() for s in partition.forget_of("cyber")]
    assert parts["cyber"].norm == pytest.approx(torch.cat(cyber).norm().item(), rel=1e-5)


def test_a_cosine_is_one_with_itself_symmetric_and_blind_to_scale(model, sgtm):
    a, b = (naive_gradient(model, [ids]) for ids in random_rows(12, 9))
    scaled = {"itself": {n: 3 * t for n, t in a.items()}, "opposite": {n: -t for n, t in a.items()}, "b": b}
    first, second = (Batch(i, i) for i in random_rows(12, 9))
    (of_a,) = example_gradients(model, sgtm.partition, [first], scaled)
    (of_b,) = example_gradients(model, sgtm.partition, [second], {"a": a})
    for part, found in of_a.items():
        assert found.cosines["itself"] == pytest.approx(1, abs=1e-6)
        assert found.cosines["opposite"] == pytest.approx(-1, abs=1e-6)
        assert found.cosines["b"] == pytest.approx(of_b[part].cosines["a"], abs=1e-6)
        assert abs(found.cosines["b"]) < 0.99


def test_quotients_with_zero_below_are_none(model, sgtm):
    (ids,) = random_rows(12)
    zero = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    sgtm.partition.ablate()
    (parts,) = example_gradients(model, sgtm.partition, [Batch(ids, ids)], {"zero": zero})
    assert parts["retain"].cosines["zero"] is None
    assert parts["forget"].relative_norm is None
    assert parts["retain"].relative_norm > 0


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_mean_gradient_is_token_weighted_whatever_the_batches(model, data, size, monkeypatch):
    rows = training_rows(data.train, LabelConfig(), "everything", 0)[0]
    uneven = rows_of(16, 3, 9, 2, 12)
    rows = dataclasses.replace(uneven, modes=rows.modes[:5])
    monkeypatch.setattr("sgtm.evaluate.gradients._BATCH", size)
    batches = [b._replace(mode="default") for b in label_batches(model, rows, "retain")]
    assert len(batches) == -(-5 // size)
    assert_close(mean_gradient(model, batches), naive_gradient(model, ids_of(rows)))


def test_large_logits_make_small_batches(model, rows, monkeypatch):
    monkeypatch.setattr("sgtm.evaluate.gradients._MAX_LOGITS", 2 * 16 * 300 + 1)
    assert {len(b.input_ids) for b in label_batches(model, rows.select(np.arange(7)), "forget")} == {2, 1}


@pytest.fixture
def rows(data):
    return training_rows(data.train, LabelConfig(undiscovered=0.2), "modes", 0)[0]


def test_update_directions_are_what_labelled_rows_add(model, sgtm, rows):
    """Forget rows: the gradient in forget slices and the joint parameters that are not frozen; retain rows: that of
    the ablated model."""
    rows = rows.select(np.arange(0, len(rows), 10))
    found = update_directions(model, sgtm, rows, limit=10**6)
    assert set(found) == {"forget", "retain", "forget unmasked", "retain unmasked"}
    forget, retain = (ids_of(rows.select(np.flatnonzero(rows.modes == code))) for code in (2, 1))
    assert len(forget) > 5
    assert len(retain) > 5
    for label, labelled in (("forget", forget), ("retain", retain)):
        assert_close(found[f"{label} unmasked"], naive_gradient(model, labelled))
    masked = {n: torch.zeros_like(t) for n, t in naive_gradient(model, forget).items()}
    for s in sgtm.partition.forget:
        s.of(masked[s.name]).copy_(s.of(found["forget unmasked"][s.name]))
    for name in sgtm.partition.joint.keys() - set(sgtm.frozen_joint):
        masked[name] = found["forget unmasked"][name]
    assert_close(found["forget"], masked)
    ablated = copy.deepcopy(model)
    Partition.of(ablated, heads=1, neurons=16).ablate()
    assert_close(found["retain"], naive_gradient(ablated, retain))


def test_cosines_are_none_where_an_update_does_not_reach(model, sgtm, rows):
    directions = update_directions(model, sgtm, rows, limit=20)
    (ids,) = random_rows(12)
    (parts,) = example_gradients(model, sgtm.partition, [Batch(ids, ids)], directions)
    undefined = {(part, d) for part, found in parts.items() for d, cosine in found.cosines.items() if cosine is None}
    assert undefined == {("retain", "forget"), ("forget", "retain")}


def test_a_model_without_masking_is_updated_unmasked(model, rows):
    found = update_directions(model, None, rows, limit=20)
    for label in ("forget", "retain"):
        assert_close(found[label], found[f"{label} unmasked"])


def test_a_label_that_no_row_has_gives_no_direction(model, sgtm, data):
    rows = training_rows(data.train, LabelConfig(undiscovered=1.0), "modes", 0)[0]
    assert set(update_directions(model, sgtm, rows, limit=5)) == {"retain", "retain unmasked"}


def test_a_limit_draws_rows_of_the_label_by_the_seed(model, rows):
    first, again, other = (update_directions(model, None, rows, 8, seed)["forget"] for seed in (0, 0, 1))
    assert_close(again, first)
    assert any(not torch.allclose(other[n], first[n]) for n in first)
    two = rows.select(np.flatnonzero(rows.modes == 2)[:2])
    one = update_directions(model, None, two, 1)["forget"]
    assert any(torch.allclose(one[HEAD], naive_gradient(model, [ids])[HEAD], **CLOSE) for ids in ids_of(two))


def test_of_labelled_tokens_only_those_with_the_label_are_predicted(model):
    """Position t has the mode of token t + 1: labels r f f u r -> the loss of tokens 1 and 2 is a forget loss."""
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    data = Dataset.from_dict({"input_ids": ids.tolist(), "token_labels": [[1, 0, 0, 2, 1]]})
    codes = np.array([0, 1, 2], np.int8)  # the data's labels are forget, retain, unlabeled already
    rows = Rows(data, np.zeros(1, np.int8), np.zeros(1, np.int64), np.array([2], np.int8), token_labels=codes)
    for label, targets in (("forget", [1, 2]), ("retain", [4])):
        (batch,) = label_batches(model, rows, label)
        assert batch.mode.tolist() == [[2, 2, 0, 1, 1]]
        loss = F.cross_entropy(model(input_ids=ids).logits[0, [t - 1 for t in targets]], ids[0, targets])
        expected = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
        names = [n for n, _ in model.named_parameters()]
        assert_close(update_directions(model, None, rows, 1)[label], dict(zip(names, expected, strict=True)))
    masked = update_directions(model, SGTM(Partition.of(model, heads=1, neurons=16), joint=FROZEN), rows, 1)["forget"]
    assert not masked["transformer.h.0.mlp.c_fc.weight"][:48].any()
    assert masked["transformer.h.0.mlp.c_fc.weight"][48:].any()


def test_the_model_is_left_as_it_was(model, sgtm, rows):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    before = copy.deepcopy(model.state_dict())
    batches = list(example_batches(model, rows_of(16, 9)))
    once, again = (
        list(example_gradients(model, sgtm.partition, batches, update_directions(model, sgtm, rows, 4)))
        for _ in range(2)
    )
    assert once == again, "dropout is off"
    assert model.training
    assert sgtm.mode == "default"
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_rows_come_in_order_and_those_of_one_token_not_at_all(model):
    assert [b.num_tokens for b in example_batches(model, rows_of(4, 1, 16, 2))] == [3, 15, 1]
    with pytest.raises(ValueError, match="at least two tokens"):
        mean_gradient(model, example_batches(model, rows_of(1, 1)))


def test_the_interval_of_a_median_covers_it_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [median_interval(rng.normal(size=60), resamples=300) for _ in range(300)]
    covered = np.mean([low <= 0 <= high for _, low, high in intervals])
    assert 0.90 <= covered <= 0.99  # 0.95 +- three standard errors of 300 draws, and the bootstrap's own error
    assert all(low <= median <= high for median, low, high in intervals)
    assert median_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)
