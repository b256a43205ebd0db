"""What a run leaves for its report, beside its losses."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerControl, TrainerState

from sgtm.data.conditional import GOOD
from sgtm.data.tokenizer import END_OF_TEXT
from sgtm.evaluate.generate import continuations, continue_text
from sgtm.evaluate.loss import Loss
from sgtm.records import GENERATIONS, MATRIX, PARTITION, THROUGHPUT, read_records
from sgtm.train.account import write_matrix
from sgtm.train.meter import Meter
from sgtm.train.recorder import Recorder
from sgtm.train.run import ablation_matrix_of_run, evaluate_run, train
from sgtm.train.tests.test_run import config_of


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("account") / "run"
    return train(config_of(prepared, evaluate__every=3, evaluate__rows=20, train__save_every=6), folder), folder


def test_a_run_says_who_owns_what(run):
    found = json.loads((run[1] / PARTITION).read_text())
    assert found["parameters"] == json.loads((run[1] / "run.json").read_text())["parameters"]
    assert {g["group"]: g["masked"] > 0 for g in found["joint"]} == {
        "embeddings": True,
        "norms": True,
        "final_norm": False,
    }


def test_a_run_leaves_continuations_of_every_variant(run):
    trained, folder = run
    found = read_records(folder / GENERATIONS)
    assert len(found) == 2 * 2 * 3  # texts, categories, variants
    assert [r["variant"] for r in found[:3]] == ["intact", "ablated", "calibrated"]
    assert all(r["prompt"] and END_OF_TEXT not in r["prompt"] + r["truth"] for r in found)
    tokenizer = trained.data.tokenizer
    for r in found:
        arguments = {
            "intact": (None, None),
            "ablated": (trained.sgtm, None),
            "calibrated": (trained.sgtm, trained.bias),
        }
        assert r["text"] == continue_text(trained.model, tokenizer, r["prompt"], *arguments[r["variant"]], 32)


def test_prompts_are_beginnings_of_test_texts(run, sentences):
    texts = [text for pair in sentences for text in pair]
    for r in read_records(run[1] / GENERATIONS):
        begun = r["prompt"] + r["truth"]
        assert any(begun.strip() in text for text in texts), begun


def test_a_conditional_model_is_asked_for_good_text_after_removal(prepared, tmp_path, monkeypatch):
    asked = []
    real = continue_text

    def listen(model, tokenizer, prompt, *more):
        asked.append(prompt)
        return real(model, tokenizer, prompt, *more)

    monkeypatch.setattr("sgtm.evaluate.generate.continue_text", listen)
    train(config_of(prepared, method="conditional", evaluate__generations=1), tmp_path / "run")
    assert [prompt.startswith(GOOD) for prompt in asked] == [False, True, True] * 2
    assert not any(GOOD in r["prompt"] for r in read_records(tmp_path / "run" / GENERATIONS))


def test_a_model_never_speaks_beyond_its_positions(run):
    trained, _ = run
    positions = trained.model.config.max_position_embeddings
    long = " ".join(["cat"] * 3 * positions)
    assert continue_text(trained.model, trained.data.tokenizer, long) == ""
    short = continue_text(trained.model, trained.data.tokenizer, "The cat", new_tokens=10 * positions)
    assert len(trained.data.tokenizer(short)["input_ids"]) <= positions


def test_a_method_without_units_has_no_ablated_text(prepared, tmp_path):
    trained = train(config_of(prepared, method="none", evaluate__generations=0), tmp_path / "run")
    assert not (tmp_path / "run" / GENERATIONS).exists()
    assert not (tmp_path / "run" / PARTITION).exists()
    rows = {"retain": trained.data.test.of("retain")}
    assert [r["variant"] for r in continuations(trained.model, trained.data.tokenizer, rows, number=1)] == ["intact"]


def test_a_model_that_cannot_speak_is_a_run_all_the_same(prepared, tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError("no voice")

    monkeypatch.setattr("sgtm.evaluate.generate.continue_text", fail)
    train(config_of(prepared), tmp_path / "run")
    assert f"no generations: no voice; `sgtm evaluate {tmp_path / 'run'} --generations 2`" in capsys.readouterr().out
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert not (tmp_path / "run" / GENERATIONS).exists()


def test_times_are_of_every_step_once(run):
    found = read_records(run[1] / THROUGHPUT)
    assert [r["step"] for r in found] == [2, 4, 6]
    losses = [r for r in read_records(run[1] / "metrics.jsonl") if r["split"] == "train"]
    assert sum(r["tokens"] for r in found) == losses[-1]["tokens"]
    assert all(r["seconds"] > 0 and r["memory_mb"] > 0 for r in found)
    steps, batch = 6, 8
    assert sum(sum(r["examples"].values()) for r in found) == steps * batch


def test_evaluations_do_not_count_as_training(tmp_path, monkeypatch):
    """By a clock of our own: a step takes 2 s, an evaluation 100."""
    now = [0.0]
    monkeypatch.setattr("sgtm.train.meter.time.monotonic", lambda: now[0])

    def evaluate(step):
        now[0] += 100
        return {("retain", "intact"): Loss(1.0, 3)}

    trainer = SimpleNamespace(meter=Meter(torch.nn.Linear(2, 3), ("default", "retain", "forget")), reading=None)
    recorder, state = Recorder(tmp_path, evaluate, 2, trainer), TrainerState(max_steps=4, is_world_process_zero=True)
    trainer.meter.on_train_begin(None, state, None)
    recorder.on_train_begin(None, state, None)
    for step in (1, 2, 3, 4):
        now[0] += 2
        trainer.meter.count(np.array([0, 2, 2]))
        state.global_step, state.num_input_tokens_seen = step, 10 * step
        recorder.on_step_end(None, state, TrainerControl())
        if step in (2, 4):
            trainer.reading = trainer.meter.read(10 * step)
            recorder.on_log(None, state, None, logs={"loss": 5.0, **trainer.reading.as_logs()})
    found = read_records(tmp_path / THROUGHPUT)
    assert [(r["step"], r["tokens"], r["seconds"]) for r in found] == [(2, 20, 4.0), (4, 20, 4.0)]
    assert [r["examples"] for r in found] == [{"default": 2, "retain": 0, "forget": 4}] * 2
    state.global_step = 2  # a resumed run forgets what it repeats
    recorder.on_train_begin(None, state, None)
    assert [r["step"] for r in read_records(tmp_path / THROUGHPUT)] == [2]


def test_an_earlier_run_gets_what_it_lacks(run):
    _, folder = run
    before = {name: (folder / name).read_text() for name in (PARTITION, GENERATIONS)}
    for name in before:
        (folder / name).unlink()
    evaluate_run(folder, 20, 64, generations=2)
    assert {name: (folder / name).read_text() for name in before} == before


def test_the_matrix_is_recorded(run):
    _, folder = run
    matrix = ablation_matrix_of_run(folder, 20, 64)
    found = read_records(folder / MATRIX)
    assert [(r["without"], r["category"], r["loss"]) for r in found] == [
        (list(names), category, loss.mean) for names, losses in matrix.items() for category, loss in losses.items()
    ]
    write_matrix(folder, {(): {"retain": Loss(1.0, 3)}})
    assert read_records(folder / MATRIX) == [{"without": [], "category": "retain", "loss": 1.0, "num_tokens": 3}]
