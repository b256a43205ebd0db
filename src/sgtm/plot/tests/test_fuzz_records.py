"""Records that are damaged, foreign or made up: figures are drawn of what is sound, and anything else is refused."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st

from sgtm.config import RunConfig, build, dump
from sgtm.plot.gradient_norms import gradient_norms, read_gradients
from sgtm.plot.leakage import leakage_table, read_leakage
from sgtm.plot.records import chosen_domains, read_run, read_runs, series
from sgtm.plot.relearning import read_relearnings, relearning_table
from sgtm.plot.tests.leakage_records import leakage_record
from sgtm.plot.tests.test_gradient_norms import write_gradients
from sgtm.plot.tests.test_relearning import write_relearning
from sgtm.plot.topics import read_topics
from sgtm.records import read_records
from sgtm.tests.fuzzing import amount, fuzz, near, plain_values, taken_or_refused, with_another

LOSS = {
    "step": 10,
    "tokens": 5,
    "flops": 9,
    "split": "test",
    "category": "forget",
    "variant": "calibrated",
    "loss": 2.5,
}
SETTINGS = {"train": {"steps": 10, "warmup_steps": 1}, "labels": {"tpr": 0.5}}


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    dump(build(RunConfig, SETTINGS, "x"), folder / "config.yaml")
    return folder


def use(folder: Path) -> None:
    """All that figures ask of a run's records."""
    runs = read_runs([folder])
    for found in runs:
        for category in (*chosen_domains(runs, ""), "retain"):
            found.final(category, "calibrated")
            found.curve(category, "intact")
    assert len(series(runs, ["labels.tpr"])) == 1


@amount(150, 5000)
def test_metrics(examples, run):
    whole = lines(LOSS, {**LOSS, "category": "retain"}, {**LOSS, "split": "train", "category": "all"})

    def check(content: bytes) -> None:
        (run / "metrics.jsonl").write_bytes(content)
        taken_or_refused(lambda: use(run))

    fuzz(examples, check, near(whole.encode()))


@amount(150, 5000)
def test_values_of_metrics(examples, run):
    def check(record: object) -> None:
        (run / "metrics.jsonl").write_text(lines(LOSS, record))
        taken_or_refused(lambda: use(run))

    fuzz(examples, check, with_another(LOSS, plain_values()))


@amount(60, 2000)
def test_configurations_and_settings_beside_metrics(examples, run):
    (run / "metrics.jsonl").write_text(lines(LOSS))
    unlearned = {"domains": ["forget"], "method": "rmu", "seed": 0, "steps": 10}

    def check(content: bytes, name: str) -> None:
        (run / "unlearn.yaml").unlink(missing_ok=True)
        (run / name).write_bytes(content)
        taken_or_refused(lambda: use(run))

    for name, values in (("config.yaml", SETTINGS), ("unlearn.yaml", unlearned)):
        fuzz(examples, check, near(yaml.safe_dump(values).encode()), st.just(name))


def test_nothing_is_lost_of_sound_records(run):
    (run / "metrics.jsonl").write_text(lines(*({**LOSS, "step": i} for i in range(50))) + '{"step": 51, "cut sho')
    assert [step for step, _ in read_run(run).curve("forget", "calibrated")] == list(range(50))


@amount(60, 3000)
def test_leakage(examples, tmp_path):
    whole = leakage_record("sgtm", 0.1, 1000)

    def check(record: object) -> None:
        (tmp_path / "leakage.jsonl").write_text(lines(record))
        taken_or_refused(lambda: leakage_table(read_leakage([tmp_path])))

    fuzz(examples, check, with_another(whole, plain_values()))


@amount(60, 3000)
def test_relearning(examples, tmp_path):
    folder = write_relearning(tmp_path / "sgtm-seed0", {1e-3: [6, 5], 1e-2: [6, 2]}, best=1e-2, reached=15.0)
    whole = {name: (folder / name).read_bytes() for name in ("relearn.yaml", "metrics.jsonl", "summary.json")}

    def check(name: str, data: st.DataObject) -> None:
        for other, content in whole.items():
            (folder / other).write_bytes(data.draw(near(content)) if other == name else content)
        taken_or_refused(lambda: relearning_table(read_relearnings([tmp_path])))

    fuzz(examples, check, st.sampled_from(sorted(whole)), st.data())


@amount(8, 200)
def test_gradients(examples, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `plot` has matplotlib")
    folder = write_gradients(tmp_path / "run", steps=(10,), examples=3)
    records = read_records(folder / "gradients.jsonl")

    def check(damaged: object) -> None:
        (folder / "gradients.jsonl").write_text(lines(*damaged))
        taken_or_refused(lambda: gradient_norms([read_gradients(folder)], tmp_path / "x.png"))

    fuzz(examples, check, with_another(records[0], plain_values()).map(lambda first: [first, *records[1:]]))


@amount(60, 3000)
def test_topics(examples, tmp_path):
    counts = {"STEM.Biology": {"tokens": 5, "documents": 2}}
    whole = {"origin": {"forget": "STEM.Biology", "adjacent": ""}, "topics": {"train": counts, "test": counts}}

    def check(values: object) -> None:
        (tmp_path / "manifest.json").write_text(json.dumps(values))
        taken_or_refused(lambda: read_topics(tmp_path))

    fuzz(examples, check, with_another(whole, plain_values()))
