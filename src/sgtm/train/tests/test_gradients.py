"""`sgtm gradients`: records of a run's kept checkpoints."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from sgtm.cli import main
from sgtm.evaluate.gradients import example_batches, example_gradients
from sgtm.model.partition import Partition
from sgtm.records import read_records
from sgtm.train.run import train
from sgtm.train.tests.test_domains_run import LLAMA
from sgtm.train.tests.test_run import config_of

FEW = ["--examples", "4", "--rows", "8"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.disable_tqdm", True, raising=False)


@pytest.fixture(scope="module")
def folder(prepared, tmp_path_factory):
    """A run of six steps with all its checkpoints."""
    folder = tmp_path_factory.mktemp("gradients") / "run"
    train(config_of(prepared, train__save_every=2, train__keep_checkpoints=None), folder)
    return folder


@pytest.fixture
def run(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "run")


def measured(run, *words):
    main(["gradients", str(run), *FEW, *words])
    return read_records(run / "gradients.jsonl")


def refusal_of(*words) -> str:
    with pytest.raises(SystemExit) as refused:
        main(["gradients", *map(str, words)])
    return str(refused.value)


def test_all_checkpoints_are_kept_and_measured(run, data, capsys):
    records = measured(run, "--checkpoints", "all")
    assert {(r["step"], r["category"], r["example"], r["part"]) for r in records} == {
        (step, category, example, part)
        for step in (2, 4, 6)
        for category in ("forget", "retain")
        for example in range(4)
        for part in ("forget", "retain", "joint", "all")
    }
    assert len(records) == 3 * 2 * 4 * 4
    directions = {"forget", "retain", "forget unmasked", "retain unmasked"}
    assert all(r["cosines"].keys() == directions for r in records)
    shown = capsys.readouterr().out
    assert "step 2 (1 of 3)" in shown
    assert "undefined" in shown
    assert not list(run.glob("*.partial"))
    for step, path in ((2, "checkpoints/checkpoint-2"), (6, "model")):
        check_norms(run / path, data, [r for r in records if r["step"] == step])


def check_norms(path, data, records):
    """Records equal what the model at ``path`` gives."""
    model = AutoModelForCausalLM.from_pretrained(path)
    partition = Partition.of(model, heads=1, neurons=16)
    for category in ("forget", "retain"):
        examples = example_batches(model, data.test.of(category, 4, seed=0))
        for example, parts in enumerate(example_gradients(model, partition, examples, {})):
            for part, expected in parts.items():
                (found,) = [r for r in records if (r["category"], r["example"], r["part"]) == (category, example, part)]
                assert found["norm"] == pytest.approx(expected.norm, rel=1e-5)
                assert found["relative_norm"] == pytest.approx(expected.relative_norm, rel=1e-5)


def test_the_last_model_is_measured_by_default(run, tmp_path):
    assert {r["step"] for r in measured(run)} == {6}
    shutil.rmtree(run / "model")
    assert {r["step"] for r in measured(run)} == {6}, "of the last checkpoint, where a run is not finished"
    shutil.rmtree(run / "checkpoints" / "checkpoint-6")
    (run / "checkpoints" / "checkpoint-4" / "sealed.json").unlink()
    assert {r["step"] for r in measured(run)} == {2}, "a checkpoint whose writing was cut short is none"
    main(["gradients", str(run), *FEW, "--out", str(tmp_path / "elsewhere.jsonl")])
    assert (tmp_path / "elsewhere.jsonl").read_text() == (run / "gradients.jsonl").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "none"},
        {"method": "filter", "model__head_bias": True, "model__init": "paper"},
        {"method": "gradient_routing", "model__head_bias": True},
        {"labels": {"undiscovered": 1.0}},
        {"model": {"config": LLAMA}, "train__precision": "bf16"},
    ],
    ids=["none", "filter, the paper's model", "routing, the paper's model", "no labels", "llama"],
)
def test_every_method_is_measured_by_the_units_of_its_configuration(prepared, tmp_path, changes):
    config = config_of(prepared, train__steps=2, train__warmup_steps=1, **changes)
    trained = train(config, tmp_path / "run")
    records = measured(tmp_path / "run")
    with torch.no_grad():
        whole = torch.cat([p.flatten() for p in trained.model.parameters()]).norm().item()
        partition = Partition.of(trained.model, heads=1, neurons=16)
        forget = torch.cat([s.of(s.param).flatten() for s in partition.forget]).norm().item()
    for part, weight in (("all", whole), ("forget", forget)):
        (found,) = {
            r["norm"] / r["relative_norm"]
            for r in records
            if r["part"] == part and r["example"] == 0 and r["category"] == "forget"
        }
        assert found == pytest.approx(weight, rel=1e-5)
    defined = {(r["part"], d) for r in records for d, cosine in r["cosines"].items() if cosine is not None}
    assert (("forget", "retain") in defined) is (trained.sgtm is None), "retain rows do not reach forget units"
    assert ({"forget", "forget unmasked"} <= records[0]["cosines"].keys()) is (config.labels.undiscovered != 1.0)


def test_several_domains_with_labels_of_tokens(tmp_path, monkeypatch):
    from sgtm.data.tests.test_texts import rows_of, write

    monkeypatch.chdir(tmp_path)
    write(tmp_path, rows_of(200, spans=lambda i, c: [[0, 9, c]] if c in ("biology", "cyber") else []))
    prepare = ["--tokenizer", "train:300", "--context", "16", "--test-fraction", "0.2"]
    main(["data", "texts", "--source", "texts.jsonl", "--out", "data", *prepare])
    domains = {"biology": {"heads": 2, "neurons": 2}, "cyber": {"heads": 2, "neurons": 3}}
    partition = {"domains": domains, "joint": ["embeddings", "norms", "final_norm"]}
    changes = {"model": {"config": LLAMA}, "labels": {}, "partition": partition, "train__hear_domains": 0.0}
    train(config_of("data", **changes), tmp_path / "run")
    records = measured(tmp_path / "run")
    assert {r["part"] for r in records} == {"retain", "biology", "cyber", "joint", "all"}
    assert {d for d in records[0]["cosines"] if " " not in d} == {"biology", "cyber"}, "no token is labelled retain"
    for r in records:
        # Forget tokens of one domain never reach the units of another.
        assert r["part"] not in domains or all((r["cosines"][d] is None) == (d != r["part"]) for d in domains)
    main(["plot", "gradient-norms", "run", "--out", "x.png"])
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_what_cannot_be_measured_is_refused(run, tmp_path):
    assert "holds no run" in refusal_of(tmp_path / "nowhere")
    assert "examples=0 must be at least 1" in refusal_of(run, "--examples", "0")
    assert "is no folder" in refusal_of(run, "--out", tmp_path / "no" / "x.jsonl")
    shutil.rmtree(run / "checkpoints")
    said = refusal_of(run, "--checkpoints", "all")
    assert "a model of step 6 alone" in said
    assert "--train.keep-checkpoints None" in said
    shutil.rmtree(run / "model")
    assert "holds no model yet" in refusal_of(run)
    assert not (run / "gradients.jsonl").exists()


def test_a_measurement_cut_short_leaves_the_last_one(run, monkeypatch):
    before = measured(run)

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sgtm.train.gradients.update_directions", die)
    with pytest.raises(KeyboardInterrupt):
        measured(run, "--checkpoints", "all")
    assert read_records(run / "gradients.jsonl") == before


def test_two_checkpoints_are_kept_by_default(prepared, tmp_path, capsys):
    train(config_of(prepared, train__save_every=1, train__steps=4), tmp_path / "run")
    assert {r["step"] for r in measured(tmp_path / "run", "--checkpoints", "all")} == {3, 4}
    assert "kept its last 2 checkpoints alone" in capsys.readouterr().out


def test_what_is_kept_is_said_on_the_command_line(prepared, tmp_path):
    from sgtm.config import dump, load

    dump(config_of(prepared, train__save_every=1, train__steps=4), tmp_path / "tiny.yaml")
    main(["train", str(tmp_path / "tiny.yaml"), "--train.keep-checkpoints", "None", "--run-dir", str(tmp_path / "run")])
    assert load(tmp_path / "run" / "config.yaml").train.keep_checkpoints is None
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 4


def test_the_datas_own_labels_are_set_aside_as_in_training(labelled_texts, tmp_path):
    config = config_of(labelled_texts, labels={"own": False, "undiscovered": 0.25})
    train(config, tmp_path / "run")
    records = measured(tmp_path / "run")
    assert all("retain" in r["cosines"] for r in records), "no span of the data is labelled retain"
