"""Law 10: strict updates leave alone, bit for bit, what no example may change."""

import pytest
import torch

from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition
from sgtm.model.tests.families import FAMILIES, tokens
from sgtm.train.optimizer import BlockParameters, MuonAndAdamW, muon
from sgtm.train.tests.conftest import masked, tiny_model

STEPS = 100


def forget_loss(model, i):
    tokens = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(i))
    return model(input_ids=tokens, labels=tokens).loss


def copies(slices):
    return [s.of(s.param).detach().clone() for s in slices]


def weight_of(part):
    weight = part.weight.detach()
    return (part.block.slice.of(weight) if part.block.slice else weight).clone()


def run(model, sgtm, optimizer, blocks, mode, steps, strict, first=0):
    for i in range(first, first + steps):
        with sgtm.batch(mode):
            forget_loss(model, i).backward()
        blocks.set_gradients({mode} if strict else None)
        optimizer.step()
        model.zero_grad()


def make(optimizer_class, strategy="parameter_masking", contiguous=False, by_owner=False, **kwargs):
    model = tiny_model()
    sgtm = masked(model, strategy)
    blocks = BlockParameters(sgtm, contiguous)
    names = {n for n, _ in model.named_parameters()}
    optimizer = optimizer_class(blocks.groups(1e-2, 0.1, names, by_owner=by_owner), **kwargs)
    blocks.attach(optimizer)
    return model, sgtm, blocks, optimizer


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum (arXiv:2302.06675), with decoupled weight decay."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * momentum.lerp(p.grad, 1 - group["betas"][0]).sign())
                momentum.lerp_(p.grad, 1 - group["betas"][1])


OPTIMIZERS = [
    pytest.param(torch.optim.AdamW, {"foreach": False}, id="adamw"),
    pytest.param(torch.optim.AdamW, {"foreach": True}, id="adamw_foreach"),
    pytest.param(torch.optim.AdamW, {"fused": True, "contiguous": True}, id="adamw_fused"),
    pytest.param(torch.optim.SGD, {"momentum": 0.9}, id="sgd_momentum"),
    pytest.param(torch.optim.Adafactor, {}, id="adafactor"),
    pytest.param(Lion, {}, id="lion"),
    pytest.param(MuonAndAdamW, {}, id="muon"),
    pytest.param(MuonAndAdamW, {"contiguous": True}, id="muon_contiguous"),
    pytest.param(torch.optim.AdamW, {"by_owner": True}, id="adamw_per_block"),
]


@pytest.mark.parametrize(("optimizer_class", "kwargs"), OPTIMIZERS)
@pytest.mark.parametrize("mode", ["forget", "retain"])
def test_strict_leaves_masked_slices_and_their_state_alone(optimizer_class, kwargs, mode):
    model, sgtm, blocks, optimizer = make(optimizer_class, **kwargs)
    run(model, sgtm, optimizer, blocks, "default", 5, strict=True)  # so that momentum exists
    still = [p for p in blocks.parts if mode not in p.block.modes]
    moving = [p for p in blocks.parts if mode in p.block.modes]
    before = [weight_of(p) for p in still]
    states = [{k: torch.as_tensor(v).clone() for k, v in optimizer.state[p.param].items()} for p in still]
    moved = [weight_of(p) for p in moving]
    run(model, sgtm, optimizer, blocks, mode, STEPS, strict=True, first=5)
    assert all(torch.equal(weight_of(p), old) for p, old in zip(still, before, strict=True))
    for p, state in zip(still, states, strict=True):
        assert state or optimizer_class is torch.optim.SGD
        assert all(torch.equal(torch.as_tensor(optimizer.state[p.param][k]), v) for k, v in state.items())
    assert not any(torch.equal(weight_of(p), old) for p, old in zip(moving, moved, strict=True))


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
    blocks.attach(optimizer)
    with sgtm.batch("forget"):
        forget_loss(model, 0).backward()
    gradients = [s.of(s.param.grad).clone() for s in sgtm.partition.forget]
    blocks.set_gradients()
    optimizer.step()
    for old, new, gradient in zip(before, copies(sgtm.partition.forget), gradients, strict=True):
        torch.testing.assert_close(new, old - 0.25e-2 * gradient)


@pytest.mark.parametrize(
    ("modes", "moves"),
    [
        ("forget", {"forget", "joint"}),
        (["retain", "forget"], {"forget", "retain", "joint"}),
        (torch.tensor([2, 2]), {"forget", "joint"}),
        (torch.tensor([[1, 1], [1, 2]]), {"forget", "retain", "joint"}),
    ],
    ids=["name", "names", "examples", "positions"],
)
def test_modes_of_a_step_in_any_form_that_batches_take(modes, moves):
    model, sgtm, blocks, optimizer = make(torch.optim.AdamW)
    before = [part.param.detach().clone() for part in blocks.parts]
    with sgtm.batch("default"):
        forget_loss(model, 0).backward()
    blocks.set_gradients(modes)
    optimizer.step()
    moved = {
        part.block.owner
        for part, old in zip(blocks.parts, before, strict=True)
        if not torch.equal(part.param.detach(), old)
    }
    assert moved == moves


@pytest.mark.parametrize("contiguous", [False, True])
def test_a_step_clears_gradients_whatever_clears_the_optimizers(contiguous):
    """`optimizer.zero_grad()` of parts knows nothing of the weights' gradients, which would pile up."""
    found = []
    for clear in ("model", "optimizer", "neither"):
        model, sgtm, blocks, optimizer = make(torch.optim.AdamW, contiguous=contiguous)
        for i in range(4):
            with sgtm.batch("forget"):
                forget_loss(model, i).backward()
            blocks.set_gradients("forget")
            optimizer.step()
            assert all(p.grad is None for p in model.parameters())
            {"model": model.zero_grad, "optimizer": optimizer.zero_grad, "neither": int}[clear]()
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_two_optimizers_share_the_parts_of_a_weight():
    """The first one's step clears the weights' gradients; the second has its views of them."""
    model, sgtm, blocks, optimizer = make(torch.optim.SGD)
    other_model = tiny_model()
    other_sgtm = masked(other_model)
    others = BlockParameters(other_sgtm)
    both = [
        torch.optim.SGD([part.param for part in others.parts if (part.block.owner == "forget") is is_forget], lr=1e-2)
        for is_forget in (False, True)
    ]
    for one in both:
        others.attach(one)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    for net, masks, parts, steps in ((model, sgtm, blocks, [optimizer]), (other_model, other_sgtm, others, both)):
        for i in range(3):
            with masks.batch("default"):
                forget_loss(net, i).backward()
            parts.set_gradients("default")
            for one in steps:
                one.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other_model.parameters(), strict=True))


def test_parts_that_would_be_stepped_wrongly_are_refused():
    model = tiny_model()
    sgtm = masked(model)
    blocks = BlockParameters(sgtm)
    with pytest.raises(RuntimeError, match=r"call blocks.attach\(optimizer\) once"):
        blocks.set_gradients("forget")
    with pytest.raises(ValueError, match=r"holds none of the parts; make it of blocks.groups"):
        blocks.attach(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]))
    with pytest.raises(ValueError, match=r"a fused AdamW would write to wrong elements .*contiguous=True"):
        blocks.attach(torch.optim.AdamW(blocks.groups(1e-2, 0.1, set()), fused=True))
    blocks.attach(torch.optim.AdamW(blocks.groups(1e-2, 0.1, set())))
    for modes, message in (
        ("forgte", "mode='forgte' is none of"),
        ([2], "codes go into a LongTensor"),
        ((), "no mode"),
    ):
        with pytest.raises(ValueError, match=message):
            blocks.set_gradients(modes)


def test_views_follow_a_model_whose_weights_get_new_storage():
    model, sgtm, blocks, optimizer = make(torch.optim.AdamW)
    for p in model.parameters():
        p.data = p.data.clone()
    before = copies(sgtm.partition.forget)
    run(model, sgtm, optimizer, blocks, "forget", 1, strict=True)
    assert not any(map(torch.equal, copies(sgtm.partition.forget), before))


@pytest.mark.parametrize(("optimizer_class", "kwargs"), [(torch.optim.AdamW, {"fused": True}), (Lion, {})])
def test_contiguous_copies_train_like_views(optimizer_class, kwargs):
    """Fused AdamW would write to wrong elements of views with strides; the copies are read and written back."""
    copied = make(optimizer_class, contiguous=True, **kwargs)
    viewed = make(optimizer_class, **({"foreach": False} if kwargs else {}))
    assert any(part.is_copy for part in copied[2].parts)
    assert not any(part.is_copy for part in viewed[2].parts)
    for i in range(9):
        for model, sgtm, blocks, optimizer in (copied, viewed):
            run(model, sgtm, optimizer, blocks, ("default", "forget", "retain")[i % 3], 1, strict=True, first=i)
    for (name, a), (_, b) in zip(copied[0].named_parameters(), viewed[0].named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_muon_takes_the_matrices_inside_the_layers():
    """And its steps are those of torch's Muon and AdamW, each on its own parameters."""
    model, other = tiny_model(), tiny_model()
    optimizer_class, kwargs = muon(model, 1e-2, (0.9, 0.95))
    optimizer = optimizer_class([{"params": list(model.parameters()), "weight_decay": 0.1}], **kwargs)
    inside = {n for n, p in other.named_parameters() if ".h." in n and p.ndim == 2}
    assert inside
    matrices = [p for n, p in other.named_parameters() if n in inside]
    others = [p for n, p in other.named_parameters() if n not in inside]
    plain = [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    for i in range(3):
        forget_loss(model, i).backward()
        forget_loss(other, i).backward()
        optimizer.step()
        optimizer.zero_grad()
        for each in plain:
            each.step()
            each.zero_grad()
        if i == 1:  # as a resumed run does
            state = optimizer.state_dict()
            optimizer = optimizer_class([{"params": list(model.parameters()), "weight_decay": 0.1}], **kwargs)
            optimizer.load_state_dict(state)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_each_block_counts_its_own_steps():
    """A block's step count is the number of steps that its owner took part in."""
    _, _, blocks, optimizer = setting = make(torch.optim.AdamW, by_owner=True)
    model, sgtm = setting[:2]
    for mode, steps in (("default", 2), ("forget", 3), ("retain", 4)):
        run(model, sgtm, optimizer, blocks, mode, steps, strict=True)
    taken = {"retain": 6, "forget": 5}
    for part in blocks.parts:
        if part.block.owner in taken:
            assert optimizer.state[part.param]["step"] == taken[part.block.owner], part.block
    assert [g["owner"] for g in optimizer.param_groups] == [o for o in ("joint", "retain", "forget") for _ in (0, 1)]


@pytest.mark.parametrize(
    ("optimizer_class", "contiguous", "kwargs"),
    [
        pytest.param(torch.optim.AdamW, False, {"foreach": True}, id="adamw_foreach"),
        pytest.param(torch.optim.AdamW, True, {"fused": True}, id="adamw_fused"),
        pytest.param(torch.optim.Adafactor, False, {}, id="adafactor"),
        pytest.param(torch.optim.SGD, False, {"momentum": 0.9}, id="sgd_momentum"),
        pytest.param(Lion, True, {}, id="lion"),
    ],
)
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "falcon_groups", "phi3", "llama_biases", "opt", "mixtral"])
def test_strict_holds_in_other_layouts(name, optimizer_class, contiguous, kwargs):
    """Transposed, fused and grouped projections: 100 forget steps under weight decay and momentum."""
    check_strict(FAMILIES[name], STEPS, optimizer_class, contiguous, **kwargs)


@pytest.mark.parametrize("name", FAMILIES)
def test_strict_holds_for_every_family(name):
    check_strict(FAMILIES[name], 5, torch.optim.AdamW)


def check_strict(family, steps, optimizer_class, contiguous=False, **kwargs):
    """What forget batches may not change is bit for bit the same after ``steps`` of them; the forget units are not."""
    model = family.model()
    sgtm = SGTM(Partition.of(model, **family.units), joint=("embeddings", "norms"))
    blocks = BlockParameters(sgtm, contiguous)
    optimizer = optimizer_class(blocks.groups(1e-3, 0.1, {n for n, _ in model.named_parameters()}), **kwargs)
    blocks.attach(optimizer)

    def step(mode, seed):
        model.zero_grad()
        with sgtm.batch(mode):
            model(**tokens(seed)).loss.backward()
        blocks.set_gradients({mode})
        optimizer.step()

    for seed in range(3):
        step("default", seed)
    still = [p for p in blocks.parts if "forget" not in p.block.modes]
    moving = [p for p in blocks.parts if p.block.owner == "forget"]
    before, moved = [weight_of(p) for p in still], [weight_of(p) for p in moving]
    states = [{k: torch.as_tensor(v).clone() for k, v in optimizer.state[p.param].items()} for p in still]
    for seed in range(steps):
        step("forget", seed)
    assert all(torch.equal(weight_of(p), old) for p, old in zip(still, before, strict=True))
    for p, state in zip(still, states, strict=True):
        assert all(torch.equal(torch.as_tensor(optimizer.state[p.param][k]), v) for k, v in state.items())
    assert not any(torch.equal(weight_of(p), old) for p, old in zip(moving, moved, strict=True))
