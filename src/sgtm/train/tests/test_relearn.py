"""Relearning: what is trained on, what is written, and that it goes on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from sgtm.cli import main
from sgtm.config import ConfigError, DataConfig, EvaluateConfig, RelearnConfig
from sgtm.data.mixture import PreparedData
from sgtm.records import RECORD, read_records
from sgtm.train.relearn import parts_of, relearn, rows_of_steps, setting_of, start_of, with_lora
from sgtm.train.tests.conftest import tiny_model

# peft asks the model by an old name
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
QUICK = RelearnConfig(
    tokens=240,
    learning_rates=[1e-2],
    steps=6,
    warmup_steps=2,
    micro_batch_size=64,
    evaluate=EvaluateConfig(every=2, rows=16),
)


def quiet(_: str) -> None:
    pass


def data_of(run) -> str:
    return yaml.safe_load((run / "config.yaml").read_text())["data"]["path"]


def refusal(*words) -> str:
    with pytest.raises(SystemExit) as refused:
        main(["relearn", *map(str, words)])
    return str(refused.value)


def test_every_row_once_in_each_pass_and_at_least_the_tokens_of_a_step():
    lengths = np.array([5, 9, 3, 7, 1])
    steps = rows_of_steps(lengths, 10, np.random.default_rng(0))
    drawn = [next(steps) for _ in range(50)]
    flat = [row for step in drawn for row in step]
    passes = [flat[i : i + 5] for i in range(0, len(flat) - 4, 5)]
    assert all(sorted(p) == [0, 1, 2, 3, 4] for p in passes)
    assert len({tuple(p) for p in passes}) > 1
    assert all(10 <= lengths[step].sum() < 10 + 9 for step in drawn)
    again = rows_of_steps(lengths, 10, np.random.default_rng(0))
    assert [next(again) for _ in range(50)] == drawn


def test_a_step_holds_what_was_asked_for(with_adjacent):
    data = PreparedData.load(DataConfig(str(with_adjacent)))
    for on, other in (("forget", "forget"), ("adjacent", "adjacent")):
        parts = parts_of(data, replace(QUICK, on=on, mix=0.25), "forget")
        assert [(part.category, part.tokens) for part in parts] == [(other, 60), ("retain", 180)]
        assert all(part.rows.present == [part.category] for part in parts)
    (only,) = parts_of(data, replace(QUICK, mix=1.0), "forget")
    assert only.category == "forget"


def test_more_tokens_than_there_are_is_refused(data):
    with pytest.raises(ConfigError, match=r"a step takes 500,000 tokens of category forget and the data has"):
        parts_of(data, replace(QUICK, tokens=10**6), "forget")
    with pytest.raises(ConfigError, match=r"of category adjacent and the data has 0"):
        parts_of(data, replace(QUICK, on="adjacent"), "forget")


@pytest.mark.parametrize("units", ["absent", "zero", "init"])
def test_what_was_removed_is_relearned(finished_run, tmp_path, units):
    config = replace(QUICK, units=units, learning_rates=[1e-2, 1e-6], steps=8, target="4", tokens=600)
    summary = relearn(finished_run, config, tmp_path / "out", quiet)
    fast, slow = summary["curves"]
    assert summary["best"] == 1e-2
    assert fast["reached"]
    assert not slow["reached"]
    assert fast["at"]["loss"] == 4
    assert slow["closest"]["loss"] > 4
    assert slow["steps"] == 8
    records = read_records(tmp_path / "out" / "metrics.jsonl")
    assert all(set(RECORD) | {"learning_rate", "forget_tokens"} == set(r) for r in records)
    curve = [r for r in records if r["learning_rate"] == 1e-2 and r["category"] == "forget"]
    assert curve[0]["step"] == curve[0]["tokens"] == 0
    assert [r["step"] for r in curve] == list(range(0, fast["steps"] + 1, 2))  # and no further than the target
    assert curve[-2]["loss"] > 4 >= curve[-1]["loss"]
    # Rows have 15 predicted tokens at most, so a step has less than 15 more than it should.
    assert 300 <= curve[1]["forget_tokens"] / 2 < 315
    assert 600 <= curve[1]["tokens"] / 2 < 630


def test_a_start_that_has_reached_the_target_takes_no_step(finished_run, tmp_path):
    summary = relearn(finished_run, replace(QUICK, target="9"), tmp_path / "out", quiet)
    assert summary["curves"][0]["at"]["step"] == summary["curves"][0]["steps"] == 0
    summary = relearn(finished_run, replace(QUICK, target="9", stop=False), tmp_path / "on", quiet)
    assert (summary["curves"][0]["at"]["step"], summary["curves"][0]["steps"]) == (0, 6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_target_is_measured_in_the_precision_of_the_curve(finished_run, tmp_path, precision):
    """The target is this very model: there without a step."""
    config = replace(QUICK, target=str(finished_run / "model"), precision=precision)
    summary = relearn(finished_run / "model", replace(config, data=DataConfig(data_of(finished_run))), tmp_path, quiet)
    first = read_records(tmp_path / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(summary["target"], abs=1e-7)


def test_a_target_may_be_a_model_and_the_start_is_the_ablated_one(finished_run, tmp_path):
    from sgtm.evaluate.loss import evaluate_loss
    from sgtm.train.opening import open_model

    summary = relearn(finished_run, replace(QUICK, target=str(finished_run)), tmp_path / "out", quiet)
    opened = open_model(finished_run)
    test = PreparedData.load(opened.config.data).test.of("forget", 16)
    assert summary["target"] == evaluate_loss(opened.model, test).mean  # intact
    first = read_records(tmp_path / "out" / "metrics.jsonl")[0]
    assert (first["category"], first["step"]) == ("forget", 0)
    assert first["loss"] == pytest.approx(evaluate_loss(opened.model, test, opened.sgtm).mean, rel=1e-6)  # ablated


def test_adjacent_text_alone_has_no_forget_tokens(finished_run, with_adjacent, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "plain")
    config = replace(QUICK, on="adjacent", data=DataConfig(str(with_adjacent)))
    relearn(tmp_path / "plain", config, tmp_path / "out", quiet)
    records = read_records(tmp_path / "out" / "metrics.jsonl")
    assert {r["category"] for r in records} == {"forget", "adjacent", "retain"}
    assert {r["forget_tokens"] for r in records} == {0}
    assert records[-1]["tokens"] > 0


def test_seeds_repeat_bit_for_bit(finished_run, tmp_path):
    written = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        relearn(finished_run, replace(QUICK, units="init", seed=seed), tmp_path / name, quiet)
        written[name] = (tmp_path / name / "metrics.jsonl").read_text()
    assert written["a"] == written["b"] != written["c"]


def test_micro_batches_do_not_matter(finished_run, tmp_path):
    """But for the order of sums: fp32."""
    losses = []
    for size in (3, 64):
        relearn(finished_run, replace(QUICK, micro_batch_size=size), tmp_path / str(size), quiet)
        losses.append([r["loss"] for r in read_records(tmp_path / str(size) / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2"])
def test_lora_leaves_the_base_weights(family):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = tiny_model()
    if family == "gpt2":  # its projections are transposed
        model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=4, n_positions=16))
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = torch.randint(300, (4, 16))
    exact = model.eval()(ids).logits
    adapted = with_lora(model, 2)
    assert torch.equal(adapted.eval()(ids).logits, exact)
    weights = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    now = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if "lora" not in name}
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], before[name]) for name in before)
    assert not torch.equal(adapted.eval()(ids).logits, exact)
    # A and B of rank 2 at every projection, and nothing else.
    maps = [p for n, p in before.items() if p.ndim == 2 and (".h." in n) and "weight" in n]
    assert sum(p.numel() for p in weights) == sum(2 * sum(p.shape) for p in maps)


def test_relearning_by_lora(finished_run, tmp_path):
    summary = relearn(finished_run, replace(QUICK, lora=4, learning_rates=[3e-2], steps=20), tmp_path / "out", quiet)
    losses = [r["loss"] for r in read_records(tmp_path / "out" / "metrics.jsonl") if r["category"] == "forget"]
    assert losses[-1] < losses[0] - 0.05
    assert summary["target"] is None
    assert summary["curves"][0]["at"] is None


def test_finished_curves_are_kept_and_missing_ones_are_made(finished_run, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rates = [1e-2, 1e-3]
    expected = relearn(finished_run, replace(QUICK, learning_rates=rates), whole, quiet)
    relearn(finished_run, replace(QUICK, learning_rates=rates[:1]), parts, quiet)
    with (parts / "metrics.jsonl").open("a") as file:  # of a curve that was killed
        file.write(json.dumps({"learning_rate": 1e-3, "step": 0, "category": "forget", "loss": 9}) + '\n{"lea')
    said = []
    assert relearn(finished_run, replace(QUICK, learning_rates=rates), parts, said.append) == expected
    assert not any(line.startswith("learning rate 0.01,") for line in said)
    assert (parts / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_killed_relearning_goes_on(finished_run, tmp_path):
    out, words = tmp_path / "out", ["--tokens", "240", "--steps", "12", "--warmup-steps", "2", "--evaluate.rows", "16"]
    words = [*words, "--evaluate.every", "1", "--learning-rates", "1e-2", "1e-3"]
    command = [sys.executable, "-m", "sgtm.cli", "relearn", str(finished_run), "--out", str(out), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(read_records(out / "metrics.jsonl")) < 32:  # into the second curve: 13 evaluations of 2 categories each
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = json.loads((out / "summary.json").read_text())
    assert len(killed["curves"]) == 1
    main(["relearn", str(finished_run), "--out", str(out), *words])
    main(["relearn", str(finished_run), "--out", str(tmp_path / "whole"), *words])
    for name in ("metrics.jsonl", "summary.json", "relearn.yaml"):
        assert (out / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_curve_that_diverges_ends(finished_run, tmp_path):
    said = []
    summary = relearn(finished_run, replace(QUICK, learning_rates=[1e30, 1e-3]), tmp_path / "out", said.append)
    assert any("diverged" in line for line in said)
    assert summary["best"] == 1e-3
    json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=pytest.fail)  # no NaN


def test_a_matched_start_is_said(finished_run, tmp_path):
    config = replace(QUICK, match=str(finished_run))
    said = []
    summary = relearn(finished_run, config, tmp_path / "out", said.append)
    assert summary["matched"]["step"] == 24
    assert said[0].startswith("matched: step 24 ")
    setting = setting_of(finished_run, config)
    assert start_of(setting).num_parameters() > 0


def test_from_the_command_line(finished_run, tmp_path, capsys):
    words = ["--tokens", "240", "--steps", "4", "--warmup-steps", "1", "--target", "0.5", "--learning-rates", "1e-2"]
    main(["relearn", str(finished_run), "--out", str(tmp_path / "out"), *words])
    shown = capsys.readouterr().out
    assert "not reached within 4 steps (closest loss" in shown
    assert f"written to {tmp_path / 'out'}" in shown
    settings = yaml.safe_load((tmp_path / "out" / "relearn.yaml").read_text())
    assert (settings["start"], settings["steps"], settings["units"]) == (str(finished_run), 4, "absent")
    main(["plot", "relearning", str(tmp_path), "--out", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mix", "0"], "mix=0.0 is no share"),
        (["--learning-rates", "1e-3", "1e-3"], "has one twice"),
        (["--learning-rates", "-1"], "all positive"),
        (["--steps", "10", "--warmup-steps", "10"], "must be less than steps"),
        (["--lora", "-1"], "must not be negative"),
        (["--target", "nowhere"], "nowhere holds no model"),
        (["--target", "-2"], "is no loss"),
        (["--domain", "forgot"], "did you mean 'forget'"),
        (["--without", "forgot"], "did you mean 'forget'"),
        (["--data.path", "nowhere"], "holds no prepared data"),
        (["--tokens", "90000000"], "use fewer --tokens"),
        (["--on", "adjacent"], "of category adjacent and the data has 0"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(finished_run, tmp_path, words, message):
    said = refusal(finished_run, "--out", tmp_path / "out", "--tokens", "240", *words)
    assert said.startswith("sgtm: error: ")
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_folders_are_not_mixed_up(finished_run, tmp_path):
    assert "holds no model" in refusal(tmp_path / "none", "--out", tmp_path / "out")
    relearn(finished_run, QUICK, tmp_path / "out", quiet)
    with pytest.raises(ConfigError, match="holds a relearning with another tokens, seed; choose another"):
        relearn(finished_run, replace(QUICK, tokens=300, seed=2), tmp_path / "out", quiet)
    with pytest.raises(ConfigError, match="holds something else"):
        relearn(finished_run, QUICK, tmp_path, quiet)
