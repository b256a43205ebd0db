"""Attacks without training: what is measured of which model, and what is refused."""

import pytest
import yaml

from sgtm.cli import main
from sgtm.records import RECORD, read_records
from sgtm.train.opening import open_model
from sgtm.train.start import start_model
from sgtm.train.tests.conftest import tiny_model

ROWS = ["--evaluate.rows", "12", "--examples", "20", "--resamples", "20", "--shots", "0", "1"]
ROWS += ["--elicit.prompts", "4", "--elicit.rows", "8", "--elicit.steps", "3", "--elicit.batch-size", "8"]


def refusal(*words) -> str:
    with pytest.raises(SystemExit) as refused:
        main(["attack", *map(str, words)])
    return str(refused.value)


@pytest.fixture(scope="module")
def attacked(finished_run, tmp_path_factory):
    """All attacks, on the run and on its own exported model: they must agree."""
    folder = tmp_path_factory.mktemp("attacked")
    start_model(open_model(finished_run)).cpu().save_pretrained(folder / "absent")
    out = folder / "out"
    main(["attack", str(finished_run), "--out", str(out), "--against", str(folder / "absent"), *ROWS])
    return read_records(out / "metrics.jsonl"), read_records(out / "probes.jsonl"), out


def test_losses_are_records_of_every_setting(attacked):
    losses, _, out = attacked
    assert all(set(RECORD) | {"model", "attack", "setting"} == set(r) for r in losses)
    settings = {(r["attack"], r["setting"]) for r in losses}
    assert {s for a, s in settings if a == "quantize"} == {"int8", "int8 dynamic", "int4", "int4 dynamic"}
    assert ("prune", "50 % (global)") in settings
    assert ("few-shot", "1 of retain") in settings
    prompts = ["no prompt", "best of 4 from retain", "best of 4 from forget", "soft, 8 vectors"]
    assert [s for a, s in dict.fromkeys((r["attack"], r["setting"]) for r in losses) if a == "elicit"] == prompts
    cost = {r["setting"]: (r["step"], r["tokens"] > 0, r["flops"] > 0) for r in losses if r["attack"] == "elicit"}
    assert [cost[name] for name in prompts] == [(0, False, False), (0, True, False), (0, True, False), (6, True, True)]
    assert {(r["model"], r["category"]) for r in losses} == {
        (m, c) for m in ("start", "against") for c in ("forget", "retain")
    }
    assert yaml.safe_load((out / "attack.yaml").read_text())["examples"] == 20


def test_a_run_is_attacked_without_its_forget_units(attacked):
    losses, probes, _ = attacked
    for records, value, keys in ((losses, "loss", ("attack", "setting", "category")), (probes, "auc", ("layer",))):
        found = {
            m: {tuple(r[k] for k in keys): r[value] for r in records if r["model"] == m} for m in ("start", "against")
        }
        assert found["start"] == found["against"]
        assert len(found["start"]) >= 3


def test_the_model_is_as_it_was_after_each_attack(attacked, finished_run):
    """What is measured last of a kind does not depend on what was measured before it."""
    losses, _, _ = attacked
    plain = next(r["loss"] for r in losses if r["attack"] == "none" and r["category"] == "forget")
    by_setting = {r["setting"]: r["loss"] for r in losses if r["model"] == "start" and r["category"] == "forget"}
    assert abs(by_setting["int8"] - plain) < 1e-2 < abs(by_setting["70 % (global)"] - plain)
    assert by_setting["10 % (global)"] != plain


def test_probes_have_their_controls(attacked):
    _, probes, _ = attacked
    models = {r["model"] for r in probes}
    assert models == {"start", "against", "untrained", "shuffled labels"}
    assert {r["layer"] for r in probes} == {0, 1, 2}
    assert all(r["low"] <= r["auc"] <= r["high"] for r in probes if r["model"] != "shuffled labels")


def test_one_kind_alone_and_its_options(finished_run, tmp_path, capsys):
    words = ["--kind", "prune", "--sparsities", "0.25", "--scope", "layer", "--evaluate.rows", "8"]
    main(["attack", str(finished_run), "--out", str(tmp_path / "out"), *words])
    shown = capsys.readouterr().out
    assert "25 % (layer)" in shown
    assert "int8" not in shown
    assert not (tmp_path / "out" / "probes.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsities", "1"], "from 0 to less than 1"),
        (["--shots", "-1"], "give numbers of rows"),
        (["--kind", "few-shot", "--shots", "9"], "in a context of 16; use fewer --shots"),
        (["--kind", "elicit", "--elicit.length", "15"], "use a shorter prompt"),
        (["--against", "nowhere"], "nowhere holds no model"),
        (["--without", "forgot"], "did you mean 'forget'"),
        (["--examples", "0"], "must be at least 1"),
        (["--data.path", "nowhere"], "holds no prepared data"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(finished_run, tmp_path, words, message):
    said = refusal(finished_run, "--out", tmp_path / "out", "--evaluate.rows", "8", *words)
    assert said.startswith("sgtm: error: ")
    assert message in said
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_vocabulary_is_refused(finished_run, tmp_path):
    tiny_model(vocab_size=50).save_pretrained(tmp_path / "other")
    assert "vocabulary entries" in refusal(finished_run, "--out", tmp_path / "out", "--against", tmp_path / "other")
    assert "give --data.path" in refusal(tmp_path / "other", "--out", tmp_path / "out")
    (tmp_path / "out").mkdir()
    assert "exists already" in refusal(finished_run, "--out", tmp_path / "out")
