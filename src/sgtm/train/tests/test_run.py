"""A run, from its configuration to a model on disk; and everything that is refused before it starts."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM

from sgtm.config import ConfigError, RunConfig, build, dump, load
from sgtm.model import GPTNeoForCausalLMSGTM, GPTNeoSGTMConfig
from sgtm.records import read_records
from sgtm.train.run import METHODS, evaluate_run, export_run, load_run, train

TINY = {
    "model": {
        "config": {
            "model_type": "gpt_neo",
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 16,
            "window_size": 8,
        }
    },
    "partition": {"heads": 1, "neurons": 16, "joint": ["embeddings", "norms"]},
    "labels": {"undiscovered": 0.2},
    "train": {"steps": 6, "batch_size": 8, "warmup_steps": 2, "learning_rate": "1e-2", "log_every": 2},
    "calibrate": {"steps": 5, "rows": 16, "tokens": 64},
}


def config_of(prepared, **changes) -> RunConfig:
    """The tiny run, with ``section.key`` or ``key`` changed."""
    values = json.loads(json.dumps({**TINY, "data": {"path": str(prepared)}}))
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values.setdefault(section, {})[key] = value
        else:
            values[section] = value
    return build(RunConfig, values, "test")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.disable_tqdm", True, raising=False)


def finished(folder):
    """Weights and test losses of a run."""
    records = [r for r in read_records(folder / "metrics.jsonl") if r["split"] == "test"]
    return AutoModelForCausalLM.from_pretrained(folder / "model").state_dict(), records


@pytest.mark.parametrize("method", ["none", "filter", "sgtm", "gradient_routing", "activation_masking"])
def test_a_run_leaves_all_its_files(prepared, tmp_path, method):
    config = config_of(prepared, method=method)
    run = train(config, tmp_path / "run")
    folder = tmp_path / "run"
    assert load(folder / "config.yaml") == config
    about = json.loads((folder / "run.json").read_text())
    assert about["environment"]["torch"] == torch.__version__
    assert (run.sgtm is None) is (METHODS[method].strategy is None)
    assert (about["modes"]["forget"] > 0) is (run.sgtm is not None)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert type(model) is GPTNeoForCausalLM
    trained = run.model.cpu()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), trained.parameters(), strict=True))


def test_records_say_what_was_measured(prepared, tmp_path):
    config = config_of(prepared, evaluate__every=3, calibrate__every_evaluation=True, train__save_every=6)
    run = train(config, tmp_path / "run")
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    keys = {"step", "tokens", "flops", "split", "category", "variant", "loss", "num_tokens"}
    assert all(keys <= set(r) for r in records)
    training = [r for r in records if r["split"] == "train"]
    assert [r["step"] for r in training] == [2, 4, 6]
    assert sum(r["num_tokens"] for r in training) == training[-1]["tokens"]
    assert 6 * 8 * 14 <= training[-1]["tokens"] <= 6 * 8 * 15, "15 predicted tokens a row; short rows are few"
    parameters = run.model.num_parameters()
    assert all(r["flops"] == 6 * parameters * r["tokens"] for r in records)
    test = [r for r in records if r["split"] == "test"]
    assert {(r["step"], r["category"], r["variant"]) for r in test} == {
        (step, category, variant)
        for step in (3, 6)
        for category in ("forget", "retain")
        for variant in ("intact", "ablated", "calibrated")
    }
    final = {(r["category"], r["variant"]): r["loss"] for r in test if r["step"] == 6}
    assert final == {key: loss.mean for key, loss in run.losses.items()}


def test_one_seed_gives_one_run(prepared, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(config_of(prepared, seed=seed), tmp_path / name)
    (weights_a, records_a), (weights_b, records_b), (_, records_c) = (finished(tmp_path / n) for n in "abc")
    assert all(torch.equal(weights_a[n], weights_b[n]) for n in weights_a)
    assert records_a == records_b != records_c


def test_low_precision_is_trained_and_evaluated_alike(prepared, tmp_path):
    run = train(config_of(prepared, train__precision="bf16"), tmp_path / "run")
    assert run.model.dtype is torch.float32, "bf16 is for the computation, not for the weights"
    again = evaluate_run(tmp_path / "run", rows=None, batch_size=64)
    assert again == run.losses
    full = train(config_of(prepared), tmp_path / "full")
    key = ("retain", "ablated")
    assert 0 < abs(full.losses[key].mean - run.losses[key].mean) < 0.1


@pytest.mark.parametrize("mixing", ["step", "step_draw"])
@pytest.mark.parametrize("method", ["sgtm", "filter"])
def test_the_papers_schedules(prepared, tmp_path, mixing, method):
    run = train(config_of(prepared, method=method, train__mixing=mixing), tmp_path / "run")
    assert all(loss.mean > 0 for loss in run.losses.values())


def test_strict_updates_and_a_rate_for_the_forget_units(prepared, tmp_path):
    for name, changes in {
        "plain": {},
        "strict": {"train__update": "strict", "train__mixing": "step"},
        "slow": {"train__forget_lr_scale": 0.1},
    }.items():
        train(config_of(prepared, **changes), tmp_path / name)
    weights = [finished(tmp_path / n)[0]["transformer.h.0.mlp.c_fc.weight"] for n in ("plain", "strict", "slow")]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "changes",
    [
        {"train__arguments": {"lr_scheduler_type": "linear"}},
        {
            "train__arguments": {"lr_scheduler_type": "constant"},
            "train__forget_lr_scale": 0.1,
            "train__forget_lr_end": 1.0,
        },
        {"model__config": {"model_type": "bloom", "hidden_size": 16, "n_layer": 2, "n_head": 4}},
    ],
    ids=["linear", "constant", "bloom"],
)
def test_what_is_allowed_trains(prepared, tmp_path, changes):
    run = train(config_of(prepared, **changes), tmp_path / "run")
    assert all(loss.mean > 0 for loss in run.losses.values())


def test_what_is_logged_of_a_killed_run_is_what_an_unbroken_one_logs(prepared, tmp_path, monkeypatch):
    """Though it goes on between two logs."""
    config = config_of(prepared, train__save_every=3, train__log_every=2)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("sgtm.train.run.Evaluation.__call__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, tmp_path / "killed")
    train(config, tmp_path / "killed", resume=True)
    assert finished(tmp_path / "killed")[1] == finished(tmp_path / "whole")[1]


def test_a_killed_run_goes_on_as_if_it_had_not_been(prepared, tmp_path, monkeypatch):
    config = config_of(prepared, train__save_every=2, evaluate__every=2)
    train(config, tmp_path / "whole")

    def die_at_step_4(evaluation, step):
        if step == 4:
            raise KeyboardInterrupt
        return {}

    with monkeypatch.context() as patch:
        patch.setattr("sgtm.train.run.Evaluation.__call__", die_at_step_4)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "killed")
    train(config, tmp_path / "killed", resume=True)
    (whole, records), (killed, again) = (finished(tmp_path / n) for n in ("whole", "killed"))
    assert all(torch.equal(whole[n], killed[n]) for n in whole)
    assert [r for r in records if r["step"] > 2] == [r for r in again if r["step"] > 2]
    steps = [r["step"] for r in read_records(tmp_path / "killed" / "metrics.jsonl") if r["split"] == "train"]
    assert steps == [2, 4, 6], "no step is recorded twice"
    with pytest.raises(ConfigError, match="is finished"):
        train(config, tmp_path / "killed", resume=True)


def test_a_run_killed_before_its_model_was_written_is_finished(prepared, tmp_path, capsys):
    """The last checkpoint has no step left to do; the one before it has."""
    config = config_of(prepared, train__save_every=3)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "model")
    train(config, tmp_path / "killed", resume=True)
    assert "checkpoint-3" in capsys.readouterr().out
    (whole, records), (killed, again) = (finished(tmp_path / n) for n in ("whole", "killed"))
    assert all(torch.equal(whole[n], killed[n]) for n in whole)
    assert records == again
    shutil.rmtree(tmp_path / "killed" / "model")
    shutil.rmtree(tmp_path / "killed" / "checkpoints")
    train(config, tmp_path / "killed", resume=True)
    assert "from the beginning" in capsys.readouterr().out
    assert records == finished(tmp_path / "killed")[1]


def test_a_finished_run_is_evaluated_anew(prepared, tmp_path):
    run = train(config_of(prepared), tmp_path / "run")
    again = evaluate_run(tmp_path / "run", rows=None, batch_size=7)
    for key, loss in run.losses.items():
        assert again[key].num_tokens == loss.num_tokens
        assert again[key].mean == pytest.approx(loss.mean, abs=1e-4)


def test_a_finished_run_is_exported(prepared, tmp_path):
    run = train(config_of(prepared), tmp_path / "run")
    done = export_run(tmp_path / "run", tmp_path / "out")
    assert done.cut
    assert done.parameters_after < done.parameters_before == run.model.num_parameters()
    assert done.max_difference < 1e-4
    code = (
        "import sys; sys.modules['sgtm'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r})\n"
        f"t = AutoTokenizer.from_pretrained({str(tmp_path / 'out')!r})\n"
        "assert m.config.intermediate_size == 48, m.config\n"
        "import torch; m.generate(**t('The cat', return_tensors='pt'), max_new_tokens=3, pad_token_id=0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    train(config_of(prepared, method="filter"), tmp_path / "filter")
    with pytest.raises(ConfigError, match="no forget units to remove"):
        export_run(tmp_path / "filter", tmp_path / "out2")
    (tmp_path / "run" / "model" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run/model has a config.json of 1 bytes, not .*; restore it"):
        export_run(tmp_path / "run", tmp_path / "out3")


def test_the_papers_model_has_a_head_bias_and_cannot_be_exported(prepared, tmp_path):
    run = train(config_of(prepared, model__head_bias=True), tmp_path / "run")
    assert type(run.model) is GPTNeoForCausalLMSGTM
    assert run.model.lm_head.bias.any()
    _, loaded, sgtm = load_run(tmp_path / "run")
    assert sgtm is loaded.sgtm
    assert sgtm.frozen_joint == run.sgtm.frozen_joint != ()
    with pytest.raises(ConfigError, match="the head's bias is not zero"):
        export_run(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_train_the_same_model(prepared, tmp_path):
    dump(config_of(prepared), tmp_path / "tiny.yaml")
    command = ["sgtm.cli", "train", str(tmp_path / "tiny.yaml"), "--run-dir"]
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29741", "-m", *command]
    subprocess.run([sys.executable, "-m", *command, str(tmp_path / "one")], check=True)
    subprocess.run([*two, str(tmp_path / "two")], check=True)
    (one, records), (two_, again) = (finished(tmp_path / n) for n in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two_[name], weight, rtol=1e-3, atol=1e-5)
    assert [(r["step"], r["tokens"]) for r in records] == [(r["step"], r["tokens"]) for r in again]
    assert [r["loss"] for r in again] == pytest.approx([r["loss"] for r in records], abs=1e-3)


def test_other_families_train_by_configuration_alone(prepared, tmp_path):
    llama = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16,
    }
    config = config_of(prepared, model={"config": llama}, partition__heads=2)
    train(config, tmp_path / "run")
    done = export_run(tmp_path / "run", tmp_path / "out")
    assert done.max_difference < 1e-4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.intermediate_size == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__path": "no/such/data"}, "holds no prepared data"),
        ({"data__path": ""}, "data.path is not set"),
        ({"method": "sgmt"}, "did you mean 'sgtm'"),
        ({"partition__heads": 5}, "heads=5 of 4"),
        ({"partition__neurons": 64}, "neurons=64 of 64"),
        ({"partition__heads": 0, "partition__neurons": 0}, "no forget units"),
        ({"partition__layers": [0, 2]}, "2 layers"),
        ({"partition__joint": ["embeding"]}, "did you mean 'embeddings'"),
        ({"train__batch_size": 100_000}, "is more than the"),
        ({"evaluate__rows": 10_000}, "is more than the .* test rows of category forget"),
        ({"train__micro_batch_size": 3}, "cannot be cut"),
        ({"train__optimizer": "adamv"}, "TrainingArguments refuses"),
        ({"train__arguments": {"max_steps": 3}}, "is set by train.steps"),
        ({"model__config": {**TINY["model"]["config"], "max_position_embeddings": 8}}, "rows of 16 tokens"),
        ({"model__init": "paper"}, "set head_bias: true"),
        ({"train__arguments": {"lerning_rate": 1}}, "lerning_rate"),
        ({"labels": {"tpr": 0.9, "fpr": 0.9}}, "together at most 1"),
    ],
)
def test_a_run_that_cannot_work_is_refused_and_leaves_nothing(prepared, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(config_of(prepared, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_nio"}, "did you mean 'gpt_neo'"),
        ({"hiden_size": 8}, "did you mean 'hidden_size'"),
        ({"vocab_size": 100}, "less than the 300 entries"),
        ({"num_heads": 5}, "divisible"),
        ({"num_layers": "2"}, "no gpt_neo configuration"),
        ({"attention_types": [[["global"], 3]]}, "no gpt_neo configuration"),
        ({"model_type": "bert", "num_heads": None}, "unknown key"),
        ({"model_type": "olmo2", "num_heads": None}, "unknown key|no architecture"),
    ],
)
def test_a_model_that_cannot_work_is_refused(prepared, tmp_path, change, message):
    values = {k: v for k, v in {**TINY["model"]["config"], **change}.items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        train(config_of(prepared, model={"config": values}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_and_only_itself_resumed(prepared, tmp_path):
    config = config_of(prepared, train__steps=3)
    with pytest.raises(ConfigError, match="holds no run to resume"):
        train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"started with another seed \(seed: \d+ there, \d+ here\)"):
        train(dataclasses.replace(config, seed=5), tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="holds no finished run"):
        evaluate_run(tmp_path, None, 1)


@pytest.mark.parametrize(("size", "parameters"), [("8M", 7_736), ("18M", 17_781), ("34M", 33_732), ("64M", 63_855)])
def test_the_papers_models_have_the_papers_sizes(request, size, parameters):
    """Thousands of parameters, as printed in the paper."""
    config = load(request.config.rootpath / "configs" / "tinystories" / f"{size}.yaml")
    with torch.device("meta"):
        model = GPTNeoForCausalLMSGTM(
            GPTNeoSGTMConfig(
                **{k: v for k, v in config.model.config.items() if k != "model_type"},
                retain_mlp_dim=4 * config.model.config["hidden_size"] - 64,
                retain_attn_heads=31,
            )
        )
    assert model.num_parameters() // 1000 == parameters


def test_configurations_in_the_repository_are_valid(request):
    folder = request.config.rootpath / "configs"
    paths = sorted(path for path in folder.rglob("*.yaml") if not {"sweeps", "audit"} & set(path.parts))
    assert paths
    for path in paths:
        config = load(path)
        assert config.method in METHODS
        assert yaml.safe_load(path.read_text())["model"]["config"]["model_type"]
