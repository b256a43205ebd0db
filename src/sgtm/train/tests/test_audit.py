"""Audits: what is attacked and written, that finished attacks are kept, and the arithmetic of what came back."""

import json
from dataclasses import replace
from statistics import fmean

import pytest
import yaml

from sgtm.cli import main
from sgtm.config import (
    AuditConfig,
    ConfigError,
    DataConfig,
    ElicitConfig,
    EvaluateConfig,
    FinetuneConfig,
    build,
    read_yaml,
)
from sgtm.records import read_records
from sgtm.train import audit as module
from sgtm.train.audit import audit, plan_of
from sgtm.train.findings import Done, _recovered, findings_of
from sgtm.train.opening import open_model
from sgtm.train.start import start_model
from sgtm.train.tests.conftest import tiny_model

# peft asks the model by an old name
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
TINY = AuditConfig(
    relearn=FinetuneConfig([1e-2], 2, [3e-2], tokens=240, steps=4, warmup_steps=1, every=2),
    sparsities=[0.3],
    shots=[0, 1],
    examples=20,
    resamples=20,
    elicit=ElicitConfig(length=4, prompts=4, rows=8, steps=2, learning_rates=[3e-2], batch_size=8, every=2),
    evaluate=EvaluateConfig(rows=12),
)
QUICK = replace(TINY, attacks=["quantize", "prune"])


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def models(finished_run, tmp_path_factory):
    """The run; its own intact weights, which have all; and its export, which must fare as the run itself."""
    folder = tmp_path_factory.mktemp("models")
    opened = open_model(finished_run)
    opened.model.save_pretrained(folder / "intact")
    start_model(opened).cpu().save_pretrained(folder / "export")
    return {"sgtm": {"a": finished_run}, "export": {"a": folder / "export"}, "none": {"a": folder / "intact"}}


@pytest.fixture(scope="module")
def audited(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("audits") / "whole"
    said = []
    return audit(models, TINY, out, said.append), out, said


def lines(found, attack, model="sgtm"):
    return [r for r in found if (r["attack"], r["model"]) == (attack, model) and "skipped" not in r]


def test_every_attack_is_made_on_every_model_it_can_be_made_on(audited):
    found, out, _ = audited
    everywhere = {"unattacked", "quantize", "prune", "few-shot", "elicit", "probe"}
    made = {
        model: {r["attack"] for r in found if r["model"] == model and "skipped" not in r}
        for model in ("sgtm", "export", "none")
    }
    assert made["sgtm"] == everywhere | {"relearn", "relearn-lora", "relearn-init"}
    assert made["export"] == everywhere | {"relearn", "relearn-lora"}
    assert made["none"] == everywhere
    assert {p.parent.relative_to(out).as_posix() for p in out.glob("*/*/*/metrics.jsonl")} == {
        f"{attack}/{model}/a" for model, attacks in made.items() for attack in attacks if attack != "probe"
    } | {f"probe/{model}/a" for model in made}
    assert found == read_records(out / "audit.jsonl")


def test_what_was_not_tried_is_said_with_its_reason(audited):
    found, _, _ = audited
    reasons = {(r["attack"], r["model"]): r["skipped"] for r in found if "skipped" in r}
    assert reasons["relearn-adjacent", "sgtm"] == "the data has no adjacent text"
    assert reasons["relearn-init", "export"] == "it has no forget units that could be made fresh"
    assert reasons["relearn", "none"] == "nothing was removed from it"
    assert len(reasons) == 3 + 1 + 1 + 2


def test_an_export_fares_as_the_run_that_it_is_of(audited):
    found, _, _ = audited
    for attack in ("quantize", "prune", "few-shot", "elicit", "relearn"):
        own, other = lines(found, attack), lines(found, attack, "export")
        assert [r["after"] for r in own] == [r["after"] for r in other], attack
        assert len(own) == {"quantize": 4, "prune": 1, "few-shot": 2, "elicit": 3, "relearn": 1}[attack]


def test_what_came_back_is_measured_on_the_same_tokens(audited):
    found, _, _ = audited
    for attack in ("quantize", "few-shot", "elicit"):
        (reference,) = {r["before"]["forget"] for r in lines(found, attack, "none")}
        for r in lines(found, attack):
            gap = r["before"]["forget"] - reference
            assert gap > 0.01
            assert r["recovered"] == pytest.approx((r["before"]["forget"] - r["after"]["forget"]) / gap, rel=1e-9)
    befores = {a: lines(found, a)[0]["before"]["forget"] for a in ("quantize", "few-shot", "elicit", "relearn")}
    assert befores["quantize"] == befores["relearn"]
    assert len(set(befores.values())) == 3  # few-shot and prompts score other tokens
    assert {r["recovered"] for r in lines(found, "quantize", "none")} == {None}  # nothing is missing


def test_the_reference_lacks_nothing():
    """A run of it that is worse than their mean by a thousandth: a share of that would be any number."""
    config = AuditConfig(domain="forget", reference="none")
    line = {"attack": "few-shot", "before": {"forget": 2.001}, "after": {"forget": 1.999}}
    assert _recovered({**line, "model": "sgtm"}, config, {"few-shot": 2.0}) == pytest.approx(2.0)
    assert _recovered({**line, "model": "none"}, config, {"few-shot": 2.0}) is None


def test_fine_tuning_has_a_curve_and_its_cost(audited):
    found, _, _ = audited
    (line,) = lines(found, "relearn")
    assert [p["step"] for p in line["curve"]] == [0, 2, 4]
    assert line["after"]["forget"] == min(p["forget"] for p in line["curve"])
    assert line["forget_tokens"] == next(p["forget_tokens"] for p in line["curve"] if p["step"] == line["steps"])
    removed, none = line["before"]["forget"], lines(found, "unattacked", "none")[0]["before"]["forget"]
    assert [one["loss"] for one in line["levels"]] == pytest.approx(
        [removed - s * (removed - none) for s in (0.5, 0.9, 1)]
    )
    for one in line["levels"]:
        assert (one["at"] is None) == (min(p["forget"] for p in line["curve"]) > one["loss"])
        assert one["within"] == 4


def test_unattacked_has_both_sides_of_the_removal(audited):
    found, _, _ = audited
    intact, removed = lines(found, "unattacked")
    assert (intact["setting"], removed["setting"]) == ("intact", "")
    assert removed["after"]["forget"] > intact["after"]["forget"] + 0.01
    assert intact["after"] == lines(found, "unattacked", "none")[0]["after"]


def test_probes_have_their_controls(audited):
    found, _, _ = audited
    assert {r["states"] for r in lines(found, "probe")} == {"model", "untrained", "shuffled labels"}
    assert {r["layer"] for r in lines(found, "probe")} == {0, 1, 2}


def test_an_audit_that_was_stopped_goes_on_with_what_is_missing(models, tmp_path, monkeypatch):
    whole = audit(models, QUICK, tmp_path / "whole", quiet)
    done = module.Job.do

    def stopping(job, report):
        if (job.attack, job.model) == ("prune", "export"):
            job.folder.with_name("a.partial").mkdir(parents=True)  # what a kill leaves
            raise KeyboardInterrupt
        done(job, report)

    monkeypatch.setattr(module.Job, "do", stopping)
    with pytest.raises(KeyboardInterrupt):
        audit(models, QUICK, tmp_path / "parts", quiet)
    so_far = read_records(tmp_path / "parts" / "audit.jsonl")
    assert {(r["attack"], r["model"]) for r in so_far if "after" in r} >= {("quantize", "none"), ("prune", "sgtm")}
    assert not lines(so_far, "prune", "export")
    monkeypatch.setattr(module.Job, "do", done)
    said = []
    assert audit(models, QUICK, tmp_path / "parts", said.append) == whole
    assert [line for line in said if line.startswith("[")] == ["[1/2] prune, export, a", "[2/2] prune, none, a"]
    assert (tmp_path / "parts" / "audit.jsonl").read_text() == (tmp_path / "whole" / "audit.jsonl").read_text()
    assert not list((tmp_path / "parts").rglob("*.partial"))


def test_finished_attacks_are_checked_and_kept(models, tmp_path):
    only = {"sgtm": models["sgtm"], "none": models["none"]}
    audit(only, QUICK, tmp_path / "out", quiet)
    with pytest.raises(ConfigError, match=r"prune.sgtm.a was made with another sparsities; choose another --out"):
        audit(only, replace(QUICK, sparsities=[0.4]), tmp_path / "out", quiet)
    said = []
    audit(models, replace(QUICK, resamples=9, attacks=["quantize"]), tmp_path / "out", said.append)  # of probes alone
    assert said[0].startswith("[1/2] unattacked, export")
    other = {"sgtm": {"a": models["export"]["a"]}, "none": models["none"]}
    with pytest.raises(ConfigError, match="made with another start"):
        audit(other, replace(QUICK, data=plan_of(only, QUICK, tmp_path).config.data), tmp_path / "out", quiet)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="holds something else"):
        audit(only, QUICK, tmp_path / "full", quiet)


def test_adjacent_text_alone_where_the_data_has_some(models, tmp_path, with_adjacent):
    config = replace(TINY, attacks=["relearn-adjacent"], data=DataConfig(str(with_adjacent)))
    tiny_model().save_pretrained(tmp_path / "plain")
    found = audit({"plain": {"a": tmp_path / "plain"}}, config, tmp_path / "out", quiet)
    (line,) = lines(found, "relearn-adjacent", "plain")
    assert line["forget_tokens"] == 0
    assert line["curve"][-1]["tokens"] > 0
    assert line["recovered"] is None  # nobody said what there is to have
    assert line["levels"] == []


def test_mistakes_come_before_the_first_attack(models, tmp_path, monkeypatch):
    for changes, message in (
        ({"relearn": replace(TINY.relearn, tokens=10**7)}, "use fewer --tokens"),
        ({"domain": "forgot"}, "did you mean 'forget'"),
    ):
        with pytest.raises(ConfigError, match=message):
            audit(models, replace(TINY, **changes), tmp_path / "out", quiet)
    tiny_model(vocab_size=50).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="vocabulary entries"):
        audit({**models, "other": {"a": tmp_path / "other"}}, TINY, tmp_path / "out", quiet)
    with pytest.raises(ConfigError, match=r"none is the model that nothing was removed from, and .* has forget units"):
        audit({**models, "none": models["sgtm"]}, TINY, tmp_path / "out", quiet)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"relearn-lora needs peft; `pip install 'sgtm\[lora\]'`"):
        audit(models, TINY, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": []}, "give at least one"),
        ({"shares": [0.0]}, "more than 0 and at most 1"),
        ({"shots": [1, 2]}, "lacks 0, which the others are compared with"),
        ({"relearn": FinetuneConfig(steps=5)}, "relearn.warmup_steps=5 must be less than relearn.steps=5"),
        ({"sparsities": [1.0]}, "from 0 to less than 1"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        AuditConfig(**changes)


def test_presets_are_settings(request):
    for path in sorted((request.config.rootpath / "configs" / "audit").glob("*.yaml")):
        config = build(AuditConfig, read_yaml(path), path.name)
        assert config.relearn.tokens == 524_288


def test_seeds_share_levels_and_the_reference_is_a_mean(tmp_path):
    """Two seeds of each, from records alone."""

    def write(attack, model, run, records):
        folder = tmp_path / attack / model / run
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        return Done(attack, model, run, folder)

    def losses(forget):
        about = {"category": "forget", "loss": forget}
        return [{**about, "variant": variant, "attack": "none", "setting": ""} for variant in ("intact", "ablated")]

    def curve(*forget):
        seen = [{"step": 10 * i, "tokens": 100 * i, "forget_tokens": 50 * i} for i in range(len(forget))]
        return [{**s, "category": "forget", "loss": x, "learning_rate": 0.1} for s, x in zip(seen, forget, strict=True)]

    done = [write("unattacked", "none", run, losses(x)) for run, x in (("0", 1.8), ("1", 2.2))]
    done += [write("unattacked", "sgtm", run, losses(x)) for run, x in (("0", 5.0), ("1", 7.0))]
    done += [write("relearn", "sgtm", "0", curve(5, 4, 3)), write("relearn", "sgtm", "1", curve(7, 6, 5.5))]
    found = findings_of(done, AuditConfig(domain="forget", shares=[0.5, 1.0]), "sgtm")
    first, second = lines(found, "relearn")
    assert first["recovered"] == pytest.approx((5 - 3) / (5 - fmean([1.8, 2.2])))
    assert second["recovered"] == pytest.approx((7 - 5.5) / (7 - 2))
    assert [one["loss"] for one in first["levels"]] == [one["loss"] for one in second["levels"]] == [4.0, 2.0]
    assert first["levels"][0]["at"] == {"step": 10, "tokens": 100, "forget_tokens": 50}
    assert second["levels"][0] == {"share": 0.5, "loss": 4.0, "at": None, "within": 20}


def test_from_the_command_line(models, tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({"evaluate": {"rows": 12}, "attacks": ["quantize"]}))
    run, none = models["sgtm"]["a"], models["none"]["a"]
    words = [str(tmp_path / "settings.yaml"), str(run), "--out", str(tmp_path / "out"), "--against", f"none={none}"]
    main(["audit", *words])
    shown = capsys.readouterr().out
    assert "The strongest attack tried was quantisation" in shown
    assert f"written to {tmp_path / 'out' / 'audit.html'}" in shown
    page = (tmp_path / "out" / "audit.html").read_text()
    main(["plot", "audit", str(tmp_path / "out")])
    assert (tmp_path / "out" / "audit.html").read_text().count("<section") == page.count("<section") > 5
    assert read_yaml(tmp_path / "out" / "audit.yaml")["models"]["sgtm"] == {run.name: str(run)}
