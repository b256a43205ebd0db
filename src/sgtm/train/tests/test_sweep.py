"""Sweeps: the runs that a file stands for, and what becomes of them when something is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from sgtm.cli import main
from sgtm.config import ConfigError, DataConfig, PrepareConfig
from sgtm.data.mixture import PreparedData, training_rows
from sgtm.data.tokenize import Document, prepare
from sgtm.plot.records import read_runs
from sgtm.records import RECORD, read_records
from sgtm.train import launch
from sgtm.train.estimate import Estimator, check, tokens_per_row
from sgtm.train.launch import Job, Slot, run_points, slots, submit
from sgtm.train.run import METHODS, train
from sgtm.train.states import Attempt, collect, lock_log, statuses
from sgtm.train.sweep import Point, points_of, read_sweep
from sgtm.train.tests import stand_in
from sgtm.train.tests.test_run import TINY, config_of

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere runs outlive a sweep that is killed")


@pytest.fixture
def write_sweep(tmp_path):
    """A sweep file of tiny runs: base.yaml and sweep.yaml in one folder; keyword arguments are the sweep's keys."""

    def write(**keys) -> Path:
        (tmp_path / "base.yaml").write_text(yaml.safe_dump({**TINY, "train": {**TINY["train"], "log_every": 1}}))
        values = {"base": "base.yaml", "out": str(tmp_path / "out"), **keys}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return tmp_path / "sweep.yaml"

    return write


def points(path: Path, **changes) -> list[Point]:
    plan = read_sweep(path)
    return points_of(plan, replace(plan.common, **changes), Path(plan.config.out), plan.config.seeds)


def states(found: list[Point]) -> dict[str, str]:
    return {s.point.name: s.state for s in statuses(found)}


@pytest.fixture
def stand_ins(monkeypatch):
    """Runs are processes that train nothing and are quick."""
    monkeypatch.setattr(launch, "command", stand_in.command)


def _heeds_interrupts():
    """A shell's background job, as tests may be, has its children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def in_background(path: Path) -> subprocess.Popen:
    out = yaml.safe_load(path.read_text())["out"]
    return subprocess.Popen(
        [sys.executable, stand_in.__file__, "--sweep", str(path), out],
        stdout=subprocess.PIPE,
        preexec_fn=_heeds_interrupts,
    )


def wait_until(condition, seconds=60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


def steps_of(point: Point) -> list[int]:
    return [r["step"] for r in read_records(point.folder / "metrics.jsonl")]


# The file


def test_every_combination_is_a_run_one_seed_after_the_other(write_sweep):
    path = write_sweep(
        seeds=[0, 1],
        settings={"labels.retain_fraction": 0.1, "train.steps": 9},
        grid={"labels.undiscovered": [0, 0.1]},
        runs={
            "sgtm": {"method": "sgtm"},
            "slow": {"method": "sgtm", "train.forget_lr_scale": "1e-1", "train.steps": 8},
        },
    )
    found = points(path)
    names = ["sgtm-undiscovered0", "slow-undiscovered0", "sgtm-undiscovered0.1", "slow-undiscovered0.1"]
    assert [p.name for p in found] == [f"{name}-seed{seed}" for seed in (0, 1) for name in names]
    slow = found[3]
    assert slow.settings == {
        "method": "sgtm", "labels.undiscovered": 0.1, "train.forget_lr_scale": 0.1, "train.steps": 8
    }  # fmt: skip
    assert slow.config.labels.retain_fraction == 0.1
    assert (found[0].config.train.steps, found[0].config.train.batch_size, found[-1].config.seed) == (9, 8, 1)


def test_names_stay_when_a_sweep_grows_or_its_keys_change_places(write_sweep):
    grid = {"train.learning_rate": [1e-3], "method": ["sgtm"], "model.config.num_layers": [2]}
    few = {p.name for p in points(write_sweep(grid=grid))}
    assert few == {"sgtm-num_layers2-learning_rate0.001-seed0"}
    more = {
        "model.config.num_layers": [2, 4],
        "method": ["sgtm", "filter"],
        "train.learning_rate": ["1e-3", 1e-5],
    }
    assert few < {p.name for p in points(write_sweep(grid=more, seeds=[1, 0]))}


def test_names_tell_keys_of_one_last_part_and_odd_values_apart(write_sweep):
    grid = {
        "train.learning_rate": [1],
        "calibrate.learning_rate": [0.5],
        "partition.joint": [["norms", "a/*b"]],
        "train.save_every": [None],
    }
    name = "calibrate.learning_rate0.5-jointnorms+a_b-train.learning_rate1-save_everynull"
    assert points(write_sweep(grid=grid))[0].name == f"{name.replace('null', 'none')}-seed0"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"grid": {"labels.undiscoverd": [0]}}, "unknown key 'labels.undiscoverd'; did you mean 'labels.undiscovered'"),
        ({"settings": {"lables": 1}}, "settings: unknown key 'lables'"),
        ({"runs": {"a": {"train": {"steps": 3}}}}, "unknown key 'train'"),
        ({"gird": {}}, "unknown key 'gird'; did you mean 'grid'"),
        ({"grid": {"train.steps": 5}}, r"train.steps=5 is no list of values; write \[5\]"),
        ({"grid": {"train.steps": []}}, "no list of values"),
        ({"grid": {"train.steps": [5, 0]}}, "train.steps=0: train.warmup_steps=2 must be less|train.steps=0 must"),
        ({"grid": {"labels.tpr": [0.5]}}, r"labels.tpr=0.5: labels has \['tpr', 'undiscovered'\]"),
        ({"grid": {"train.steps": ["many"]}}, "steps='many' must be of type int"),
        ({"grid": {"seed": [1]}}, r"use `seeds: \[0, 1, 2\]`"),
        (
            {"grid": {"method": ["sgtm"]}, "settings": {"method": "none"}},
            r"\['method'\] is in the grid and in settings",
        ),
        ({"seeds": [1, 1]}, "each one once"),
        ({"seeds": []}, "at least one seed"),
        ({"runs": {"a": {"method": "sgtm"}, "b": {"method": "sgtm"}}}, "a-seed0 and b-seed0 are the same run"),
        ({"grid": {"train.steps": [5, 5.5]}}, "must be of type int"),
        ({"grid": {"partition.joint": [["a b"], ["a_b"]]}}, "several runs would be named"),
        ({"grid": {"partition.joint": [["norms"] * 50]}}, "too long for a folder's name"),
        ({"runs": {"a": 3}}, "no mapping of keys"),
        ({"base": ""}, "needs `base"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml is no file"),
    ],
)
def test_mistakes_in_the_file_are_named(write_sweep, keys, message):
    path = write_sweep(**keys)
    with pytest.raises(ConfigError, match=message) as refused:
        points(path)
    assert str(refused.value).startswith(str(path))


def test_the_command_line_wins_over_settings_but_not_over_what_is_varied(write_sweep):
    path = write_sweep(settings={"train.steps": 9}, grid={"method": ["sgtm", "none"]})
    common = read_sweep(path).common
    assert {p.config.train.steps for p in points(path, train=replace(common.train, steps=5))} == {5}
    with pytest.raises(ConfigError, match="method=filter was given, but the sweep itself varies method"):
        points(path, method="filter")
    with pytest.raises(ConfigError, match="seed=4 was given"):
        points(path, seed=4)


def test_sweeps_in_the_repository_are_valid(request):
    paths = sorted((request.config.rootpath / "configs" / "sweeps" / "tinystories").glob("*.yaml"))
    both = [
        f"{name}-{preset}" for name in ("grid", "leakage", "mislabeling", "tradeoff") for preset in ("cpu", "paper")
    ]
    assert [path.stem for path in paths] == sorted([*both, "recipes-cpu", "recipes-8M-cpu", "recipes-64M-cpu"])
    counts = {path.stem: len(points(path)) for path in paths}
    assert counts["mislabeling-paper"] == 14 * 3 * 3
    assert counts["mislabeling-cpu"] == 7 * 3 * 3
    assert all(str(points(path)[0].folder.parent) == f"runs/tinystories/{path.stem}" for path in paths)
    gradient_routing = points(paths[0].with_name("mislabeling-cpu.yaml"))[1]
    assert (gradient_routing.config.method, gradient_routing.config.train.forget_lr_scale) == ("gradient_routing", 1.0)


# The runs


def test_what_is_missing_is_run_and_what_is_complete_is_left_alone(write_sweep, stand_ins, capsys):
    found = points(write_sweep(grid={"labels.undiscovered": [0, 0.1]}))
    assert set(states(found).values()) == {"missing"}
    assert run_points(found[:1], [Slot()]) == []
    assert list(states(found).values()) == ["complete", "missing"]
    before = (found[0].folder / "sweep.json").read_text()
    assert run_points(found, slots([])) == []
    assert set(states(found).values()) == {"complete"}
    assert (found[0].folder / "sweep.json").read_text() == before
    assert (found[0].folder / "log.txt").read_text().count("from step") == 1
    assert all(s.step == 6 and s.seconds > 0 for s in statuses(found))
    assert "2 runs, 1 of them complete; 1 at a time" in capsys.readouterr().out


def test_a_run_that_fails_does_not_stop_the_others(write_sweep, stand_ins, capsys):
    found = points(write_sweep(grid={"train.log_every": [stand_in.FAILS, 1]}))
    assert run_points(found, [Slot()]) == found[:1]
    assert list(states(found).values()) == ["failed", "complete"]
    shown = capsys.readouterr().out
    assert f"{found[0].name}: failed with exit code 1" in shown
    assert "    the reason why" in shown
    assert run_points(found, [Slot()]) == found[:1], "it is tried again"
    assert (found[0].folder / "log.txt").read_text().count("the reason why") == 2


def test_runs_at_one_time_share_the_cores(write_sweep, stand_ins, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(launch, "num_cores", lambda: 6)
    found = points(write_sweep(seeds=[0, 1, 2], settings={"train.log_every": 50}))
    places = slots([], jobs=3)
    run_points(found, places)
    assert all("with 2 threads" in (p.folder / "log.txt").read_text() for p in found)
    began = [p.folder.joinpath("config.yaml").stat().st_mtime for p in found]
    ended = [p.folder.joinpath("sweep.json").stat().st_mtime for p in found]
    assert max(began) < min(ended), "all three at once"


def attempt(point: Point) -> dict:
    return json.loads((point.folder / "sweep.json").read_text())


@linux
def test_a_killed_sweep_takes_its_runs_along_and_goes_on_where_it_was(write_sweep, stand_ins):
    path = write_sweep(seeds=[0, 1], settings={"train.steps": 40, "train.log_every": 20})
    first, second = points(path)
    sweep = in_background(path)
    wait_until(lambda: len(steps_of(first)) >= 5)
    assert states([first, second]) == {first.name: "running", second.name: "missing"}
    sweep.kill()
    sweep.communicate()
    wait_until(lambda: states([first])[first.name] != "running")
    done = len(steps_of(first))
    status = statuses([first])[0]
    assert (status.state, status.step) == ("stopped", done)
    assert done < 40
    assert status.seconds > 0, "the time of an attempt that was killed counts"
    assert run_points([first, second], [Slot()]) == []
    assert [steps_of(p) for p in (first, second)] == [list(range(1, 41))] * 2
    assert f"from step {done} " in (first.folder / "log.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_asked_to_stop_stops_its_runs(write_sweep, number):
    path = write_sweep(seeds=[0, 1], settings={"train.steps": 5000, "train.log_every": 20})
    first, second = points(path)
    sweep = in_background(path)
    wait_until(lambda: steps_of(first))
    sweep.send_signal(number)
    shown = sweep.communicate(timeout=60)[0].decode()
    assert "stopping 1 runs; the same command goes on with them" in shown
    assert sweep.returncode != 0
    assert states([first, second]) == {first.name: "stopped", second.name: "missing"}
    assert attempt(first)["code"] is None


def test_two_sweeps_at_once_share_the_runs(write_sweep):
    path = write_sweep(seeds=list(range(4)), settings={"train.steps": 20, "train.log_every": 20})
    sweeps = [in_background(path) for _ in range(2)]
    shown = [sweep.communicate(timeout=60)[0].decode() for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0]
    found = points(path)
    assert set(states(found).values()) == {"complete"}
    assert all((p.folder / "log.txt").read_text().count("from step") == 1 for p in found)
    begun = [text.count("begins") for text in shown]
    assert sum(begun) == 4
    assert min(begun) > 0


def test_a_run_that_another_process_has_is_waited_for(write_sweep, stand_ins):
    point, *_ = points(write_sweep())
    point.folder.mkdir(parents=True)
    log = lock_log(point.folder)
    assert lock_log(point.folder) is None
    assert states([point])[point.name] == "running"
    assert launch.start(point, Slot()) is None
    log.close()
    assert run_points([point], [Slot()]) == []


def test_time_that_passes_between_attempts_does_not_count(write_sweep, stand_ins):
    point, *_ = points(write_sweep())
    point.folder.mkdir(parents=True)
    (point.folder / "log.txt").write_text("its last word\n")
    now = time.time()
    os.utime(point.folder / "log.txt", (now - 900, now - 900))
    Attempt(started=now - 1000, seconds=50.0).write(point.folder)
    assert statuses([point])[0].seconds == pytest.approx(150, abs=1)
    run_points([point], [Slot()])
    assert 150 < statuses([point])[0].seconds < 250


def test_a_folder_with_another_run_is_refused(write_sweep, stand_ins):
    found = points(write_sweep(seeds=[0, 1]))
    run_points(found[:1], [Slot()])
    other = points(write_sweep(seeds=[1, 0], settings={"train.batch_size": 4}))
    with pytest.raises(ConfigError, match=r"another train.batch_size \(train.batch_size: 8 there, 4 here\); choose"):
        launch.run_sweep(other, other[0].folder.parent)
    assert not other[0].folder.exists()
    (found[1].folder).mkdir()
    (found[1].folder / "config.yaml").write_text("seed: 5")  # of a run that was refused: no step was taken
    assert run_points(found, [Slot()]) == []


def test_devices_are_dealt_out(monkeypatch):
    monkeypatch.setattr(launch, "num_cores", lambda: 16)
    assert slots([]) == [Slot((), 1, 16)]
    assert slots([], processes=2, jobs=2) == [Slot((), 2, 4)] * 2
    assert slots(["0", "1", "2"]) == [Slot((d,), 1, 5) for d in "012"]
    assert slots(["0", "1", "2", "3", "4"], processes=2) == [Slot(("0", "1"), 2, 4), Slot(("2", "3"), 2, 4)]
    assert slots(["3"], jobs=2) == [Slot(("3",), 1, 8)] * 2
    assert Slot(("2", "3")).environment()["CUDA_VISIBLE_DEVICES"] == "2,3"
    with pytest.raises(ConfigError, match="processes_per_run=4 is more than the 2 GPUs 0,1"):
        slots(["0", "1"], processes=4)
    with pytest.raises(ConfigError, match="at least 1"):
        slots([], jobs=0)
    assert "--nproc-per-node=2" in launch.command(Path("x"), 2)


def test_results_are_one_table_and_figures_read_it(write_sweep, stand_ins):
    path = write_sweep(grid={"method": ["sgtm", "none"], "partition.joint": [["norms"], []]}, seeds=[0, 3])
    found = points(path)
    out = found[0].folder.parent
    assert collect(found, out) is None
    run_points(found[:3], [Slot()])
    table = pq.read_table(collect(found, out))
    assert table.schema.names[:4] == ["run", "seed", "method", "partition.joint"]
    assert table.num_rows == 3 * 6
    row = table.to_pylist()[0]
    expected = {"run": found[0].name, "seed": 0, "method": "sgtm", "partition.joint": '["norms"]', "step": 1}
    assert expected.items() < row.items()
    assert row["loss"] == 6.0
    runs = read_runs([out])
    assert [run.name for run in runs] == [p.name for p in found[:3]]
    assert runs[0].config["partition"]["joint"] == ["norms"]
    assert runs[0].final("forget", "calibrated") == 11.0
    assert [run.records for run in runs] == [
        [dict.fromkeys(("tokens", "flops", "num_tokens")) | record for record in read_run_records(p)] for p in found[:3]
    ]
    unlearned = out / "rmu-seed0"
    unlearned.mkdir()
    (unlearned / "metrics.jsonl").write_text(json.dumps({k: row[k] for k in RECORD}) + "\n")
    (unlearned / "unlearn.yaml").write_text('{"method": "rmu", "domains": ["forget"], "seed": 0}')
    shutil.copytree(found[2].folder, out / "unfinished")  # not in the results
    assert [run.name for run in read_runs([out])] == [*(p.name for p in found[:3]), "rmu-seed0"]
    assert len(read_runs([out / "results.parquet"])) == 3


def read_run_records(point: Point) -> list[dict]:
    return read_records(point.folder / "metrics.jsonl")


def test_the_command_shows_states_and_what_is_to_do(write_sweep, stand_ins, prepared, capsys):
    path = write_sweep(grid={"method": ["sgtm", "none"]}, settings={"data.path": str(prepared)}, seeds=[0, 1])
    run_points(points(path)[:1], [Slot()])
    main(["sweep", str(path), "--status"])
    shown = capsys.readouterr().out
    assert "4 runs: 1 complete, 3 missing" in shown
    assert "6 of 6" in shown
    assert "results.parquet" in shown
    main(["sweep", str(path), "--dry-run", "--train.steps", "60", "--tokens-per-second", "100"])
    shown = capsys.readouterr().out
    assert "3 runs to do" in shown
    assert "at 100 tokens/s" in shown
    assert "assumed" not in shown
    main(["sweep", str(path), "--seeds", "0", "--train.steps", "6"])
    assert "results: " in capsys.readouterr().out
    assert list(states(points(path)).values()) == ["complete", "complete", "missing", "missing"]
    with pytest.raises(SystemExit, match=r"devices=0: torch finds no GPU|processes_per_run=2 is more"):
        main(["sweep", str(path), "--devices", "0", "--processes-per-run", "2"])


def test_status_tells_of_runs_as_they_were_started(write_sweep, stand_ins, prepared, capsys):
    path = write_sweep(settings={"data.path": str(prepared)})
    run_points(points(path), [Slot()])
    write_sweep(settings={"data.path": str(prepared), "train.steps": 600})
    main(["sweep", str(path), "--status"])
    assert "6 of 6" in capsys.readouterr().out
    (run,) = read_runs([Path(read_sweep(path).config.out)])
    assert run.config["train"]["steps"] == 6
    assert run.final("forget", "calibrated") == 11.0


# What they take


@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "filter", "labels__undiscovered": 0.5}, {"method": "filter", "train__mixing": "step_draw"}],
)
def test_the_estimate_is_what_a_run_then_records(prepared, tmp_path, changes):
    config = config_of(prepared, train__steps=24, train__log_every=24, calibrate__steps=1, **changes)
    cost = Estimator(needs_data=True)(Point(tmp_path / "run", config, {}))
    run = train(config, tmp_path / "run")
    last = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["split"] == "train"][-1]
    assert cost.parameters == run.model.num_parameters()
    assert cost.tokens == pytest.approx(last["tokens"], rel=0.01)  # rows are drawn; few are short
    assert cost.flops == 6 * cost.parameters * cost.tokens


def test_a_filter_takes_the_tokens_of_the_rows_that_it_keeps(tmp_path, sentences):
    def documents():
        for english, spanish in sentences:
            yield Document(english, "retain", english)
            yield Document(english, "forget", spanish * 3)

    how = PrepareConfig(tmp_path / "data", "train:300", 64, test_fraction=0.1)
    folder = prepare(documents, how, {"source": "test"})
    rows = PreparedData.load(DataConfig(str(folder))).train
    for undiscovered in (0.0, 0.3, 1.0):
        config = config_of(folder, method="filter", labels={"undiscovered": undiscovered})
        kept, _ = training_rows(rows, config.labels, "filter", 0)
        expected = float((kept.lengths - 1).mean())
        assert tokens_per_row(config, METHODS["filter"], rows) == pytest.approx(expected, rel=0.02)
    whole = (rows.lengths - 1).mean()
    assert whole == pytest.approx(expected)
    own = replace(rows, labels=rows.categories)  # labels that the data comes with, without errors
    config = config_of(folder, method="filter", labels={})
    english = tokens_per_row(config_of(folder, labels={"undiscovered": 0.0}), METHODS["filter"], rows)
    assert tokens_per_row(config, METHODS["filter"], own) == pytest.approx(english)
    assert whole > 1.2 * tokens_per_row(config_of(folder, labels={"undiscovered": 0.0}), METHODS["filter"], rows)


def test_without_data_it_is_the_most_that_it_can_be(tmp_path):
    config = config_of("no/such/data")
    cost = Estimator(needs_data=False)(Point(tmp_path / "run", config, {}))
    assert cost.tokens == 6 * 8 * 15
    assert "16 tokens and a vocabulary of 50,257 (data.path=no/such/data holds no prepared data" in cost.assumed[0]
    with pytest.raises(ConfigError, match=r"run: data.path=no/such/data"):
        check([Point(tmp_path / "run", config, {})])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "sgmt"}, "did you mean 'sgtm'"),
        ({"partition__heads": 5}, "heads=5 of 4"),
        ({"train__optimizer": "adamv"}, "TrainingArguments refuses"),
        ({"model__config": {**TINY["model"]["config"], "max_position_embeddings": 8}}, "rows of 16 tokens"),
        ({"labels": {"tpr": 0.9, "fpr": 0.9}, "method": "filter"}, "together at most 1"),
        ({"labels": {"undiscovered": 0.2, "depends_on": "loss"}}, "no scores 'loss'"),
        ({"method": "token_masking", "train__mixing": "step_draw"}, "labels whole steps"),
        ({"train__batch_size": 5000}, "batch_size=5000 is more than"),
        ({"evaluate__rows": 5000}, "evaluate.rows=5000 is more than"),
    ],
)
def test_a_run_that_would_be_refused_is_found_before_the_first_starts(prepared, tmp_path, changes, message):
    good, bad = config_of(prepared), config_of(prepared, **changes)
    found = [Point(tmp_path / "good", good, {}), Point(tmp_path / "bad", bad, {})]
    with pytest.raises(ConfigError, match=f"^bad: .*{message}"):
        launch.run_sweep(found, tmp_path)
    assert not list(tmp_path.iterdir())


# Clusters


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Slurm's commands, as far as submitit uses them: sbatch takes jobs as number 77, sacct says that all wait."""
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = {
        "srun": "",
        "sbatch": f"cat $1 > {tmp_path}/submitted.sh; echo Submitted batch job 77",
        "sacct": "echo 'JobID|State|NodeList'; for i in 0 1; do echo \"77_$i|PENDING|none\"; done",
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "submitted.sh"


def test_missing_runs_are_submitted_once(write_sweep, stand_ins, slurm, prepared, capsys):
    pytest.importorskip("submitit")
    path = write_sweep(seeds=[0, 1, 2], settings={"data.path": str(prepared)})
    found = points(path)
    run_points(found[:1], [Slot()])
    capsys.readouterr()
    main(["sweep", str(path), "--slurm", "timeout_min=90", "slurm_partition=fast", "gpus_per_node=2"])
    assert "seed1: slurm:77_0\n" in (shown := capsys.readouterr().out)
    assert "2 runs submitted, 1 complete or under way" in shown
    script = slurm.read_text()
    assert "--partition=fast" in script
    assert "--time=90" in script
    assert "--array=0-1" in script
    assert list(states(found).values()) == ["complete", "queued", "queued"]
    main(["sweep", str(path), "--slurm"])
    assert "0 runs submitted, 3 complete or under way" in capsys.readouterr().out


def test_settings_that_the_cluster_does_not_know_are_one_line(write_sweep, slurm):
    pytest.importorskip("submitit")
    found = points(write_sweep())
    with pytest.raises(ConfigError, match="Unknown argument 'partitoin'") as refused:
        submit(found, found[0].folder.parent, {"slurm_partitoin": "fast"})
    assert "\n" not in str(refused.value)


def test_a_job_runs_its_point_and_is_submitted_again_as_it_is(write_sweep, stand_ins):
    helpers = pytest.importorskip("submitit.helpers")
    good, bad = points(write_sweep(grid={"train.log_every": [1, stand_in.FAILS]}))
    job = Job(good, 1)
    job()
    job()  # a second time it is complete
    assert states([good])[good.name] == "complete"
    again = job.checkpoint()
    assert isinstance(again, helpers.DelayedSubmission)
    assert again.function == job
    with pytest.raises(RuntimeError, match="the reason why"):
        Job(bad, 1)()


# As users run it


@pytest.mark.slow
def test_a_killed_sweep_of_real_runs_ends_as_an_unbroken_one(write_sweep, prepared, tmp_path):
    settings = {"data.path": str(prepared), "train.steps": 60, "train.save_every": 5, "train.log_every": 5}
    path = write_sweep(grid={"method": ["sgtm", "filter"]}, settings=settings)
    command = [sys.executable, "-m", "sgtm.cli", "sweep", str(path)]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True)
    first, second = points(path)
    sweep = subprocess.Popen(command, cwd=tmp_path)
    wait_until(lambda: (first.folder / "checkpoints" / "checkpoint-10").is_dir(), 180)
    sweep.kill()
    sweep.wait()
    wait_until(lambda: states([first])[first.name] == "stopped")
    subprocess.run(command, check=True)
    assert "resuming from" in (first.folder / "log.txt").read_text()
    for point in (first, second):
        whole = tmp_path / "whole" / point.name
        assert (point.folder / "model/model.safetensors").read_bytes() == (
            whole / "model/model.safetensors"
        ).read_bytes()
        ends = [read_records(f / "metrics.jsonl")[-1] for f in (point.folder, whole)]
        assert ends[0] == ends[1]


@pytest.mark.slow
def test_jobs_of_submitit_train(write_sweep, prepared):
    pytest.importorskip("submitit")
    path = write_sweep(seeds=[0, 1], settings={"data.path": str(prepared)})
    command = [sys.executable, "-m", "sgtm.cli", "sweep", str(path), "--slurm", "cluster=local", "timeout_min=5"]
    assert "2 runs submitted" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wait_until(lambda: set(states(points(path)).values()) == {"complete"}, 240)


@pytest.mark.slow
def test_a_run_on_two_processes(write_sweep, prepared):
    path = write_sweep(settings={"data.path": str(prepared)})
    subprocess.run([sys.executable, "-m", "sgtm.cli", "sweep", str(path), "--processes-per-run", "2"], check=True)
    assert set(states(points(path)).values()) == {"complete"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mislabeling", "tradeoff", "grid", "leakage"])
def test_the_scripts_say_what_they_would_take(request, name):
    script = request.config.rootpath / "scripts" / "tinystories" / f"{name}.sh"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shown = subprocess.run(
        [script, "--preset", "cpu", "--dry-run"], check=True, capture_output=True, text=True, env=environment
    )
    assert "FLOPs (6 x parameters x tokens)" in shown.stdout
