"""Labels of rows and tokens to masked and unlikely targets."""

import numpy as np
import pytest

from sgtm.config import LabelConfig
from sgtm.data.mixture import collate, training_rows
from sgtm.data.tests.test_texts import DOMAINS, load, prepared, rows_of

NOISE = LabelConfig(undiscovered=0.3, retain_fraction=0.25)


def test_labelled_rows_are_read_and_not_learned(data):
    masked, counts = training_rows(data.train, NOISE, "mask", 0)
    unlikely, _ = training_rows(data.train, NOISE, "unlikelihood", 0)
    assert len(masked) == len(unlikely) == len(data.train), "none is dropped"
    labelled = 0
    for i in range(len(masked)):
        ids, is_labelled = data.train.data[i]["input_ids"], masked.labels[i] == 0
        labelled += is_labelled
        assert masked[i]["input_ids"].tolist() == unlikely[i]["input_ids"].tolist() == ids
        assert masked[i]["labels"].tolist() == ([-100] * len(ids) if is_labelled else ids)
        assert unlikely[i]["unlikely"].tolist() == [is_labelled] * len(ids)
        assert masked[i]["mode"] == unlikely[i]["mode"] == 0
    assert labelled == counts["forget as forget"] > 0
    assert counts["forget as unlabeled"] > 0


def test_labelled_tokens(tmp_path):
    spans = lambda i, c: [[0, 5, c]] if c in DOMAINS else []  # noqa: E731
    data = load(prepared(tmp_path, rows_of(spans=spans)))
    masked, filtered, unlikely = (
        training_rows(data.train, LabelConfig(), use, 0)[0] for use in ("mask", "filter", "unlikelihood")
    )
    mixed = 0
    for i in range(len(masked)):
        dropped = masked[i]["labels"] == -100
        assert (masked[i]["labels"] == filtered[i]["labels"]).all(), "a filter of tokens is the same"
        assert (unlikely[i]["unlikely"] == dropped).all()
        mixed += 0 < dropped.sum() < len(dropped)
    assert mixed > 10


def test_padding_is_not_unlikely():
    short, long = ({"input_ids": np.arange(n), "unlikely": np.ones(n, bool), "mode": 0} for n in (2, 4))
    assert collate([short, long])["unlikely"].tolist() == [[True, True, False, False], [True] * 4]


@pytest.mark.parametrize("use", ["mask", "unlikelihood"])
def test_without_labels_nothing_changes(data, use):
    rows, _ = training_rows(data.train, LabelConfig(undiscovered=1.0), use, 0)
    row = rows[0]
    assert (row.get("labels", row["input_ids"]) == row["input_ids"]).all()
    assert not np.any(row.get("unlikely", False))
