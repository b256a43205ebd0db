"""Streams: every row once an epoch, modes mixed, readers apart, and exactly on from a state."""

import copy
import json
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
import torch
from datasets import Dataset

from sgtm.config import MODES, ConfigError, StreamConfig
from sgtm.data.stream import ModeStream, open_stream

ROWS = 900
FORGET, RETAIN, DEFAULT = (MODES.index(mode) for mode in ("forget", "retain", "default"))


@pytest.fixture
def shards(tmp_path):
    """9 files of 100 numbered rows; the first three are forget alone, the rest three quarters unlabeled."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for file in range(9):
        numbers = range(100 * file, 100 * file + 100)
        modes = [FORGET if file < 3 else RETAIN if n % 4 == 0 else DEFAULT for n in numbers]
        Dataset.from_dict({"input_ids": [[n, n + 1] for n in numbers], "mode": modes}).to_parquet(
            folder / f"{file}.parquet"
        )
    return folder


def stream(shards, **changes):
    from sgtm.data.tinystories import open_columns

    return ModeStream(open_columns(str(shards), "train", streaming=True)[0], **{"buffer": 256, **changes})


def numbers(examples):
    return [int(example["input_ids"][0]) for example in examples]


def test_every_row_comes_once_an_epoch_in_a_new_order(shards):
    found = numbers(islice(stream(shards), 2 * ROWS))
    first, second = found[:ROWS], found[ROWS:]
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second
    assert first != numbers(islice(stream(shards, seed=1), ROWS))


def test_readers_share_the_rows(shards):
    found = [numbers(islice(stream(shards, rank=rank, world=3), ROWS // 3)) for rank in range(3)]
    assert sorted(chain(*found)) == list(range(ROWS))


def test_modes_are_mixed_as_far_as_the_buffer_reaches(shards):
    """With all rows in the buffer any stretch has each mode in its share; with few of them less so."""

    def spread(buffer):
        modes = np.array([e["mode"] for e in islice(stream(shards, buffer=buffer), ROWS)])
        return max(abs((modes[i : i + 60] == FORGET).mean() - 1 / 3) for i in range(0, ROWS, 60))

    assert spread(ROWS) < 0.02
    assert spread(ROWS) < spread(300) < spread(10)


def test_the_buffer_is_bounded(shards):
    rows = stream(shards, buffer=100)
    for _ in islice(rows, 300):
        state = rows.state_dict()
        assert sum(map(len, state["held"].values())) < 100
        assert len(state["waiting"]) <= 64


@pytest.mark.parametrize("place", [0, 1, 63, 500, 899, 900, 1700])
def test_a_state_goes_on_with_the_next_row(shards, place, tmp_path):
    unbroken = stream(shards)
    rows = iter(unbroken)
    list(islice(rows, place))
    torch.save(unbroken.state_dict(), tmp_path / "state.pt")
    expected = numbers(islice(rows, 300))
    again = stream(shards)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert numbers(islice(again, 300)) == expected


def test_a_state_is_of_the_moment_it_was_asked_for(shards):
    rows = stream(shards)
    found = iter(rows)
    list(islice(found, 100))
    state = rows.state_dict()
    before = copy.deepcopy(state)
    list(islice(found, 500))
    assert numbers(state["waiting"]) == numbers(before["waiting"])
    assert {k: numbers(v) for k, v in state["held"].items()} == {k: numbers(v) for k, v in before["held"].items()}
    assert state["inner"] == before["inner"]


def test_more_readers_than_shards_are_refused(shards):
    with pytest.raises(ConfigError, match="9 shards for 10 readers"):
        next(iter(stream(shards, rank=0, world=10)))


def test_rows_without_modes_are_refused(tmp_path):
    Dataset.from_dict({"input_ids": [[1, 2]]}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match=r"no column \['mode'\]"):
        next(iter(stream(tmp_path / "rows.parquet")))


# ---- Rows with labels


@pytest.fixture
def opened(data, tmp_path):
    """``opened(columns, use)``: the stream of a file with these columns."""

    def make(columns, use="modes", context=16, domains=("forget",), **settings):
        Dataset.from_dict(columns).to_parquet(tmp_path / "rows.parquet")
        config = StreamConfig(source=str(tmp_path / "rows.parquet"), **settings)
        return open_stream(config, domains, use, data.tokenizer, context, seed=0)

    return make


TEXTS = ["The cat saw a dog and ran and ran and ran and ran.", "Él gato vio.", "", "The bird saw a tree."]


def test_texts_are_tokenised_and_cut(opened, data):
    rows = list(islice(opened({"text": TEXTS, "label": [None, "forget", "retain", "retain"]}, context=8), 12))
    by_mode = {mode: [r["input_ids"].tolist() for r in rows if r["mode"] == mode] for mode in (FORGET, RETAIN, DEFAULT)}
    end = data.tokenizer.eos_token_id
    for text, mode in ((TEXTS[1], FORGET), (TEXTS[3], RETAIN), (TEXTS[0], DEFAULT)):
        ids = [*data.tokenizer(text)["input_ids"], end]
        cut = {tuple(ids[i : i + 8]) for i in range(0, len(ids) - 1, 7)}
        assert {tuple(row) for row in by_mode[mode]} == cut
        assert all(len(row) <= 8 for row in cut)


def test_spans_of_texts_give_each_position_the_mode_of_what_it_predicts(opened, data):
    text = TEXTS[0]
    span = [text.index("saw"), text.index("and"), "forget"]
    row = next(iter(opened({"text": [text], "label": ["retain"], "spans": [json.dumps([span])]}, context=64)))
    tokens = data.tokenizer(text, return_offsets_mapping=True)
    inside = [first < span[1] and last > span[0] for first, last in tokens["offset_mapping"]] + [False]
    expected = [FORGET if i else RETAIN for i in [*inside[1:], inside[-1]]]
    assert row["mode"].tolist() == expected
    assert len(set(expected)) == 2


def test_tokens_with_spans(opened):
    columns = {"input_ids": [[5, 6, 7, 8, 9]], "spans": [json.dumps([[2, 4, "forget"]])]}
    row = next(iter(opened(columns)))
    assert row["input_ids"].tolist() == [5, 6, 7, 8, 9]
    assert row["mode"].tolist() == [DEFAULT, FORGET, FORGET, DEFAULT, DEFAULT]


def test_other_names_of_columns(opened):
    row = next(iter(opened({"ids": [[5, 6]], "kind": ["forget"]}, tokens="ids", label="kind")))
    assert (row["input_ids"].tolist(), row["mode"]) == ([5, 6], FORGET)


@pytest.mark.parametrize(("use", "expected"), [("everything", {1: 1, 3: 1}), ("filter", {3: 1})])
def test_other_methods(opened, use, expected):
    rows = list(islice(opened({"input_ids": [[1, 2], [3, 4]], "label": ["forget", None]}, use), sum(expected.values())))
    assert Counter(int(r["input_ids"][0]) for r in rows) == expected
    assert all(r["mode"] == DEFAULT for r in rows)


@pytest.mark.parametrize(
    ("columns", "use", "message"),
    [
        ({"words": ["a"]}, "modes", "no column 'input_ids'"),
        ({"text": ["a"]}, "modes", "no column 'label'"),
        ({"text": ["a b"], "label": ["bio"]}, "modes", "has the label 'bio'"),
        ({"input_ids": [[5, 70_000]], "label": ["forget"]}, "modes", "the token id 70000, but the tokenizer of"),
        ({"input_ids": [[-100, 5]], "label": ["forget"]}, "modes", "the token id -100"),
        ({"text": ["a b"], "label": ["forget"]}, "mask", "needs rows that are prepared"),
        ({"text": ["a b"], "label": ["forget"]}, "filter", "no row to train on"),
        ({"text": ["a b"], "spans": ['[[0, 1, "forget"]]']}, "filter", "drops documents"),
        ({"text": ["a b"], "spans": ['[[0, 9, "forget"]]']}, "modes", "outside the text"),
    ],
)
def test_what_makes_no_sense_is_refused(opened, columns, use, message):
    with pytest.raises(ConfigError, match=message):
        next(iter(opened(columns, use)))
