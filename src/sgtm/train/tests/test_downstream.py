"""Tasks put to a run, its variants and its export, as they are typed."""

import json

import pytest

from sgtm import SGTM, Partition, Units
from sgtm.cli import main
from sgtm.config import ConfigError, PrepareConfig, TasksConfig
from sgtm.data.tasks import make_tasks
from sgtm.data.tests.test_tasks import stories
from sgtm.data.tokenize import prepare
from sgtm.train.downstream import _variants, evaluate_tasks
from sgtm.train.opening import Opened
from sgtm.train.run import train
from sgtm.train.tests.conftest import tiny_model
from sgtm.train.tests.test_run import TINY, config_of


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A run that has learned which words follow which, its export, and tasks."""
    pytest.importorskip("lm_eval", reason="the extra `eval` has lm-eval")
    folder = tmp_path_factory.mktemp("downstream")
    data = prepare(stories, PrepareConfig(folder / "data", "train:400", 64, pack=True, test_fraction=0.2), {})
    make_tasks(data, TasksConfig(folder / "tasks", items=40, name="t"))
    shape = TINY["model"]["config"] | {"max_position_embeddings": 64, "hidden_size": 32}
    steps = {"steps": 60, "learning_rate": 1e-2}
    changes = {"model__config": shape, **{f"train__{k}": v for k, v in steps.items()}}
    train(config_of(data, labels={}, **changes), folder / "run")
    main(["export", str(folder / "run"), "--out", str(folder / "export")])
    return folder


@pytest.fixture(scope="module")
def records(workplace):
    main(["evaluate", str(workplace / "run"), "--tasks", str(workplace / "tasks"), "--out", str(workplace / "out")])
    return [json.loads(line) for line in (workplace / "out").read_text().splitlines()]


def test_both_variants_with_intervals(records):
    assert len(records) == 16
    for record in records:
        assert record["low"] <= record["score"] <= record["high"]
        assert record["chance"] in (0.25, 0.5)
        assert record["questions"] >= 20
        assert record["interval"] == ("wilson" if record["documents"] == record["questions"] else "bootstrap")
        assert ("change" in record) == (record["variant"] == "ablated") == (record["without"] == ["forget"])
    scores = {(r["task"], r["variant"]): r for r in records}
    for (task, variant), record in scores.items():
        if variant == "ablated":
            assert record["change"] == pytest.approx(record["score"] - scores[task, "intact"]["score"])
            assert record["change_low"] <= record["change"] <= record["change_high"]


def test_what_was_learned_is_above_chance(records):
    """Which words stand in the text that is kept: 60 steps teach that."""
    (replaced,) = [r for r in records if r["task"] == "t_replaced_retain" and r["variant"] == "intact"]
    assert replaced["low"] > replaced["chance"]


def test_an_export_scores_as_the_ablated_model(workplace, records):
    """It is smaller, and computes the same but for rounding: one question at most is decided otherwise."""
    found = {r["task"]: r for r in evaluate_tasks(workplace / "export", [str(workplace / "tasks")])}
    ablated = {r["task"]: r for r in records if r["variant"] == "ablated"}
    assert found.keys() == ablated.keys()
    for task, record in found.items():
        assert record["variant"] == "intact"
        assert abs(record["score"] - ablated[task]["score"]) * record["questions"] < 1.5
    intact = {r["task"]: r["score"] for r in records if r["variant"] == "intact"}
    assert any(intact[task] != record["score"] for task, record in ablated.items())


def test_the_table(workplace, capsys):
    task = str(workplace / "tasks" / "t_fact_forget.yaml")
    main(["evaluate", str(workplace / "run"), "--tasks", task, "--variants", "ablated", "--rows", "25"])
    shown = capsys.readouterr().out
    assert "t_fact_forget" in shown
    assert "without forget" in shown
    assert " intact " not in shown
    assert "25" in shown


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("run", ["--variants", "intact"], "give --tasks too"),
        ("run", ["--tasks", "tasks", "--without", "forgte"], "did you mean 'forget'"),
        ("export", ["--tasks", "tasks", "--variants", "ablated"], "has no forget units"),
        ("export", ["--tasks", "tasks", "--matrix"], "has no forget units"),
        ("nowhere", ["--tasks", "tasks"], "holds no model"),
        ("run", ["--tasks", "tasks", "--out", "run"], "run exists already"),
    ],
)
def test_what_cannot_be_asked(workplace, monkeypatch, model, words, message):
    monkeypatch.chdir(workplace)
    with pytest.raises(SystemExit) as refused:
        main(["evaluate", model, *words])
    assert message in str(refused.value)


def test_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sgtm\[eval\]'"):
        evaluate_tasks(tmp_path, ["mmlu"])


def test_a_model_without_a_tokenizer(workplace, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="has no tokenizer"):
        evaluate_tasks(tmp_path / "model", [str(workplace / "tasks")])


def test_variants_of_several_domains(tmp_path):
    model = tiny_model()
    units = Units(heads=1, neurons=8)
    opened = Opened(tmp_path, model, SGTM(Partition.of(model, domains={"a": units, "b": units})), None, None)
    assert _variants(opened, (), (), False) == {"intact": None, "ablated": ("a", "b")}
    assert _variants(opened, ("ablated",), ("b",), False) == {"ablated": ("b",)}
    matrix = {"intact": None, "without a": ("a",), "without b": ("b",), "ablated": ("a", "b")}
    assert _variants(opened, (), (), True) == matrix
