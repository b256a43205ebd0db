"""Training on streams: every mode, exact resume, with and without workers, and by `sgtm train`."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset

from sgtm.config import MODES, ConfigError, DataConfig, LabelConfig
from sgtm.data.mixture import PreparedData, training_rows
from sgtm.records import read_records
from sgtm.train.references import _read
from sgtm.train.run import labelled_rows, method_of, train
from sgtm.train.stream_loader import OnDevice
from sgtm.train.tests.conftest import tiny_model
from sgtm.train.tests.test_run import config_of, finished


@pytest.fixture(scope="module")
def shards(data, tmp_path_factory):
    """The prepared training rows as 6 parquet files, with labels and modes."""
    rows = training_rows(data.train, LabelConfig(undiscovered=0.2), "modes", 0)[0]
    folder = tmp_path_factory.mktemp("shards")
    labels = {"forget": "forget", "retain": "retain", "default": None}
    for i in range(6):
        some = np.arange(i, len(rows), 6)
        modes = [int(rows.modes[n]) for n in some]
        columns = {
            "input_ids": [rows[int(n)]["input_ids"].tolist() for n in some],
            "mode": modes,
            "label": [labels[MODES[mode]] for mode in modes],
        }
        Dataset.from_dict(columns).to_parquet(folder / f"{i}.parquet")
    return folder


@pytest.fixture
def streaming(shards):
    return lambda: load_dataset("parquet", data_files=f"{shards}/*.parquet", split="train", streaming=True)


def assert_same_weights(a, b):
    for (name, one), (_, other) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("resume_at", [3, 40])
def test_a_resumed_run_equals_an_unbroken_one(make_trainer, streaming, tmp_path, workers, resume_at):
    """Law 12; step 40 lies behind a snapshot of the workers, which is taken every 32 batches."""
    if workers and importlib.util.find_spec("torchdata") is None:
        pytest.skip("loader workers on a stream need torchdata: pip install torchdata")
    settings = {
        "max_steps": resume_at + 3,
        "save_strategy": "steps",
        "save_steps": resume_at,
        "dataloader_num_workers": workers,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "trainer_update": "strict",
    }
    unbroken = make_trainer(folder=tmp_path / "a", train_dataset=streaming(), **settings)
    unbroken.train()
    again = make_trainer(folder=tmp_path / "b", model=tiny_model(seed=9), train_dataset=streaming(), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{resume_at}"))
    assert_same_weights(unbroken.model, again.model)
    assert again.state.num_input_tokens_seen == unbroken.state.num_input_tokens_seen > 0


def test_all_modes_are_trained(make_trainer, streaming):
    trainer = make_trainer(train_dataset=streaming(), max_steps=4)
    seen = []
    collator = trainer.stream.loader.collate_fn
    trainer.stream.loader.collate_fn = lambda rows: seen.append([r["mode"] for r in rows]) or collator(rows)
    trainer.train()
    assert all(set(modes) == {0, 1, 2} for modes in seen), "each batch of 8 has its share of each mode"


def test_more_processes_than_wrote_a_checkpoint_are_refused(make_trainer, streaming, tmp_path):
    settings = {"train_dataset": streaming(), "max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    make_trainer(folder=tmp_path / "a", **settings).train()
    file = tmp_path / "a" / "checkpoint-2" / "stream-0-of-1.pt"
    file.rename(file.with_name("stream-0-of-2.pt"))
    with pytest.raises(ConfigError, match=r"has no stream-0-of-1\.pt; go on with as many processes"):
        make_trainer(folder=tmp_path / "b", **settings).train(resume_from_checkpoint=str(file.parent))


@pytest.fixture
def config(prepared, shards, monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.disable_tqdm", True, raising=False)

    def make(**changes):
        return config_of(prepared, stream={"source": str(shards)}, labels={}, train__save_every=3, **changes)

    return make


def test_sgtm_train_resumed_equals_unbroken(config, tmp_path):
    train(config(), tmp_path / "run")
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run", again)
    shutil.rmtree(again / "model")
    shutil.rmtree(again / "checkpoints" / "checkpoint-6")
    train(config(), again, resume=True)
    (weights, records), (weights_again, records_again) = finished(tmp_path / "run"), finished(again)
    assert records == records_again
    assert all(torch.equal(weights[name], w) for name, w in weights_again.items())
    sealed = json.loads((again / "checkpoints" / "checkpoint-6" / "sealed.json").read_text())
    assert "stream-0-of-1.pt" in sealed["files"], "a checkpoint without it is no whole one"


@pytest.mark.parametrize("method", ["none", "filter"])
def test_other_methods_train_on_streams(config, tmp_path, method):
    run = train(config(method=method), tmp_path / "run")
    assert run.sgtm is None
    assert {r["split"] for r in read_records(tmp_path / "run" / "metrics.jsonl")} == {"train", "test"}


def test_the_size_of_prepared_rows_is_no_streams(prepared, shards):
    rows = PreparedData.load(DataConfig(str(prepared))).train
    config = config_of(prepared, stream={"source": str(shards)}, labels={}, train__batch_size=2 * len(rows))
    assert labelled_rows(config, method_of(config), rows) == (rows, None, {})


def test_leakage_of_a_stream_is_refused_by_name(config, tmp_path):
    train(config(), tmp_path / "run")
    with pytest.raises(ConfigError, match="run was trained on a stream, whose tokens are not known"):
        _read(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels__undiscovered": 0.1}, "a stream has labels of its own"),
        ({"train__mixing": "step"}, "needs to know all rows"),
        ({"method": "token_masking"}, "needs rows that are prepared"),
    ],
)
def test_what_makes_no_sense_is_refused(config, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batches_come_on_their_device_and_modes_stay_the_hosts():
    """Trainer moves what is not there already, and waits for it."""
    batches = [{"input_ids": torch.ones(2, 3), "mode": np.array([0, 1])}]
    loader = OnDevice(batches, torch.device("meta"), pinned=False)
    (batch,) = loader
    assert batch["input_ids"].device.type == "meta"
    assert batch["mode"] is batches[0]["mode"]
    assert loader.index(batches[0]) == 0, "what else a loader has is there too"
