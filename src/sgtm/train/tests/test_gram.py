"""GRAM: who learns from what, bit for bit, and the two draws."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sgtm import SGTM, Partition, SGTMTrainer, Units
from sgtm.data.mixture import collate
from sgtm.train.tests.conftest import tiny_model
from sgtm.train.tests.test_ablation_matrix import DOMAINS, LENGTH, SYMBOLS, matrix_of, sequences
from sgtm.train.tests.test_trainer import first_gradients

BIOLOGY, CYBER, RETAIN, DEFAULT = 2, 3, 1, 0
CORE = {"joint", "retain"}


@pytest.fixture
def modular(make_trainer, rows):
    """A trainer of two modules, core masked whole; its share of spread and of robust steps is given."""

    def make(spread=0.0, robustness=0.0, modes=(2, 3), **kwargs):
        other = make_trainer(strategy=None, **{"max_steps": 4, "learning_rate": 1e-3, **kwargs})
        domains = {"biology": Units(neurons=8), "cyber": Units(neurons=4)}
        sgtm = SGTM(Partition.of(other.model, domains=domains), joint=["*"])
        examples = [{"input_ids": rows[i]["input_ids"], "mode": modes[i % len(modes)]} for i in range(64)]
        return SGTMTrainer(
            other.model,
            other.args,
            sgtm,
            "per_block",
            hear_domains=0.0,
            auxiliary_spread=spread,
            core_robustness=robustness,
            train_dataset=examples,
        )

    return make


def moved(trainer):
    """The owners of which some part changes in training, and of which every part does."""
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    some, all_ = set(), {b.owner for b in trainer.sgtm.blocks()}
    for name, part, owner, _ in trainer.sgtm.blocks():
        of = part.of if part is not None else lambda t: t
        if torch.equal(of(before[name]), of(trainer.model.get_parameter(name))):
            all_.discard(owner)
        else:
            some.add(owner)
    return some, all_


@pytest.mark.parametrize(
    ("modes", "spread", "robustness", "expected"),
    [
        ((BIOLOGY,), 0.0, 0.0, {"biology"}),
        ((CYBER,), 0.0, 1.0, {"cyber"}),
        ((BIOLOGY, CYBER), 0.0, 0.0, {"biology", "cyber"}),
        ((BIOLOGY,), 1.0, 0.0, {"biology"} | CORE),
        ((RETAIN,), 0.0, 0.0, CORE),
        ((RETAIN,), 1.0, 1.0, CORE),
        ((DEFAULT,), 0.0, 0.0, {"biology", "cyber"} | CORE),
        ((DEFAULT,), 0.0, 1.0, CORE),
        ((DEFAULT, CYBER), 0.0, 1.0, {"cyber"} | CORE),
    ],
)
def test_who_learns_from_what(modular, modes, spread, robustness, expected):
    """Bit for bit, with weight decay and momentum."""
    some, all_ = moved(modular(spread, robustness, modes))
    assert some == all_ == expected


def test_the_draws_are_of_steps(modular):
    trainer = modular(0.5, 0.5, (BIOLOGY, DEFAULT), max_steps=8, gradient_accumulation_steps=2)
    seen, hold = set(), trainer.sgtm.batch_before_reduction

    def batch(mode):
        seen.add((trainer.state.global_step, mode, trainer.sgtm.frozen == ()))
        return hold(mode)

    trainer.sgtm.batch_before_reduction = batch
    trainer.train()
    robust = {step for step, mode, _ in seen if mode == "retain"}
    spread = {step for step, _, is_spread in seen if is_spread}
    assert len(seen) == 2 * 8, "one draw for all micro-batches and parts of a step"
    assert all(len(steps) not in (0, 8) for steps in (robust, spread))
    assert robust != spread, "two draws"
    assert trainer.sgtm.frozen, "the core is protected again"


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_how_often(modular, share):
    """1000 draws of 0.3 stray by less than 0.075 (5 standard deviations)."""
    trainer = modular()
    drawn = 0
    for trainer.state.global_step in range(1000):
        drawn += trainer._is_drawn(share, 6)
    assert drawn / 1000 == share if share in (0.0, 1.0) else abs(drawn / 1000 - share) < 0.075


def test_the_gradient_of_a_spread_step_is_the_plain_one(modular):
    trainer = modular(1.0, 0.0, (BIOLOGY,), max_steps=1, max_grad_norm=0.0, per_device_train_batch_size=64)
    got = first_gradients(trainer)
    model = tiny_model()
    other = Partition.of(model, domains=trainer.sgtm.partition.domains)
    with SGTM(other).without("cyber"):
        batch = collate([trainer.train_dataset[i] for i in range(64)])
        model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_each_module_is_clipped_by_its_own_norm(modular):
    trainer = modular(0.0, 0.0, (BIOLOGY, CYBER, RETAIN), max_steps=1, max_grad_norm=1e-3)
    norms = {}
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.update({o: torch.nn.utils.get_total_norm(g) for o, g in trainer.blocks.gradients_by_owner()})
    )
    trainer.train()
    # The norm is divided by itself + 1e-6.
    assert {o: n.item() for o, n in norms.items()} == {
        owner: pytest.approx(1e-3, rel=1e-2) for owner in (*CORE, "biology", "cyber")
    }


@pytest.mark.slow
def test_modules_hold_what_the_core_does_not(make_trainer):
    """Three rules over an alphabet, each in a module; half of what is retained is unlabeled."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(1 + len(DOMAINS), (48 * 250,), generator=generator)
    unlabeled = torch.rand(len(kinds), generator=generator) < 0.5
    modes = torch.where(kinds > 0, kinds + 1, torch.where(unlabeled, 0, 1))  # default, retain, the domains
    rows = [{"input_ids": i, "mode": int(m)} for i, m in zip(sequences(kinds, generator), modes, strict=True)]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SYMBOLS + 1 + len(DOMAINS),
            hidden_size=48,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=8,
            max_position_embeddings=LENGTH,
        )
    )
    sgtm = SGTM(Partition.of(model, domains=dict.fromkeys(DOMAINS, Units(neurons=32))), joint=["*"])
    settings = {
        "max_steps": 250,
        "per_device_train_batch_size": 48,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
    }
    arguments = make_trainer(strategy=None, **settings).args
    shares = {"hear_domains": 0.5, "auxiliary_spread": 0.25, "core_robustness": 0.5}
    SGTMTrainer(model, arguments, sgtm, "per_block", **shares, train_dataset=rows).train()
    matrix = matrix_of(sgtm)
    assert all(loss.mean < 0.3 for loss in matrix[()].values())
    for removed, losses in matrix.items():
        assert losses["retain"].mean < 0.3
        assert all(losses[domain].mean > 1.5 for domain in removed)
