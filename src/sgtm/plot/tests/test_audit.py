"""An audit's page and verdicts, from records that nobody measured."""

import json
import re

import pytest
import yaml

from sgtm.config import AuditConfig, ConfigError
from sgtm.interval import mean_interval
from sgtm.plot.audit import audit_page, read_audit, verdict, write_page
from sgtm.plot.audit_records import cost, with_half


def loss_line(model, run, setting, before, after, recovered=None, attack="prune", **more):
    losses = {"before": {"forget": before, "retain": 2.0}, "after": {"forget": after, "retain": 2.1}}
    cost = {"steps": 0, "tokens": 0, "forget_tokens": 0}
    return {
        "attack": attack,
        "model": model,
        "run": run,
        "setting": setting,
        **losses,
        **cost,
        "recovered": recovered,
        **more,
    }


def unattacked(model, run, intact, removed):
    return [
        loss_line(model, run, setting, loss, loss, attack="unattacked")
        for setting, loss in (("intact", intact), ("", removed))
    ]


def tuned(model, run, rate, forget, at, recovered):
    """A curve of 10 steps a point; ``at`` is the step of the half-way level, if any."""
    curve = [
        {"step": 10 * i, "tokens": 80 * i, "forget_tokens": 40 * i, "forget": x, "retain": 2.0}
        for i, x in enumerate(forget)
    ]
    reached = None if at is None else {"step": at, "tokens": 8 * at, "forget_tokens": 4 * at}
    levels = [
        {"share": share, "loss": loss, "at": found, "within": curve[-1]["step"]}
        for share, loss, found in ((0.5, 4.0, reached), (1.0, 2.0, None))
    ]
    more = {"curve": curve, "levels": levels, "steps": 10 * (len(forget) - 1), "forget_tokens": 40 * (len(forget) - 1)}
    return loss_line(model, run, f"learning rate {rate:g}", forget[0], min(forget), recovered, "relearn", **more)


LINES = [
    *unattacked("sgtm", "s0", 3.0, 6.0),
    *unattacked("sgtm", "s1", 3.2, 6.4),
    *unattacked("filter", "f0", 6.0, 6.0),
    *unattacked("none", "n0", 2.0, 2.0),
    loss_line("sgtm", "s0", "10 %", 6.0, 5.6, 0.1),
    loss_line("sgtm", "s0", "20 %", 6.0, 7.0, -0.25),
    loss_line("sgtm", "s1", "10 %", 6.4, 6.3, 0.02),
    loss_line("sgtm", "s1", "20 %", 6.4, 5.4, 0.2),
    loss_line("none", "n0", "10 %", 2.0, 2.1, None),
    tuned("sgtm", "s0", 0.01, [6.0, 5.0, 3.0], 15.0, 0.75),
    tuned("sgtm", "s0", 0.1, [6.0, 5.5, 5.0], None, 0.25),
    tuned("sgtm", "s1", 0.01, [6.4, 5.0, 3.6], 17.0, 0.7),
    tuned("filter", "f0", 0.01, [6.0, 3.0, 2.5], 8.0, 0.9),
    {
        "attack": "probe",
        "model": "sgtm",
        "run": "s0",
        "states": "model",
        "layer": 0,
        "other": "retain",
        "auc": 0.9,
        "low": 0.8,
        "high": 0.95,
    },
    {"attack": "relearn-adjacent", "model": "sgtm", "skipped": "the data has no adjacent text"},
]
MODELS = {"sgtm": {"s0": "runs/s0", "s1": "runs/s1"}, "filter": {"f0": "runs/f0"}, "none": {"n0": "runs/n0"}}


def written(folder, lines=LINES, models=MODELS):
    folder.mkdir(exist_ok=True)
    values = json.loads(
        json.dumps({"models": models, **AuditConfig(domain="forget", shares=[0.5, 1.0]).__dict__}, default=vars)
    )
    (folder / "audit.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (folder / "audit.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def found(tmp_path):
    return read_audit(written(tmp_path / "audit"))


def test_the_attacker_takes_the_best_setting_of_each_run(found):
    assert found.recovered("prune", "sgtm") == [0.1, 0.2]
    assert found.gains("prune", "sgtm") == pytest.approx([0.4, 1.0])
    assert found.gains("prune", "none") == pytest.approx([-0.1])
    assert found.recovered("prune", "none") == []
    assert found.strongest(found.attacks) == "relearn"
    assert found.strongest(["prune"]) == "prune"


def test_half_an_interval_has_no_sign():
    assert with_half([1.0, 2.0], "+.1f") == "+1.5 ± 6.4"


def test_costs_are_those_of_runs_that_arrive(found):
    half, whole = cost(found, "relearn", "sgtm", 0.5), cost(found, "relearn", "sgtm", 1.0)
    assert (half.steps, half.forget_tokens, half.runs) == ([15.0, 17.0], [60.0, 68.0], 2)
    spread = mean_interval([15.0, 17.0])[1]
    assert str(half) == f"16.0 ± {spread:.1f} steps, 64 ± {4 * spread:.0f} forget tokens"
    assert str(whole) == "not within 20 steps"
    assert str(cost(found, "relearn", "none", 0.5)) == "not tried"


def test_verdicts_say_what_came_back_and_what_it_cost(found):
    said = "\n".join(verdict(found))
    spread = mean_interval([75.0, 70.0])[1]
    assert f"The strongest attack tried was fine-tuning of all weights: it brought back 72 ± {spread:.0f} %" in said
    assert "after 20 ± 0 steps and 80 ± 0 forget tokens" in said
    assert "The same attack brought back 90 % of what is missing (3.500 nats, to a loss of 2.500) of filter" in said
    assert "Without training the model, the strongest was pruning: it brought back 15 ±" in said
    assert "50 % of what was removed was back soonest by fine-tuning of all weights: 16.0 ±" in said
    assert "To the same loss, filter: 8.0 steps, 32 forget tokens." in said
    assert "100 % of what was removed did not come back in every run; the nearest" in said
    assert "One run has no interval" in said
    assert "safe" not in said


def test_without_a_reference_shares_are_not_known(tmp_path):
    lines = [{**r, "recovered": None, "levels": []} if "before" in r else r for r in LINES if r["model"] != "none"]
    found = read_audit(written(tmp_path / "a", lines, {k: v for k, v in MODELS.items() if k != "none"}))
    said = "\n".join(verdict(found))
    assert "No model without removal was given (--against none=RUN)" in said
    assert "after 20 ± 0 steps" in said
    assert "%" not in said.replace("95 %", "")
    assert "no losses to be reached" in audit_page(found)
    assert "No model called none was compared with." in audit_page(found)


def test_the_page_says_what_was_not_tried(found):
    page = audit_page(found)
    assert "fine-tuning on adjacent text alone: the data has no adjacent text (sgtm)" in page
    assert "pruning: not finished (filter)" in page
    assert "No model called rmu was compared with." in page
    assert "No model called filter" not in page
    assert "by discrete optimisation" in page
    assert "0.900 (0.800 to 0.950)" in page


def test_the_page_needs_nothing_and_runs_nothing(found, tmp_path):
    path = write_page(found)
    assert path == tmp_path / "audit" / "audit.html"
    page = path.read_text()
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert not re.search(r"<script|https?://|@import|url\((?!#)", page)
    assert "prefers-color-scheme" in page
    assert 'name="viewport"' in page
    assert not re.search(r"\bsafe\b", page)


def test_names_are_text(tmp_path):
    evil = "<img onerror=x>"
    lines = [{**r, "run": evil} if r.get("run") == "s0" else r for r in LINES]
    page = audit_page(read_audit(written(tmp_path / "a", lines, {**MODELS, "sgtm": {evil: evil, "s1": "s1"}})))
    assert evil not in page
    assert "&lt;img onerror=x&gt;" in page


def test_an_audit_that_has_just_begun_has_a_page(tmp_path):
    page = audit_page(read_audit(written(tmp_path / "a", LINES[:2])))
    assert "No model was fine-tuned." in page
    assert "fine-tuning of all weights: not finished (sgtm, filter, none)" in page


def test_folders_without_an_audit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no audit\.yaml; give a folder that `sgtm audit` wrote"):
        read_audit(tmp_path)
    with pytest.raises(ConfigError, match="has no finished attack; run `sgtm audit` again"):
        read_audit(written(tmp_path / "a", []))
