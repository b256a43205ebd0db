"""Runs with several domains, from texts to an export without some of them, and from a trained model."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import sgtm
from sgtm import SGTM, Partition, SGTMTrainer, Units
from sgtm.cli import main
from sgtm.config import MODES, ConfigError
from sgtm.data.tests.test_texts import rows_of, write
from sgtm.train.run import train
from sgtm.train.tests.test_run import TINY, config_of

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with a finished run of two domains, spans labelled."""
    monkeypatch.chdir(tmp_path)
    spans = lambda i, c: [[0, 9, c]] if c in ("biology", "cyber") else []  # noqa: E731
    write(tmp_path, rows_of(400, spans=spans))
    main(
        [
            "data",
            "texts",
            "--source",
            "texts.jsonl",
            "--out",
            "data",
            "--tokenizer",
            "train:300",
            "--context",
            "16",
            "--test-fraction",
            "0.2",
        ]
    )
    values = TINY | {
        "data": {"path": "data"},
        "model": {"config": LLAMA},
        "labels": {},
        "partition": {
            "domains": {"biology": {"heads": 2, "neurons": 2}, "cyber": {"heads": 2, "neurons": 3}},
            "joint": ["embeddings", "norms", "final_norm"],
        },
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(values))
    main(["train", "two.yaml", "--run-dir", "run", "--train.update", "per_block"])
    return tmp_path


def test_two_domains_are_trained_evaluated_removed_and_put_back(run, capsys):
    about = json.loads((run / "run" / "run.json").read_text())
    assert set(about["parameters"]) == {"retain", "biology", "cyber", "joint"}
    assert {"tokens as biology", "tokens as cyber"} <= set(about["rows"])
    capsys.readouterr()
    main(["evaluate", "run", "--without", "biology"])
    assert "biology" in capsys.readouterr().out
    main(["evaluate", "run", "--matrix"])
    assert "biology, cyber" in capsys.readouterr().out
    main(["export", "run", "--out", "out", "--without", "biology,cyber", "--verify"])
    assert "biology, cyber removed (4 heads and 5 neurons cut out of each layer" in capsys.readouterr().out
    main(["export", "run", "--out", "bio.safetensors", "--module", "biology"])
    main(["export", "run", "--out", "cyber.safetensors", "--module", "cyber"])
    card = (run / "out" / "README.md").read_text()
    assert "| category | before removal | this checkpoint |" in card
    model = AutoModelForCausalLM.from_pretrained(run / "out")
    assert model.config.num_attention_heads == 4
    for file in ("cyber.safetensors", "bio.safetensors"):
        model = sgtm.attach(model, run / file)
    trained = AutoModelForCausalLM.from_pretrained(run / "run" / "model").state_dict()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in trained.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "run", "--without", "biologi"], "'biologi' is no domain; did you mean 'biology'"),
        (["export", "run", "--out", "x", "--without", "art"], "'art' is no domain"),
        (["export", "run", "--out", "x", "--module", "art"], "'art' is no domain"),
        (["export", "run", "--out", "x", "--module", "cyber", "--verify"], "leave out --without and --verify"),
        (["train", "two.yaml", "--run-dir", "y", "--labels.undiscovered", "0.1"], "labels of its own"),
    ],
)
def test_what_makes_no_sense_is_refused(run, words, message):
    with pytest.raises(SystemExit, match=message):
        main(words)
    assert not (run / "x").exists()
    assert not (run / "y").exists()


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({"biology": {"heads": 0, "neurons": 0}}, "leave no forget units"),
        ({"biology": {"head": 1}}, "give {heads: ..., neurons: ...}"),
        ({"biology": {"heads": 2, "neurons": 2}}, r"has the categories \['cyber'\]"),
        ({"retain": {"heads": 1}}, "cannot name a domain"),
        ({"biology": {"heads": 4}, "cyber": {"heads": 4}}, "use 0 to 7 in all"),
    ],
)
def test_bad_domains_are_refused_before_a_run_exists(run, domains, message):
    values = yaml.safe_load((run / "two.yaml").read_text())
    values["partition"]["domains"] = domains
    (run / "bad.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit, match=message):
        main(["train", "bad.yaml", "--run-dir", "z"])
    assert not (run / "z").exists()


@pytest.fixture
def pretrained(tmp_path):
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


@pytest.mark.parametrize("init", ["normal", "copy"])
def test_a_run_starts_from_a_trained_model_with_units_added(prepared, pretrained, tmp_path, init):
    model = {"from_pretrained": str(pretrained), "expand": True, "expand_init": init}
    config = config_of(prepared, model=model, partition={"heads": 0, "neurons": 8}, train__update="strict")
    run = train(config, tmp_path / "run")
    assert run.model.config.n_inner == 72
    assert (run.sgtm.partition.neurons, run.sgtm.partition.heads) == (8, 0)
    assert run.losses["forget", "intact"].num_tokens > 0
    again = train(config_of(prepared, model=model, partition={"heads": 0, "neurons": 8}, method="none"), tmp_path / "b")
    assert again.model.config.n_inner == 72  # a baseline of the same size


@pytest.mark.parametrize(
    ("model", "partition", "message"),
    [
        (
            {"from_pretrained": "nowhere/at/all"},
            {"neurons": 4},
            "nowhere/at/all cannot be loaded.*folder or a name on the Hub",
        ),
        ({"from_pretrained": "PRETRAINED", "expand": True}, {"heads": 1}, "no head width of its own"),
        ({"from_pretrained": "PRETRAINED", "config": LLAMA}, {"neurons": 4}, "leave out model.config"),
        (
            {"from_pretrained": "PRETRAINED", "expand": True},
            {"neurons": 4, "layers": [0]},
            "leave out partition.layers",
        ),
    ],
)
def test_starts_that_cannot_be_are_refused(prepared, pretrained, tmp_path, model, partition, message):
    model = {k: str(pretrained) if v == "PRETRAINED" else v for k, v in model.items()}
    with pytest.raises(ConfigError, match=message):
        train(config_of(prepared, model=model, partition=partition), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def steps_of(trainer):
    """(mode, domains that are heard) of every part that is trained."""
    seen = []
    hold = trainer.sgtm.batch_before_reduction

    def batch(mode):
        seen.append((mode, tuple(sorted(trainer.sgtm._heard))))
        return hold(mode)

    trainer.sgtm.batch_before_reduction = batch
    trainer.train()
    return seen


@pytest.fixture
def two_domains(make_trainer, rows):
    """A trainer of retain rows and rows of "biology"; its share of steps in which domains are heard is given."""

    def make(share, **kwargs):
        other = make_trainer(strategy=None, max_steps=40, learning_rate=1e-3)
        domains = {"biology": Units(neurons=2), "cyber": Units(heads=1)}
        sgtm = SGTM(Partition.of(other.model, domains=domains))
        few = rows.select(np.flatnonzero(rows.modes == MODES.index("retain"))[:64])
        codes = np.tile(np.array([1, 2], np.int8), 32)
        return SGTMTrainer(
            other.model,
            other.args,
            sgtm,
            hear_domains=share,
            train_dataset=dataclasses.replace(few, modes=codes),
            **kwargs,
        )

    return make


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_domains_are_heard_in_some_steps(two_domains, share):
    seen = Counter(steps_of(two_domains(share)))
    silent = seen["retain", ()]
    assert silent + sum(seen["retain", h] for h in (("biology",), ("cyber",), ("biology", "cyber"))) == 40
    assert silent == {0.0: 40, 1.0: 0}.get(share, silent)
    assert share != 0.5 or 8 < silent < 32
    assert all(seen["biology", heard] == seen["retain", heard] for _, heard in seen)  # one choice a step


@pytest.mark.parametrize("update", ["gradient", "strict", "per_block"])
def test_heard_domains_are_not_updated(two_domains, update):
    """No row is of "cyber": it is heard, and stands still but for weight decay."""
    trainer = two_domains(1.0, update=update)
    trainer.args.weight_decay = 0.0
    partition = trainer.sgtm.partition
    before = {d: [s.of(s.param).detach().clone() for s in partition.forget_of(d)] for d in partition.domains}
    assert any("cyber" in heard for _, heard in steps_of(trainer))
    for domain, olds in before.items():
        same = [torch.equal(s.of(s.param), old) for s, old in zip(partition.forget_of(domain), olds, strict=True)]
        assert all(same) if domain == "cyber" else not any(same)
