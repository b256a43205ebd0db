"""Law 10: strict updates leave alone, bit for bit, what no example may change."""

import pytest
import torch

from sgtm.train.optimizer import BlockParameters
from sgtm.train.tests.conftest import masked, tiny_model

STEPS = 100


def forget_loss(model, i):
    tokens = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(i))
    return model(input_ids=tokens, labels=tokens).loss


def copies(slices):
    return [s.of(s.param).detach().clone() for s in slices]


def run(model, sgtm, optimizer, blocks, mode, steps, strict, first=0):
    for i in range(first, first + steps):
        with sgtm.batch(mode):
            forget_loss(model, i).backward()
        blocks.set_gradients({mode} if strict else None)
        optimizer.step()
        model.zero_grad()


def make(optimizer_class, strategy="parameter_masking", **kwargs):
    model = tiny_model()
    sgtm = masked(model, strategy)
    blocks = BlockParameters(sgtm)
    names = {n for n, _ in model.named_parameters()}
    return model, sgtm, blocks, optimizer_class(blocks.groups(1e-2, 0.1, names), **kwargs)


OPTIMIZERS = [
    pytest.param(torch.optim.AdamW, {"foreach": False}, id="adamw"),
    pytest.param(torch.optim.AdamW, {"foreach": True}, id="adamw_foreach"),
    pytest.param(torch.optim.SGD, {"momentum": 0.9}, id="sgd_momentum"),
    pytest.param(torch.optim.Adafactor, {}, id="adafactor"),
]


@pytest.mark.parametrize(("optimizer_class", "kwargs"), OPTIMIZERS)
@pytest.mark.parametrize("mode", ["forget", "retain"])
def test_strict_leaves_masked_slices_and_their_state_alone(optimizer_class, kwargs, mode):
    model, sgtm, blocks, optimizer = make(optimizer_class, **kwargs)
    run(model, sgtm, optimizer, blocks, "default", 5, strict=True)  # so that momentum exists
    still = [p for p in blocks.parts if mode not in p.block.modes]
    moving = [p for p in blocks.parts if mode in p.block.modes]
    before = [p.param.detach().clone() for p in still]
    states = [{k: torch.as_tensor(v).clone() for k, v in optimizer.state[p.param].items()} for p in still]
    moved = [p.param.detach().clone() for p in moving]
    run(model, sgtm, optimizer, blocks, mode, STEPS, strict=True, first=5)
    assert all(torch.equal(p.param, old) for p, old in zip(still, before, strict=True))
    for p, state in zip(still, states, strict=True):
        assert state or optimizer_class is torch.optim.SGD
        assert all(torch.equal(torch.as_tensor(optimizer.state[p.param][k]), v) for k, v in state.items())
    assert not any(torch.equal(p.param, old) for p, old in zip(moving, moved, strict=True))


def test_what_stands_still_is_what_the_method_says():
    """Retain slices and masked joint parameters on forget batches, forget slices on retain batches."""
    model, sgtm, blocks, optimizer = make(torch.optim.AdamW)
    retain, forget = copies(sgtm.partition.retain), copies(sgtm.partition.forget)
    joint = {n: model.get_parameter(n).detach().clone() for n in sgtm.frozen_joint}
    run(model, sgtm, optimizer, blocks, "forget", 3, strict=True)
    assert all(map(torch.equal, copies(sgtm.partition.retain), retain))
    assert all(torch.equal(model.get_parameter(n), old) for n, old in joint.items())
    changed = copies(sgtm.partition.forget)
    assert not any(map(torch.equal, changed, forget))
    run(model, sgtm, optimizer, blocks, "retain", 3, strict=True)
    assert all(map(torch.equal, copies(sgtm.partition.forget), changed))
    assert not any(map(torch.equal, copies(sgtm.partition.retain), retain))


def test_a_zero_gradient_is_no_frozen_weight():
    """Why strict exists: under AdamW masked weights go on moving."""
    model, sgtm, blocks, optimizer = make(torch.optim.AdamW)
    run(model, sgtm, optimizer, blocks, "default", 5, strict=False)
    before = copies(sgtm.partition.retain)
    run(model, sgtm, optimizer, blocks, "forget", 3, strict=False)
    assert not any(map(torch.equal, copies(sgtm.partition.retain), before))


@pytest.mark.parametrize("strategy", ["parameter_masking", "gradient_routing", "activation_masking"])
def test_views_train_like_whole_weights(strategy):
    """Without strict and at the same rate, blocks change nothing but the number of optimizer parameters."""
    whole = tiny_model()
    whole_sgtm = masked(whole, strategy)
    plain = torch.optim.AdamW(whole.parameters(), lr=1e-2, weight_decay=0.1)
    model, sgtm, blocks, optimizer = make(torch.optim.AdamW, strategy)
    for i in range(6):
        mode = ("forget", "default", "retain")[i % 3]
        run(model, sgtm, optimizer, blocks, mode, 1, strict=False, first=i)
        with whole_sgtm.batch(mode):
            forget_loss(whole, i).backward()
        plain.step()
        plain.zero_grad()
    for (name, a), (_, b) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_forget_units_have_a_rate_of_their_own():
    model = tiny_model()
    sgtm = masked(model)
    blocks = BlockParameters(sgtm)
    groups = blocks.groups(1e-2, 0.0, set(), forget_lr_scale=0.25)
    before = copies(sgtm.partition.forget)
    optimizer = torch.optim.SGD(groups)
    with sgtm.batch("forget"):
        forget_loss(model, 0).backward()
    gradients = [s.of(s.param.grad).clone() for s in sgtm.partition.forget]
    blocks.set_gradients()
    optimizer.step()
    for old, new, gradient in zip(before, copies(sgtm.partition.forget), gradients, strict=True):
        torch.testing.assert_close(new, old - 0.25e-2 * gradient)


def test_views_follow_a_model_whose_weights_get_new_storage():
    model, sgtm, blocks, optimizer = make(torch.optim.AdamW)
    for p in model.parameters():
        p.data = p.data.clone()
    before = copies(sgtm.partition.forget)
    run(model, sgtm, optimizer, blocks, "forget", 1, strict=True)
    assert not any(map(torch.equal, copies(sgtm.partition.forget), before))
