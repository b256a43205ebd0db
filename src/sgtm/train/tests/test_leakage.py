"""`sgtm leakage`: which ordinary models it wants, which it reuses, and what it then says."""

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from sgtm.cli import main
from sgtm.config import ConfigError, DataConfig, LabelConfig, dump, load
from sgtm.data.mixture import PreparedData, training_rows
from sgtm.data.tests.test_texts import prepared as prepared_texts
from sgtm.data.tests.test_texts import rows_of
from sgtm.evaluate.leakage import leakage
from sgtm.records import read_records
from sgtm.train.leakage import measure, write_records
from sgtm.train.references import plan_references, train_missing
from sgtm.train.run import train
from sgtm.train.seen import seen_tokens
from sgtm.train.tests.test_run import config_of
from sgtm.train.tests.test_seen import QUICK

SHARES = (0.0, 0.25, 1.0)
GRAM = {
    "method": "gram",
    "partition": {"heads": 0, "neurons": 16},
    "train__update": "per_block",
    "train__auxiliary_spread": 0.3,
    "train__core_robustness": 0.3,
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.TrainingArguments.disable_tqdm", True, raising=False)
        yield


def small(prepared, **changes):
    """Nearly an epoch of the 1292 rows: then every share of them that is labelled leaves as many retain tokens."""
    return config_of(
        prepared, **({"train__steps": 40, "train__batch_size": 32, "train__warmup_steps": 4} | QUICK | changes)
    )


@pytest.fixture(scope="module")
def world(prepared, tmp_path_factory):
    """Two seeds of SGTM, one of Gradient Routing at another share, a filter, and the grid they are measured against.

    One run and its ordinary models are trained; the others have made-up losses.
    """
    folder = tmp_path_factory.mktemp("world")
    train(small(prepared), folder / "sgtm-0")
    train_missing(plan_references([folder / "sgtm-0"], None, SHARES))
    pretend(small(prepared, seed=1), folder / "sgtm-1", loss=4.7)
    for model, loss in zip(plan_references([folder / "sgtm-1"], None, SHARES).missing, (5.0, 4.6, 4.2), strict=True):
        pretend(model.config, model.folder, loss)
    routing = {"method": "gradient_routing", "labels": {"undiscovered": 0.5}, "train__forget_lr_scale": 0.3}
    pretend(small(prepared, **routing), folder / "routing", loss=4.8)
    pretend(small(prepared, method="filter"), folder / "filter", loss=4.5)
    return folder


def pretend(config, folder: Path, loss: float = 5.0) -> Path:
    """A finished run's folder without its training."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "run.json").write_text(json.dumps({"parameters": {"joint": 10_000}}))
    dump(config, folder / "config.yaml")
    domains = config.partition.names
    tokens = seen_tokens(config, PreparedData.load(config.data, domains).train).total
    test = {"step": config.train.steps, "tokens": tokens, "split": "test"}
    records = [test | {"category": d, "variant": v, "loss": loss} for d in domains for v in ("intact", "ablated")]
    write_records(records, folder / "metrics.jsonl")
    return folder


def runs_of(folder: Path) -> list[Path]:
    return [folder / name for name in ("sgtm-0", "sgtm-1", "routing", "filter")]


def test_all_methods_and_shares_of_a_seed_have_one_grid(world):
    plan = plan_references(runs_of(world), None, SHARES)
    assert plan.missing == []
    assert len(plan.models) == 2 * len(SHARES)
    grids = [[m.folder for m in plan.grids[world / name]] for name in ("sgtm-0", "routing", "sgtm-1")]
    assert grids[0] == grids[1] != grids[2]
    assert world / "filter" not in plan.grids, "a filter is its own measure"


def test_an_ordinary_model_sees_the_runs_retain_data_unmasked_and_nothing_else_differs(world, data):
    for run, grid in plan_references(runs_of(world), None, SHARES).grids.items():
        of_run = load(run / "config.yaml")
        retain = seen_tokens(of_run, data.train).retain
        for model, share in zip(grid, SHARES, strict=True):
            config = load(model.folder / "config.yaml")
            one_step = 32 * 15
            assert abs(model.seen.retain - retain) <= one_step, "to the nearest step"
            assert model.seen.counts[:, 1:].sum() == 0, "nothing masked"
            assert (config.method, config.labels.undiscovered, config.seed) == ("filter", share, of_run.seed)
            assert config.train.warmup_steps == round(4 * config.train.steps / 40)
            assert (config.model, config.data) == (of_run.model, of_run.data)
            same = ("batch_size", "learning_rate", "weight_decay", "mixing", "precision", "max_grad_norm")
            assert all(getattr(config.train, name) == getattr(of_run.train, name) for name in same)
    steps = [m.config.train.steps for m in grid]
    assert steps == sorted(steps), "more forget data, more steps for the same retain data"


def test_documents_nest(data):
    """What a run has not discovered is the forget data of the ordinary model with its share, and part of the next."""

    def documents(share, use, mode):
        rows, _ = training_rows(data.train, LabelConfig(undiscovered=share), use, seed=3)
        return set(rows.documents[(rows.categories == 0) & (rows.modes == mode)].tolist())

    of_run = documents(0.25, "modes", 0)
    assert of_run == documents(0.25, "filter", 0)
    assert documents(0.1, "filter", 0) < of_run < documents(0.6, "filter", 0)


def test_a_filter_leaks_one(world):
    """By construction, and measured as any other run is."""
    plan = plan_references(runs_of(world), None, SHARES)
    (record,) = (r for r in measure(plan) if r["method"] == "filter")
    assert record["ratio"]["value"] == 1
    assert record["tokens"]["value"] == record["undiscovered_tokens"] > 0
    assert record["by_construction"]
    grid = [m.point("forget") for m in plan.grids[world / "sgtm-0"]]
    assert all(a.loss > b.loss for a, b in pairwise(grid)), "40 steps tell the shares apart"
    for point in grid[1:]:
        assert leakage([point], [grid]).ratio.value == pytest.approx(1, rel=1e-12)


def test_models_are_known_by_what_they_were_trained_on(world, prepared, tmp_path):
    """Not by their name; and not where anything that matters to an ordinary model is another."""
    references = tmp_path / "references"
    references.symlink_to(world / "references", target_is_directory=True)
    by_other_names = tmp_path / "others"
    by_other_names.mkdir()
    for i, folder in enumerate(sorted((world / "references").iterdir())):
        (by_other_names / f"{i}").symlink_to(folder, target_is_directory=True)
    assert plan_references([world / "sgtm-0"], by_other_names, SHARES).missing == []
    for name, change, missing in (
        ("forget units", {"partition": {"heads": 0, "neurons": 8}}, 0),
        ("strict", {"train__update": "strict"}, 0),
        ("seed", {"seed": 2}, 3),
        ("rate", {"train__learning_rate": 2e-3}, 3),
        ("warm-up", {"train__warmup_steps": 9}, 3),
        ("steps", {"train__steps": 44}, 3),
        ("calibration", {"calibrate__steps": 3}, 0),
        ("checkpoints", {"train__keep_checkpoints": None}, 0),
        ("draws of GRAM", GRAM, 0),
        ("false positives", {"labels": {"tpr": 0.8, "fpr": 0.2}}, 3),
        ("test rows", {"evaluate__rows": 5}, 3),
        ("width", {"model__config": {**load(world / "sgtm-0/config.yaml").model.config, "hidden_size": 24}}, 3),
    ):
        run = pretend(small(prepared, **change), tmp_path / name)
        assert len(plan_references([run], references, SHARES).missing) == missing, name


def test_a_grid_is_extended(world):
    """New shares are trained beside those that are there; all that are there count."""
    plan = plan_references([world / "sgtm-0"], None, [0.25, 0.6])
    assert [m.share for m in plan.grids[world / "sgtm-0"]] == [0.0, 0.25, 0.6, 1.0]
    assert [m.share for m in plan.missing] == [0.6]
    tiny = plan_references([world / "sgtm-0"], None, [0.0, 1e-9, 2e-9])
    assert tiny.missing == [], "so small a share has no document more than none"


def test_false_positives_are_dropped_alike(prepared, data, tmp_path):
    """Retain documents that were labelled forget teach the ablated model nothing; no ordinary model sees them."""
    labels = {"precision": 0.8, "recall": 0.7, "retain_fraction": 0.1}
    run = pretend(small(prepared, labels=labels), tmp_path / "run")
    (grid,) = plan_references([run], None, SHARES).grids.values()
    for model in grid:
        assert model.config.labels.fpr == pytest.approx(0.7 * 0.2 / 0.8, rel=0.05), "as many documents of each kind"
        assert model.share in SHARES
    of_run = replace(load(run / "config.yaml"), method="filter")
    assert grid[1].kind == plan_references([run], None, SHARES).runs[0].kind
    assert asdict(grid[0].config.labels)["precision"] is None
    assert seen_tokens(of_run, data.train).counts[2, 0] > 0


def test_false_positives_are_dropped_alike_where_the_datas_own_labels_are_set_aside(labelled_texts, tmp_path):
    labels = {"own": False, "tpr": 0.7, "fpr": 0.2}
    run = pretend(small(labelled_texts, labels=labels, train__batch_size=8), tmp_path / "run")
    (grid,) = plan_references([run], None, SHARES).grids.values()
    assert {model.config.labels.fpr for model in grid} == {0.2}


def test_documents_nest_where_errors_depend_on_something(labelled_texts, tmp_path):
    """An ordinary model with the run's share trains on the very documents that the run has not discovered."""
    labels = {"own": False, "undiscovered": 0.25, "depends_on": "length", "strength": 20.0}
    run = pretend(small(labelled_texts, labels=labels, train__batch_size=8), tmp_path / "run")
    (grid,) = plan_references([run], None, SHARES).grids.values()
    data = PreparedData.load(DataConfig(str(labelled_texts))).train

    def unmasked(config):
        rows, _ = training_rows(data, config.labels, "modes", config.seed)
        return set(rows.documents[(rows.categories == 0) & (rows.modes == 0)].tolist())

    of_run, of_models = unmasked(load(run / "config.yaml")), [unmasked(model.config) for model in grid]
    assert of_models[1] == of_run
    assert of_models[0] == set() < of_models[1] < of_models[2]
    even = pretend(
        small(labelled_texts, labels={**labels, "depends_on": "nothing"}, train__batch_size=8), tmp_path / "e"
    )
    assert len(plan_references([even], tmp_path / "references", SHARES).missing) == len(SHARES)


def test_labels_that_the_data_comes_with_are_set_aside(labelled_texts, tmp_path):
    """Ordinary models draw theirs; the share of the run is what its labels left undiscovered."""
    run = pretend(small(labelled_texts, labels={}, train__batch_size=8), tmp_path / "run")
    plan = plan_references([run], None, SHARES)
    rows = PreparedData.load(DataConfig(str(labelled_texts))).train
    seen = seen_tokens(load(run / "config.yaml"), rows)
    missed, found = seen.undiscovered("forget"), seen.labelled("forget")
    assert plan.runs[0].share == pytest.approx(missed / (missed + found), abs=1e-3)
    for model in plan.missing:
        assert not model.config.labels.own
        pretend(model.config, model.folder, loss=6 - model.share)
    (record,) = measure(plan_references([run], None, SHARES))
    assert [g["tokens"] for g in record["grid"]] == [m.seen.undiscovered("forget") for m in plan.models]
    assert record["ratio"]["value"] == pytest.approx(record["tokens"]["value"] / missed)


def test_each_domain_has_a_leakage_of_its_own(tmp_path):
    data = prepared_texts(tmp_path, rows_of(400))
    units = {"domains": {name: {"neurons": 8} for name in ("biology", "cyber")}}
    run = pretend(small(data, partition=units, labels={"undiscovered": 0.3}, train__batch_size=8), tmp_path / "run")
    plan = plan_references([run], None, SHARES)
    for model in plan.missing:
        pretend(model.config, model.folder, loss=6 - 2 * model.share)
    biology, cyber = measure(plan_references([run], None, SHARES))
    assert (biology["domain"], cyber["domain"]) == ("biology", "cyber")
    for record in (biology, cyber):
        seen = plan.runs[0].seen
        assert record["undiscovered_tokens"] == seen.undiscovered(record["domain"]) > 0
        assert record["grid"][-1]["tokens"] == pytest.approx(seen.undiscovered(record["domain"]) / 0.3, rel=0.5)


def test_records_are_what_the_folders_say(world):
    plan = plan_references(runs_of(world), None, SHARES)
    records = {r["method"]: r for r in measure(plan, num_bootstrap=50)}
    sgtm = records["sgtm"]
    assert sgtm["seeds"] == [0, 1]
    test = [read_records(world / f"sgtm-{s}" / "metrics.jsonl") for s in (0, 1)]
    ablated = [r["loss"] for of in test for r in of if r.get("variant") == "ablated" and r["category"] == "forget"]
    assert sgtm["loss"] == pytest.approx(np.mean(ablated))
    assert sgtm["tokens_interval"] is not None
    assert records["gradient_routing"]["tokens_interval"] is None, "one seed"
    assert sgtm["ratio"]["value"] == pytest.approx(sgtm["tokens"]["value"] / sgtm["undiscovered_tokens"])
    about = json.loads((world / "sgtm-0" / "run.json").read_text())
    assert sgtm["parameters"] == sum(about["parameters"].values())
    assert sgtm["labelled_tokens"] > sgtm["undiscovered_tokens"] > 0
    assert [g["undiscovered"] for g in sgtm["grid"]] == list(SHARES)
    assert [len(g["runs"]) for g in sgtm["grid"]] == [2, 2, 2]
    assert records["gradient_routing"]["undiscovered"] == 0.5


def test_a_model_that_was_killed_goes_on(prepared, tmp_path, monkeypatch):
    def die(evaluation, step):
        raise KeyboardInterrupt

    shares, references = [0.0, 1.0], tmp_path / "references"
    run = pretend(small(prepared, train__steps=6, train__batch_size=8), tmp_path / "run")
    plan = plan_references([run], references, shares)
    with monkeypatch.context() as patch:
        patch.setattr("sgtm.train.run.Evaluation.__call__", die)
        with pytest.raises(KeyboardInterrupt):
            train_missing(plan)
    again = plan_references([run], references, shares)
    assert [m.folder for m in again.missing] == [m.folder for m in plan.missing]
    with pytest.raises(ConfigError, match="is not trained to its end"):
        measure(again)
    train_missing(again)
    assert plan_references([run], references, shares).missing == []


def test_the_commands(world, tmp_path, capsys):
    runs, before = list(map(str, runs_of(world))), sorted(world.rglob("*"))
    main(["leakage", *runs, "--shares", "0", "0.5", "1", "--dry-run"])
    shown = capsys.readouterr().out
    assert "2 of 8 to be trained, on" in shown
    assert sorted(world.rglob("*")) == before, "nothing is written"
    out = tmp_path / "of" / "leakage.jsonl"
    main(["leakage", *runs, "--shares", *map(str, SHARES), "--interpolation", "log", "--out", str(out)])
    shown = capsys.readouterr().out
    assert "0 of 6 to be trained, on 0 tokens" in shown
    assert "gradient_routing" in shown
    assert "One seed gives no interval." in shown
    assert {r["interpolation"] for r in read_records(out)} == {"log"}
    pytest.importorskip("matplotlib")
    main(["plot", "leakage", str(out), "--out", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_bad_input_is_refused(world, tmp_path, prepared):
    for runs, shares, message in (
        ([], SHARES, "no runs"),
        ([tmp_path], SHARES, "holds no run"),
        ([world / "sgtm-0"], [0.5], "are no grid"),
        ([world / "sgtm-0"], [0, 1.5], "are no grid"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan_references(runs, None, shares)
    unfinished = pretend(small(prepared), tmp_path / "unfinished")
    (unfinished / "model" / "config.json").unlink()
    with pytest.raises(ConfigError, match="no finished run"):
        plan_references([unfinished], None, SHARES)
    other = pretend(small(prepared), tmp_path / "other")
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**config, "seed": 9, "method": "none"}))
    records = read_records(other / "metrics.jsonl")
    write_records([r | {"tokens": r["tokens"] + 1} for r in records], other / "metrics.jsonl")
    with pytest.raises(ConfigError, match="have changed since"):
        plan_references([other], None, SHARES)
    twin = pretend(small(prepared), tmp_path / "twin")
    plan = plan_references([world / "sgtm-0", twin], world / "references", SHARES)
    with pytest.raises(ConfigError, match="one configuration and seed"):
        measure(plan)
