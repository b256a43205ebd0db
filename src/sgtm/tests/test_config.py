"""YAML and values to configurations."""

import pytest

from sgtm.config import AuditConfig, ConfigError, RunConfig, TrainConfig, build, dump, load
from sgtm.plain import from_yaml, misfit, to_yaml


def test_what_is_written_is_read_back(tmp_path):
    config = build(
        RunConfig,
        {"seed": 3, "model": {"config": {"model_type": "llama"}}, "partition": {"layers": [0, 2], "joint": ["norms"]}},
        "test",
    )
    dump(config, tmp_path / "c.yaml")
    assert load(tmp_path / "c.yaml") == config


def test_a_recipe_takes_a_mapping_away(tmp_path):
    (tmp_path / "run.yaml").write_text("data: {path: d}\nmodel: {config: {model_type: llama}, attention: eager}\n")
    (tmp_path / "warm.yaml").write_text("model: {config: null, from_pretrained: there}\n")
    model = load(tmp_path / "run.yaml", tmp_path / "warm.yaml").model
    assert (model.config, model.from_pretrained, model.attention) == ({}, "there", "eager")


def test_a_recipe_takes_a_domain_away(tmp_path):
    (tmp_path / "run.yaml").write_text("partition: {domains: {bio: {heads: 1}, cyber: {heads: 1}}}\n")
    (tmp_path / "one.yaml").write_text("partition: {domains: {cyber: null}}\n")
    assert load(tmp_path / "run.yaml", tmp_path / "one.yaml").partition.domains == {"bio": {"heads": 1}}


def test_a_section_keeps_the_defaults_of_what_it_is_in():
    audit = build(AuditConfig, {"evaluate": {"batch_size": 32}, "elicit": None}, "audit")
    assert (audit.evaluate.rows, audit.evaluate.batch_size) == (200, 32)
    assert audit.elicit == AuditConfig().elicit


def test_recipes_stand_in_place_of_what_they_name(tmp_path):
    for name, text in {
        "run": "{seed: 1, train: {steps: 300, learning_rate: 1.0e-3}, model: {config: {model_type: llama}}}",
        "slow": "{train: {forget_lr_scale: 0.1, learning_rate: 2.0e-3}, model: {config: {hidden_size: 8}}}",
        "last": "{train: {learning_rate: 5}}",
        "wrong": "{train: {stepz: 3}}",
    }.items():
        (tmp_path / name).write_text(text)
    found = load(tmp_path / "run", tmp_path / "slow", tmp_path / "last")
    assert (found.seed, found.train.steps, found.train.forget_lr_scale, found.train.learning_rate) == (1, 300, 0.1, 5)
    assert found.model.config == {"model_type": "llama", "hidden_size": 8}
    with pytest.raises(ConfigError, match=r"run with .*wrong: train: unknown key 'stepz'; did you mean 'steps'"):
        load(tmp_path / "run", tmp_path / "wrong")


@pytest.mark.parametrize(("text", "value"), [("6e-4", 6e-4), ("1", 1.0), (2, 2.0), (0.5, 0.5)])
def test_numbers_that_yaml_reads_as_text_are_numbers(text, value):
    assert build(TrainConfig, {"learning_rate": text}, "test").learning_rate == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tran": {}}, "unknown key 'tran'; did you mean 'train'"),
        ({"train": {"lerning_rate": 1}}, r"train: unknown key 'lerning_rate'; did you mean 'learning_rate'"),
        ({"train": {"learning_rate": "fast"}}, "learning_rate='fast' must be of type float"),
        ({"train": {"steps": 1.5}}, "steps=1.5 must be of type int"),
        ({"train": {"steps": True}}, "steps=True must be of type int"),
        ({"train": {"steps": 0}}, "at least 1"),
        ({"train": {"steps": 10, "warmup_steps": 10}}, "less than train.steps"),
        ({"train": {"update": "strikt"}}, "update='strikt' is none of .*'per_block'"),
        ({"train": {"forget_lr_scale": 0}}, "must be positive"),
        ({"evaluate": {"rows": 0}}, "evaluate.rows=0 must be at least 1"),
        ({"calibrate": {"tokens": 0}}, "calibrate.tokens=0 must be at least 1"),
        ({"calibrate": {"learning_rate": 0}}, "must be positive"),
        ({"partition": {"layers": "all"}}, "layers='all' must be of type"),
        ({"partition": {"layers": ["one"]}}, "layers='one' must be of type int"),
        ({"train": 3}, "no mapping"),
        (["seed"], "no mapping"),
        ({"labels": {"undiscovered": 2}}, "no fraction"),
    ],
)
def test_mistakes_are_named_with_the_way_out(values, message):
    with pytest.raises(ConfigError, match=message):
        build(RunConfig, values, "x.yaml")


def test_a_section_left_empty_has_its_defaults():
    assert build(RunConfig, {"train": None}, "test").train == TrainConfig()


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="is no file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert load(tmp_path / "empty.yaml") == RunConfig()


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "\u2029", "ñandú 猫", "- a: b", "", "a\nb", "null", "1e3"])
def test_texts_come_back_from_yaml_as_they_were(text):
    """Unicode's other ends of a line too."""
    assert from_yaml(to_yaml({"path": text, text: [text]})) == {"path": text, text: [text]}


def test_a_number_that_no_float_holds_is_refused():
    assert "is too large a number" in misfit(10**400, float)
    assert not misfit(10**300, float)


def test_configurations_that_come_with_sgtm_are_found_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("configs/tinystories/cpu.yaml", "recipes/paper.yaml").train.mixing == "step_draw"
    (tmp_path / "configs/tinystories").mkdir(parents=True)
    (tmp_path / "configs/tinystories/cpu.yaml").write_text("train: {steps: 7, warmup_steps: 1}")
    assert load("configs/tinystories/cpu.yaml").train.steps == 7  # one's own comes first
    with pytest.raises(ConfigError, match=r"configs/none\.yaml is no file"):
        load("configs/none.yaml")
