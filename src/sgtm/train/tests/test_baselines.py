"""Conditional training, token masking, unlikelihood and GRAM under the one trainer."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from sgtm import SGTMTrainer
from sgtm.cli import main
from sgtm.config import ConfigError, LabelConfig
from sgtm.data.conditional import GOOD
from sgtm.data.mixture import training_rows
from sgtm.evaluate.loss import evaluate_loss
from sgtm.plot.tradeoff import COLORS
from sgtm.records import read_records
from sgtm.train.run import METHODS, train
from sgtm.train.tests.conftest import tiny_model
from sgtm.train.tests.test_run import TINY
from sgtm.train.tests.test_run import config_of as whole_config_of
from sgtm.train.tests.test_trainer import first_gradients

NEW = ("conditional", "token_masking", "unlikelihood", "gram")
GRAM = {"partition__heads": 0, "train__update": "per_block"}
TINY = TINY | {"train": TINY["train"] | {"save_every": 1000}, "evaluate": {"rows": 20}}


def config_of(prepared, **changes):
    """The tiny run, without checkpoints, on few test rows."""
    return whole_config_of(prepared, **{"train__save_every": 1000, "evaluate__rows": 20, **changes})


# ---- Conditional training


def test_control_tokens_are_read_and_never_predicted(make_trainer, data):
    grown = data.with_control(seed=0)
    rows, _ = training_rows(grown.train, LabelConfig(retain_fraction=1.0), "condition", 0, grown.control)
    few = rows.select(np.arange(8))
    size = len(grown.tokenizer)
    trainer = make_trainer(
        strategy=None, train_dataset=few, model=longer_model(size, grown.longest), max_steps=1, max_grad_norm=0.0
    )
    got = first_gradients(trainer)
    model, total, count = longer_model(size, grown.longest), torch.zeros(()), 0
    for i in range(8):
        ids = torch.tensor(few[i]["input_ids"])
        log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        plain = [t for t in range(len(ids)) if ids[t] < size - 2]
        for t in plain[1:]:
            total, count = total - log_p[t - 1, ids[t]], count + 1
    (total / count).backward()
    assert count == sum(len(few.data[i]["input_ids"]) - 1 for i in range(8))
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def longer_model(vocab_size, positions):
    model = tiny_model(vocab_size=vocab_size)
    model.config.max_position_embeddings = positions
    torch.manual_seed(0)
    return type(model)(model.config)


def test_what_the_variants_of_a_conditional_model_are(prepared, tmp_path):
    run = train(config_of(prepared, method="conditional"), tmp_path / "run")
    plain = {c: run.data.test.of(c, 20) for c in ("forget", "retain")}
    assert run.data.tokenizer.convert_tokens_to_ids(GOOD) == run.model.config.vocab_size - 2
    for category, rows in plain.items():
        assert run.losses[category, "intact"] == evaluate_loss(run.model, rows)
        asked = run.data.for_removed(rows)
        assert (asked[0]["input_ids"] == run.model.config.vocab_size - 2).any()
        assert run.losses[category, "ablated"] == evaluate_loss(run.model, asked)
        assert run.losses[category, "calibrated"] == evaluate_loss(run.model, asked, bias=run.bias)
        assert len({run.losses[category, v].mean for v in ("intact", "ablated", "calibrated")}) == 3
        assert len({run.losses[category, v].num_tokens for v in ("intact", "ablated", "calibrated")}) == 1
    none = train(config_of(prepared, method="none"), tmp_path / "none")
    assert {k: v.num_tokens for k, v in none.losses.items()} == {k: v.num_tokens for k, v in run.losses.items()}
    tokens = [read_records(tmp_path / name / "metrics.jsonl")[-1]["tokens"] for name in ("run", "none")]
    assert abs(tokens[0] - tokens[1]) <= 6 * 8, "the same targets but for short rows"


def test_a_conditional_model_tells_good_text_from_bad(prepared, tmp_path):
    config = config_of(
        prepared,
        method="conditional",
        labels={"undiscovered": 0.0, "retain_fraction": 1.0},
        train__steps=60,
        train__batch_size=16,
    )
    run = train(config, tmp_path / "run")
    good, bad = run.data.control.good, replace(run.data.control.good, tokens=(run.data.control.tokens[0],) * 3)
    for category, own, other in (("retain", good, bad), ("forget", bad, good)):
        rows = run.data.test.of(category, 100)
        asked = [evaluate_loss(run.model, replace(rows, treat=control)).mean for control in (own, other)]
        assert asked[0] < asked[1] - 0.1, category


def test_a_trained_model_grows_by_the_control_tokens(prepared, tmp_path):
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "pretrained")
    start = {"from_pretrained": str(tmp_path / "pretrained")}
    run = train(config_of(prepared, method="conditional", model=start), tmp_path / "run")
    assert run.model.config.vocab_size == 302
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").config.vocab_size == 302
    config.n_positions = 16
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "short")
    start = {"from_pretrained": str(tmp_path / "short")}
    with pytest.raises(ConfigError, match="tokens, control tokens included, and the model only 16"):
        train(config_of(prepared, method="conditional", model=start), tmp_path / "again")


# ---- GRAM, by configuration


def test_gram_masks_the_whole_core_and_takes_its_probabilities(prepared, tmp_path, monkeypatch):
    made = []

    class Seen(SGTMTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append((self.auxiliary_spread, self.core_robustness))

    monkeypatch.setattr("sgtm.train.run.SGTMTrainer", Seen)
    run = train(config_of(prepared, method="gram", **GRAM), tmp_path / "a")
    assert set(run.sgtm.frozen_joint) == set(run.sgtm.partition.joint)
    assert {s.name for s in run.sgtm.frozen} == {s.name for s in run.sgtm.partition.retain}
    train(config_of(prepared, method="gram", **GRAM, train__auxiliary_spread=0.0), tmp_path / "b")
    assert made == [(0.5, 0.5), (0.0, 0.5)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__update": "per_block"}, "forget has heads=1; use heads: 0"),
        ({"partition__heads": 0}, "train.update=gradient; use per_block"),
        (
            {"partition": {"domains": {"forget": {"heads": 1, "neurons": 2}}}, "train__update": "per_block"},
            "forget has heads=1",
        ),
        ({**GRAM, "train__forget_lr_scale": 0.1}, "use 1 for both, or auxiliary_spread: 0"),
        ({**GRAM, "train__forget_lr_end": 0.5}, "forget_lr_scale=1.0 and forget_lr_end=0.5"),
        ({"method": "filter", "train__auxiliary_spread": 0.5}, "method=filter has none; leave it out"),
        ({"train__core_robustness": 1.5}, "is no fraction"),
        ({"method": "unlikelyhood"}, "did you mean 'unlikelihood'"),
        ({"method": "conditional", "train__mixing": "step_draw"}, "needs the labels of rows"),
    ],
)
def test_settings_that_contradict_the_method_are_refused(prepared, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(config_of(prepared, **{"method": "gram", **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- As they are typed


@pytest.mark.parametrize("method", NEW)
def test_train_and_evaluate(prepared, tmp_path, method, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = TINY | {"data": {"path": str(prepared)}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    own = ["--partition.heads", "0", "--train.update", "per_block"] if method == "gram" else []
    main(["train", "tiny.yaml", "--method", method, "--run-dir", "run", *own])
    records = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["split"] == "test"]
    last = {(r["category"], r["variant"]): r["loss"] for r in records if r["step"] == 6}
    assert set(last) == {(c, v) for c in ("forget", "retain") for v in ("intact", "ablated", "calibrated")}
    assert all(np.isfinite(loss) for loss in last.values())
    capsys.readouterr()
    main(["evaluate", "run", "--rows", "20"])
    shown = capsys.readouterr().out
    assert all(f"{loss:.3f}" in shown for loss in last.values())
    main(["plot", "tradeoff", "run", "--out", "figure.svg"])
    assert method in COLORS
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["rows"]["forget as forget"] > 0
    exported = ["export", "run", "--out", "out"]
    if method == "gram":
        main(exported)
        assert AutoModelForCausalLM.from_pretrained("out").config.intermediate_size == 48
        return
    hint = re.escape(f"begin each text with its token {GOOD}") if method == "conditional" else "is stock already"
    with pytest.raises(SystemExit, match=hint):
        main(exported)
    size = len(AutoTokenizer.from_pretrained("run/model"))
    assert size == AutoModelForCausalLM.from_pretrained("run/model").config.vocab_size
    assert size == 300 + 2 * (method == "conditional")


def test_a_killed_run_goes_on_as_if_it_had_not_been(prepared, tmp_path, monkeypatch):
    """The draws of GRAM are those of the step."""
    config = config_of(prepared, method="gram", train__save_every=2, **GRAM)
    train(config, tmp_path / "whole")
    step = SGTMTrainer.training_step

    def die_at_step_4(trainer, *args, **kwargs):
        if trainer.state.global_step == 4:
            raise KeyboardInterrupt
        return step(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SGTMTrainer, "training_step", die_at_step_4)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "killed")
    train(config, tmp_path / "killed", resume=True)
    whole, killed = (
        AutoModelForCausalLM.from_pretrained(tmp_path / n / "model").state_dict() for n in ("whole", "killed")
    )
    assert all(torch.equal(whole[n], killed[n]) for n in whole)


def test_no_other_method_is_touched_by_gram():
    assert [name for name, m in METHODS.items() if m.joint or m.auxiliary_spread or m.core_robustness] == ["gram"]
