"""What would fail at a run's end fails before its first step, and trying it changes nothing."""

import shutil
from collections import namedtuple

import pytest
import torch

from sgtm.config import ConfigError
from sgtm.train import preflight
from sgtm.train.preflight import Needs, check_memory, needs_of, try_everything
from sgtm.train.run import Evaluation, data_of, labelled_rows, method_of, new_model, train
from sgtm.train.tests.test_run import config_of

Usage = namedtuple("Usage", ("total", "used", "free"))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.disable_tqdm", True, raising=False)


@pytest.mark.parametrize("method", ["sgtm", "gradient_routing", "filter"])
def test_nothing_is_changed(prepared, method):
    config = config_of(prepared, method=method)
    data = data_of(config)
    rows, _, _ = labelled_rows(config, method_of(config), data.train)
    model, sgtm = new_model(config, data)
    before, state = {n: p.clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    passes = []
    model.register_forward_hook(lambda *_: passes.append(model.training))
    try_everything(config, model, sgtm, rows, Evaluation(config, model, sgtm, data).test)
    assert sum(passes) == (1 if sgtm is None else 3), "a training pass for each mode"
    assert passes.count(False) > 2, "and an evaluation"
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_full_disk_is_seen_before_the_first_step(prepared, tmp_path, monkeypatch):
    config = config_of(prepared)
    needs = needs_of(config, new_model(config, data_of(config))[0].num_parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, needs.disk - 1))
    with pytest.raises(ConfigError, match=r"has room for .* MB and the run writes up to .* free some space"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing is left of it"


def test_what_is_written_is_what_was_foreseen(prepared, tmp_path):
    """Weights and two moments a checkpoint; a few kilobytes are settings and the tokenizer."""
    config = config_of(prepared, train__save_every=1, train__keep_checkpoints=3)
    run = train(config, tmp_path / "run")
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    large = sum(p.stat().st_size for p in files if p.suffix in (".safetensors", ".pt"))
    weights = 4 * run.model.num_parameters()
    foreseen = needs_of(config, run.model.num_parameters()).disk - 3 * weights  # of the one that has gone
    assert large == pytest.approx(foreseen, rel=0.3)


def test_a_model_that_is_too_large_for_the_gpu_is_refused(monkeypatch):
    device = namedtuple("Device", "total_memory")(2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    check_memory(Needs(0, 2**29), torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"take 2.0 GB and the GPU has 1.0 GB"):
        check_memory(Needs(0, 2**31), torch.device("cuda"))


def test_errors_say_what_was_tried(prepared, tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("no such logits")

    monkeypatch.setattr(preflight, "fit_bias", fail)
    with pytest.raises(ValueError, match="no such logits") as error:
        train(config_of(prepared), tmp_path / "run")
    assert error.value.__notes__ == ["This was an evaluation on a few rows, tried before the first step."]
    assert not (tmp_path / "run").exists()
