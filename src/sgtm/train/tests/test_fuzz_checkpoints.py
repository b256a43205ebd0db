"""Checkpoints that are cut, flipped or foreign: what is loaded is what was written, or nothing is loaded."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from sgtm.config import ConfigError, load
from sgtm.model.attach import attach, export_module
from sgtm.tests.fuzzing import amount, fuzz, near, plain_values, taken_or_refused, with_another
from sgtm.train.checkpoints import SEAL, checkpoints_of, fault_of, last_sound, seal
from sgtm.train.opening import open_model
from sgtm.train.run import load_run, train
from sgtm.train.tests.conftest import masked, tiny_model

_SHORT = 5000  # bytes: of a configuration


class Payload:
    """What runs when a pickle of it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.proof,)


@pytest.fixture
def copy(finished_run, tmp_path) -> Path:
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def run_id(run: Path) -> str:
    return json.loads((run / "run.json").read_text())["id"]


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Cut short, one bit flipped anywhere, or, where it is short, changed in other ways."""
    bits = st.integers(0, 8 * len(content) - 1)
    flipped = bits.map(lambda b: content[: b // 8] + bytes([content[b // 8] ^ 1 << b % 8]) + content[b // 8 + 1 :])
    cut = st.integers(0, len(content) - 1).map(lambda n: content[:n])
    other = [near(content)] if len(content) < _SHORT else []
    return st.one_of(flipped, cut, *other).filter(lambda found: found != content)


# ---- Sealed checkpoints, from which runs go on


@amount(40, 2000)
def test_a_checkpoint_with_any_file_damaged_is_not_gone_on_with(examples, copy):
    checkpoints = list(checkpoints_of(copy / "checkpoints").values())
    checkpoint, files = checkpoints[-1], sorted(p for p in checkpoints[-1].rglob("*") if p.name != SEAL)
    assert fault_of(checkpoint, run_id(copy)) is None
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= {
        p.name for p in files
    }

    def check(file: Path, data: st.DataObject) -> None:
        whole = file.read_bytes()
        file.write_bytes(data.draw(damaged(whole)))
        assert file.name in (fault_of(checkpoint, run_id(copy)) or "")
        file.write_bytes(whole)

    fuzz(examples, check, st.sampled_from(files), st.data())


@amount(80, 3000)
def test_seals(examples, copy):
    """A seal that is damaged is a fault; whatever it holds, the checkpoint's own run decides."""
    checkpoint = list(checkpoints_of(copy / "checkpoints").values())[-1]
    whole = (checkpoint / SEAL).read_bytes()

    def check(content: bytes) -> None:
        (checkpoint / SEAL).write_bytes(content)
        fault = fault_of(checkpoint, run_id(copy))
        if fault is None:  # blanks, or a file that it no longer mentions
            said = json.loads(content)
            assert said["run"] == run_id(copy)

    values = with_another(json.loads(whole), plain_values()).map(lambda v: json.dumps(v).encode())
    fuzz(examples, check, st.one_of(damaged(whole), values))


def test_seals_from_before_digests_still_hold(copy):
    checkpoint = list(checkpoints_of(copy / "checkpoints").values())[-1]
    found = json.loads((checkpoint / SEAL).read_text())
    del found["sha256"]
    (checkpoint / SEAL).write_text(json.dumps(found))
    assert fault_of(checkpoint, run_id(copy)) is None


# ---- Models


@amount(40, 1500)
def test_a_finished_run_with_any_file_damaged(examples, copy):
    files = [copy / "model" / name for name in ("model.safetensors", "config.json", "generation_config.json", SEAL)]
    intact = load_run(copy)[1].state_dict()

    def check(file: Path, data: st.DataObject) -> None:
        whole = file.read_bytes()
        file.write_bytes(data.draw(damaged(whole)))
        found = taken_or_refused(lambda: load_run(copy))
        if found is not None:  # only of the seal itself is damage of no consequence
            assert file.name == SEAL
            assert all(torch.equal(value, intact[name]) for name, value in found[1].state_dict().items())
        file.write_bytes(whole)

    fuzz(examples, check, st.sampled_from(files), st.data())


@amount(25, 1500)
def test_checkpoints_from_anywhere(examples, tmp_path):
    """Without a seal: whatever is loaded has every weight from the file."""
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8)).save_pretrained(tmp_path)
    files = [tmp_path / name for name in ("model.safetensors", "config.json")]

    def check(file: Path, data: st.DataObject) -> None:
        whole = file.read_bytes()
        file.write_bytes(data.draw(damaged(whole)))
        found = taken_or_refused(lambda: open_model(tmp_path))
        if found is not None:
            stored = load_file(tmp_path / "model.safetensors")
            named = dict(found.model.named_parameters())
            assert all(torch.equal(stored[n].nan_to_num(), p.nan_to_num()) for n, p in named.items() if n in stored)
            assert len(set(stored) & set(named)) == len(named)
        file.write_bytes(whole)

    fuzz(examples, check, st.sampled_from(files), st.data())


def test_weights_of_another_model_are_refused_and_none_is_drawn_at_random(tmp_path):
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    foreign = {f"other.{name}": value for name, value in stored.items()}
    smaller = {name: value for name, value in stored.items() if "mlp" not in name}
    wrong_shape = {name: value[:-1].clone() if value.ndim == 2 else value for name, value in stored.items()}
    for tensors, reason in ((foreign, "lacks"), (smaller, "lacks 4 weights"), (wrong_shape, "lacks|cannot be loaded")):
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ConfigError, match=reason):
            open_model(tmp_path)


@amount(25, 1500)
def test_modules(examples, tmp_path):
    model = tiny_model()
    sgtm = masked(model)
    export_module(model, sgtm.partition, "forget", tmp_path / "forget.safetensors")
    whole = (tmp_path / "forget.safetensors").read_bytes()
    sgtm.partition.ablate()
    sgtm.close()

    def check(content: bytes) -> None:
        (tmp_path / "forget.safetensors").write_bytes(content)
        taken_or_refused(lambda: attach(model, tmp_path / "forget.safetensors"), ValueError)
        sgtm.partition.ablate()

    fuzz(examples, check, damaged(whole))


# ---- No pickle


def test_a_model_that_is_a_pickle_is_not_loaded(tmp_path):
    proof = tmp_path / "proof"
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8)).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for content in (pickle.dumps(Payload(proof)), None):
        if content is None:
            torch.save(state, tmp_path / "pytorch_model.bin")  # a sound one is a pickle too
        else:
            (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ConfigError, match="safetensors"):
            open_model(tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_checkpoint_never_runs_what_a_pickle_says(name, copy, tmp_path):
    """The Trainer's own files are read with weights_only: even a forged seal gets no code to run."""
    checkpoint, *others = checkpoints_of(copy / "checkpoints").values()
    proof = tmp_path / "proof"
    for other in (copy / "model", *others):
        shutil.rmtree(other)
    torch.save(Payload(proof), checkpoint / name)
    assert last_sound(copy / "checkpoints", 24, run_id(copy)) is None  # its content has changed
    seal(checkpoint, run_id(copy))
    config = load(copy / "config.yaml")
    if name == "training_args.bin":  # nobody reads it
        train(config, copy, resume=True)
    else:
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            train(config, copy, resume=True)
    assert not proof.exists()
