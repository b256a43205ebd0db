"""The replay of a run's order: what is counted is what the trainer was given, token for token."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sgtm.config import ConfigError, DataConfig, LabelConfig, categories
from sgtm.data.mixture import PreparedData
from sgtm.records import read_records
from sgtm.train.run import train
from sgtm.train.seen import Seen, seen_tokens, steps_to_see
from sgtm.train.tests.test_run import config_of
from sgtm.train.trainer import SGTMTrainer

QUICK = {"train__save_every": 1000, "train__log_every": 1000, "evaluate__rows": 4, "calibrate__steps": 1}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.disable_tqdm", True, raising=False)


@pytest.fixture
def given_to_the_trainer(monkeypatch):
    """(row, (predicted tokens,) mode codes) of every row that training steps got; nothing is computed of them."""
    rows = []

    def spy(trainer, model, inputs, num_items_in_batch=None):
        if trainer.accelerator.sync_gradients:
            trainer.meter.count_tokens(num_items_in_batch)
        for ids, labels, mode in zip(inputs["input_ids"], inputs["labels"], inputs["mode"], strict=True):
            codes = mode[:-1] if mode.ndim else np.full(len(ids) - 1, mode)
            rows.append((tuple(ids.tolist()), codes[(labels[1:] != -100).numpy()]))
        return torch.zeros(())

    monkeypatch.setattr(SGTMTrainer, "training_step", spy)
    return rows


def counted(rows, data, num_modes) -> np.ndarray:
    """(categories, modes) of what the trainer got; a row is known by its tokens, padded as the trainer pads."""
    ids = [tuple(row["input_ids"]) for row in data.train.data]
    category = {
        (*row, *[0] * n): c for row, c in zip(ids, data.train.categories.tolist(), strict=True) for n in range(16)
    }
    counts = np.zeros((len(categories(data.train.domains)), num_modes), np.int64)
    for row, codes in rows:
        np.add.at(counts[category[row]], codes, 1)
    return counts


@pytest.mark.parametrize("mixing", ["example", "step", "step_draw"])
@pytest.mark.parametrize("method", ["sgtm", "filter", "none"])
def test_every_token_is_counted_where_it_was_trained_on(prepared, data, tmp_path, given_to_the_trainer, method, mixing):
    """In several epochs, with rows left out at the end of each, false positives and short rows."""
    labels = {"tpr": 0.7, "fpr": 0.1}
    sizes = {"train__batch_size": 96, "train__micro_batch_size": 48, "train__steps": 2 * len(data.train) // 96 + 1}
    config = config_of(prepared, method=method, labels=labels, train__mixing=mixing, **sizes, **QUICK)
    train(config, tmp_path / "run")
    seen = seen_tokens(config, data.train)
    assert (seen.counts == counted(given_to_the_trainer, data, 3)).all()
    assert seen.total == read_records(tmp_path / "run" / "metrics.jsonl")[-1]["tokens"]
    assert seen.retain == seen.counts[1:, :2].sum()
    assert seen.undiscovered("forget") == seen.counts[0, :2].sum() > 0
    assert seen.labelled("forget") == seen.counts[0, 2]
    assert (seen.labelled("forget") > 0) is (method == "sgtm")


@pytest.mark.parametrize("method", ["token_masking", "unlikelihood", "conditional"])
def test_methods_that_treat_rows_by_their_labels(prepared, data, tmp_path, method):
    """What is labelled is no target, or one that is made unlikely, or one after a control token."""
    sizes = {"train__batch_size": 96, "train__micro_batch_size": 48, "train__steps": 3}
    config = config_of(prepared, method=method, labels={"tpr": 0.7, "fpr": 0.1}, **sizes, **QUICK)
    train(config, tmp_path / "run")
    seen = seen_tokens(config, data.train)
    everything = seen_tokens(replace(config, method="none"), data.train)
    assert seen.total == read_records(tmp_path / "run" / "metrics.jsonl")[-1]["tokens"]
    if method == "conditional":
        assert (seen.counts.sum(1) == everything.counts.sum(1)).all(), "everything is read"
        assert seen.labelled("forget") / everything.undiscovered("forget") == pytest.approx(0.7, abs=0.1)
        assert seen.retain < everything.retain  # false positives
    else:
        assert (seen.labelled("forget") > 0) is (method == "unlikelihood")
        assert 0 < seen.undiscovered("forget") < everything.undiscovered("forget")
        assert seen.retain < everything.retain  # false positives


def test_several_domains():
    counts = np.arange(20).reshape(4, 5)  # biology, cyber, adjacent, retain x default, retain, biology, cyber
    seen = Seen(np.delete(counts, 4, axis=1), ("biology", "cyber"))
    assert (seen.undiscovered("biology"), seen.labelled("biology")) == (0 + 1, 2 + 3)
    assert (seen.undiscovered("cyber"), seen.labelled("cyber")) == (5 + 6, 7 + 8)
    assert seen.retain == 10 + 11 + 15 + 16
    assert seen.total == seen.counts.sum()


@pytest.mark.parametrize("method", ["sgtm", "filter", "none"])
def test_labels_of_tokens(labelled_texts, tmp_path, given_to_the_trainer, method):
    data = PreparedData.load(DataConfig(str(labelled_texts)))
    assert data.train.token_labels is not None
    config = config_of(labelled_texts, method=method, labels={}, train__steps=20, **QUICK)
    train(config, tmp_path / "run")
    seen = seen_tokens(config, data.train)
    assert (seen.counts == counted(given_to_the_trainer, data, 3)).all()
    assert seen.total == read_records(tmp_path / "run" / "metrics.jsonl")[-1]["tokens"]
    assert seen.undiscovered("forget") > 0
    assert (seen.labelled("forget") > 0) is (method == "sgtm")


def test_labels_of_the_data_are_set_aside(labelled_texts, tmp_path, given_to_the_trainer):
    data = PreparedData.load(DataConfig(str(labelled_texts)))
    config = config_of(
        labelled_texts, method="filter", labels={"own": False, "undiscovered": 0.25}, train__steps=20, **QUICK
    )
    train(config, tmp_path / "run")
    seen = seen_tokens(config, data.train)
    assert (seen.counts == counted(given_to_the_trainer, data, 3)).all()
    forget = seen.undiscovered("forget") / seen.total
    assert 0.1 < forget < 0.3, "a quarter of the half that is forget data: 0.2, with few documents"


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mixing", ["example", "step_draw"])
def test_steps_to_see_as_much_retain_data(prepared, data, share, mixing):
    """No other number of steps comes nearer, across the ends of epochs; and the tokens are those of that run."""
    labels = LabelConfig(undiscovered=share)
    config = replace(config_of(prepared, method="filter", train__mixing=mixing), labels=labels)
    end_of_epoch = retain_after(config, data.train, len(data.train) // 8)  # with all forget data
    for wanted in (1, 500, 7000, 21_000, 21_500, end_of_epoch + 1):
        steps, seen = steps_to_see(config, data.train, wanted)
        around = {n: retain_after(config, data.train, n) for n in (steps - 1, steps, steps + 1) if n}
        assert abs(seen.retain - wanted) == min(abs(retain - wanted) for retain in around.values())
        assert seen.retain == around[steps]


def retain_after(config, rows, steps) -> int:
    return seen_tokens(replace(config, train=replace(config.train, steps=steps, warmup_steps=0)), rows).retain


def test_retain_data_that_never_comes_is_refused(prepared, data):
    forget_only = data.train.select(np.flatnonzero(data.train.categories == 0))
    with pytest.raises(ConfigError, match="no retain token"):
        steps_to_see(config_of(prepared, method="none"), forget_only, 100)


def test_lengths_of_a_selection(data):
    chosen = np.random.default_rng(0).permutation(len(data.train))[:50]
    for rows in (data.train, data.train.select(chosen), data.train.select(np.arange(5, 20))):
        assert rows.lengths.tolist() == [len(row["input_ids"]) for row in rows.data]
