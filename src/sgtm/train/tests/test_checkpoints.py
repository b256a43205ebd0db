"""A run survives whatever ends it: kills, broken and foreign checkpoints, a full disk, a loss that is no number."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from sgtm.config import RunError, StoppedError, dump
from sgtm.records import read_records
from sgtm.train.checkpoints import SEAL, checkpoints_of, fault_of, last_sound, seal
from sgtm.train.preflight import needs_of
from sgtm.train.run import data_of, new_model, train
from sgtm.train.tests.test_run import config_of


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.disable_tqdm", True, raising=False)


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def cut_short(checkpoint):
    file = checkpoint / "optimizer.pt"
    os.truncate(file, file.stat().st_size // 2)


def of_another_run(checkpoint):
    seal(checkpoint, "another")


def rename_in_seal(checkpoint, name):
    sealed = json.loads((checkpoint / SEAL).read_text())
    sealed["files"][name] = sealed["files"].pop("config.json")
    (checkpoint / SEAL).write_text(json.dumps(sealed))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_short, "has a optimizer.pt of"),
        (lambda c: (c / "model.safetensors").unlink(), "lacks model.safetensors"),
        (lambda c: (c / SEAL).unlink(), "was not written to its end"),
        (lambda c: (c / SEAL).write_text("{"), "has a sealed.json that cannot be read"),
        (of_another_run, "belongs to another run"),
        (lambda c: rename_in_seal(c, "x" * 300), f"lacks {'x' * 80}"),
    ],
)
def test_a_broken_or_foreign_checkpoint_is_named_and_the_one_before_it_used(prepared, tmp_path, capsys, damage, said):
    config = config_of(prepared, train__save_every=2, train__keep_checkpoints=3)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "model")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "checkpoint-6")
    damage(tmp_path / "broken" / "checkpoints" / "checkpoint-4")
    capsys.readouterr()
    train(config, tmp_path / "broken", resume=True)
    shown = capsys.readouterr().out
    assert f"checkpoint-4 {said}" in shown
    assert f"resuming from {tmp_path / 'broken' / 'checkpoints' / 'checkpoint-2'}" in shown
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_the_last_sound_checkpoint_is_found(tmp_path):
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "file").write_text("x" * step)
        seal(tmp_path / f"checkpoint-{step}", "run")
    assert last_sound(tmp_path, 7, "run") == tmp_path / "checkpoint-6"
    assert last_sound(tmp_path, 6, "run") == tmp_path / "checkpoint-4", "a step must be left to do"
    (tmp_path / "checkpoint-4" / "file").write_text("xx")
    assert last_sound(tmp_path, 6, "run") == tmp_path / "checkpoint-2"
    assert last_sound(tmp_path, 6, "other") is None
    assert list(checkpoints_of(tmp_path)) == [2, 4, 6], "nothing that is sealed is removed"
    assert fault_of(tmp_path / "nothing", "run") == "was not written to its end"


def test_only_the_first_process_removes_what_is_half_written(tmp_path, monkeypatch, capsys):
    """Several that start together would take it away under each other's feet."""
    half = tmp_path / "checkpoint-2"
    half.mkdir()
    monkeypatch.setenv("RANK", "1")
    assert last_sound(tmp_path, 6, "run") is None
    assert half.exists()
    assert not capsys.readouterr().out
    monkeypatch.setenv("RANK", "0")
    assert last_sound(tmp_path, 6, "run") is None
    assert not half.exists()
    assert "checkpoint-2" in capsys.readouterr().out


def test_older_checkpoints_go_once_the_new_one_is_sealed(prepared, tmp_path):
    train(config_of(prepared, train__save_every=1, train__keep_checkpoints=3), tmp_path / "run")
    assert list(checkpoints_of(tmp_path / "run" / "checkpoints")) == [4, 5, 6]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 3
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    sealed = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-6" / SEAL).read_text())
    assert sealed["run"] == about["id"]
    train(config_of(prepared, train__save_every=1, train__keep_checkpoints=None), tmp_path / "all")
    assert list(checkpoints_of(tmp_path / "all" / "checkpoints")) == [1, 2, 3, 4, 5, 6]


def signal_at(step, number, monkeypatch):
    """Send this process a signal in the course of a step."""
    from sgtm.train.trainer import SGTMTrainer

    training_step = SGTMTrainer.training_step

    def and_signal(self, *args):
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), number)
        return training_step(self, *args)

    monkeypatch.setattr(SGTMTrainer, "training_step", and_signal)


def poison_at(step, monkeypatch):
    """Weights that are no number, from the step after this one on."""
    from sgtm.train.trainer import SGTMTrainer

    training_step = SGTMTrainer.training_step

    def poisoned(self, model, inputs, *args):
        if self.state.global_step == step:
            with torch.no_grad():
                next(model.parameters()).mul_(float("nan"))
        return training_step(self, model, inputs, *args)

    monkeypatch.setattr(SGTMTrainer, "training_step", poisoned)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint(prepared, tmp_path, monkeypatch, number):
    config = config_of(prepared, train__save_every=6)
    train(config, tmp_path / "whole")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda n: signal.default_int_handler)  # as in a shell's foreground
        signal_at(3, number, patch)
        with pytest.raises(StoppedError, match=rf"{signal.Signals(number).name} at step 3, .* --resume") as stopped:
            train(config, tmp_path / "run")
    signal.signal(number, before)
    assert stopped.value.number == number
    assert list(checkpoints_of(tmp_path / "run" / "checkpoints")) == [3]
    train(config, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_loss_that_is_no_number_ends_the_run(prepared, tmp_path, monkeypatch):
    config = config_of(prepared, train__save_every=1, train__log_every=2)
    with monkeypatch.context() as patch:
        poison_at(2, patch)
        with pytest.raises(RunError, match="no longer finite at step 3, so no checkpoint was written"):
            train(config, tmp_path / "run")
        with pytest.raises(RunError, match="the loss is nan at step 4"):
            train(config_of(prepared, train__save_every=6, train__log_every=2), tmp_path / "later")
    assert list(checkpoints_of(tmp_path / "run" / "checkpoints")) == [1, 2]
    train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model").is_dir()


def test_a_signal_saves_nothing_of_a_model_that_is_no_number(prepared, tmp_path, monkeypatch):
    config = config_of(prepared, train__save_every=2, train__keep_checkpoints=1, train__log_every=6)
    poison_at(2, monkeypatch)
    signal_at(3, signal.SIGTERM, monkeypatch)
    monkeypatch.setattr(signal, "getsignal", lambda n: signal.default_int_handler)
    with pytest.raises(RunError, match="no longer finite at step 3, so no checkpoint was written"):
        train(config, tmp_path / "run")
    assert list(checkpoints_of(tmp_path / "run" / "checkpoints")) == [2]


def test_a_run_that_dies_after_its_last_checkpoint_is_not_lost(prepared, tmp_path, monkeypatch):
    """Though it keeps no more than one: that of the last step is none to go on from."""
    config = config_of(prepared, train__save_every=2, train__keep_checkpoints=1)
    train(config, tmp_path / "whole")
    assert list(checkpoints_of(tmp_path / "whole" / "checkpoints")) == [6]
    with monkeypatch.context() as patch:
        patch.setattr("sgtm.train.run.save_model", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, tmp_path / "run")
    assert list(checkpoints_of(tmp_path / "run" / "checkpoints")) == [4, 6]
    train(config, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert read_records(tmp_path / "whole" / "metrics.jsonl") == read_records(tmp_path / "run" / "metrics.jsonl")


def test_a_run_goes_on_where_its_checkpoints_fill_the_disk(prepared, tmp_path, monkeypatch):
    config = config_of(prepared, train__save_every=2)
    usage, free = namedtuple("Usage", "total used free"), 10**12
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, free))
    with monkeypatch.context() as patch:
        patch.setattr("sgtm.train.run.Evaluation.__call__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, tmp_path / "run")
    needed = needs_of(config, new_model(config, data_of(config))[0].num_parameters()).disk
    free = needed - 1  # as much as is missing is there: as checkpoints
    train(config, tmp_path / "run", resume=True)


def test_a_full_disk_leaves_what_was_whole(prepared, tmp_path, monkeypatch):
    config = config_of(prepared, train__save_every=2)
    from transformers import Trainer

    save = Trainer._save_optimizer_and_scheduler

    def full(self, folder):
        if self.state.global_step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(RunError, match="the disk is full: free some space, then go on with `sgtm train"):
            train(config, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-2"]
    train(config, tmp_path / "whole")
    train(config, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_other_errors_say_how_to_go_on(prepared, tmp_path):
    config = config_of(prepared, train__arguments={"dataloader_num_workers": 1})
    from sgtm.data.mixture import Rows

    read = Rows._example

    def die(self, *arguments):
        return read(self, *arguments) if torch.utils.data.get_worker_info() is None else os._exit(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "_example", die)
        with pytest.raises(RuntimeError, match="worker") as error:
            train(config, tmp_path / "run")
    assert "--resume" in "".join(error.value.__notes__)


@pytest.mark.slow
def test_twenty_random_kills(prepared, tmp_path):
    """SIGKILL at random moments, saves included (a checkpoint at every step): the end is that of an unbroken run."""
    config = config_of(prepared, train__save_every=1, train__steps=200, evaluate__every=50)
    train(config, tmp_path / "whole")
    folder = tmp_path / "killed"
    dump(config, tmp_path / "config.yaml")
    command = [sys.executable, "-m", "sgtm.cli", "train", str(tmp_path / "config.yaml"), "--run-dir", str(folder)]
    rng, kills = random.Random(0), 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while not (folder / "model").is_dir():
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        with open(tmp_path / "log", "ab") as log:
            process = subprocess.Popen([*command, *resume], stdout=log, stderr=log, env=environment)
            if kills < 20:
                begun = wait_for_a_checkpoint(folder, process)
                time.sleep(rng.random() * 0.4)
                process.kill()
                kills += begun
            code = process.wait()
        assert code in (0, -signal.SIGKILL), (tmp_path / "log").read_text()[-3000:]
    assert kills == 20
    assert same(weights(tmp_path / "whole"), weights(folder))
    tests = [
        [r for r in read_records(f / "metrics.jsonl") if r["split"] == "test"] for f in (tmp_path / "whole", folder)
    ]
    assert tests[0] == tests[1]


def wait_for_a_checkpoint(folder, process) -> bool:
    """Until the process writes one; whether it did before it ended."""
    before = set((folder / "checkpoints").glob("*"))
    while process.poll() is None:
        if set((folder / "checkpoints").glob("*")) - before:
            return True
        time.sleep(0.002)
    return False
