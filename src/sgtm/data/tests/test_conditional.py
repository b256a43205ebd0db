"""Control tokens: where they stand, what is learned, and what the removed model is asked."""

import numpy as np
import pytest

from sgtm.config import ConfigError, LabelConfig, labels
from sgtm.data.conditional import BAD, GOOD, Control
from sgtm.data.mixture import collate, step_draw_chances, training_rows
from sgtm.data.tests.test_texts import DOMAINS, load, prepared, rows_of

END, GOOD_ID, BAD_ID = 0, 50, 51
FORGET, RETAIN, UNLABELED = range(3)
CONTROL = Control((BAD_ID, GOOD_ID, -1), END, dropped=0.0)


def conditioned(ids, codes, control=CONTROL, document=0):
    row = control(np.array(ids), np.array(codes), document)
    return row["input_ids"].tolist(), row["labels"].tolist()


def test_every_document_of_a_row_gets_its_token():
    ids, targets = conditioned([5, 6, END, 7, 8, END], [RETAIN] * 6)
    assert ids == [GOOD_ID, 5, 6, END, GOOD_ID, 7, 8, END]
    assert targets == [-100, -100, 6, END, -100, 7, 8, END]


def test_a_label_that_changes_begins_a_segment():
    ids, targets = conditioned([5, 6, 7, 8], [RETAIN, FORGET, FORGET, UNLABELED])
    assert ids == [GOOD_ID, 5, BAD_ID, 6, 7, 8]
    assert targets == [-100, -100, -100, 6, 7, 8]


def test_unlabeled_text_has_none():
    ids, targets = conditioned([5, 6, END, 7], [UNLABELED] * 4)
    assert ids == [5, 6, END, 7]
    assert targets == [-100, 6, END, 7]


def test_the_removed_model_is_asked_for_good_text_whatever_the_label():
    ids, targets = conditioned([5, 6, END, 7], [UNLABELED] * 4, CONTROL.good)
    assert ids == [GOOD_ID, 5, 6, END, GOOD_ID, 7]
    assert targets == [-100, -100, 6, END, -100, 7]


def test_a_share_of_the_segments_goes_without():
    """By seed and document alone. 4000 draws of 0.25 stray by less than 0.035 (5 standard deviations)."""
    control = Control((BAD_ID, GOOD_ID, -1), END, dropped=0.25, seed=3)
    rows = [conditioned([5, END] * 4, [RETAIN] * 8, control, document) for document in range(1000)]
    again = [conditioned([5, END] * 4, [RETAIN] * 8, control, document) for document in range(1000)]
    assert rows == again
    given = [ids.count(GOOD_ID) for ids, _ in rows]
    assert np.mean(given) / 4 == pytest.approx(0.75, abs=0.035)
    assert len(set(given)) == 5 or len(set(given)) == 4
    other = Control((BAD_ID, GOOD_ID, -1), END, dropped=0.25, seed=4)
    assert [ids for ids, _ in rows] != [conditioned([5, END] * 4, [RETAIN] * 8, other, d)[0] for d in range(1000)]


def test_the_tokenizer_learns_two_tokens_and_changes_nothing_else(data):
    grown = data.with_control(seed=0)
    assert len(grown.tokenizer) == len(data.tokenizer) + 2
    assert GOOD not in data.tokenizer.get_vocab()
    good, bad = grown.tokenizer.convert_tokens_to_ids([GOOD, BAD])
    assert {good, bad} == {len(data.tokenizer), len(data.tokenizer) + 1}
    text = "The cat saw 3 dogs."
    assert grown.tokenizer.encode(f"{GOOD}{text}") == [good, *data.tokenizer.encode(text)]
    assert grown.control.tokens == (bad, good, -1)


def test_rows_are_given_the_token_of_their_label(data):
    grown = data.with_control(seed=0)
    bad, good, _ = grown.control.tokens
    noise = LabelConfig(undiscovered=0.3, retain_fraction=0.5)
    rows, counts = training_rows(grown.train, noise, "condition", 0, grown.control)
    assert counts == training_rows(data.train, noise, "modes", 0)[1], "labels do not depend on the method"
    seen = {FORGET: 0, RETAIN: 0, UNLABELED: 0}
    for i in range(len(rows)):
        row, label = rows[i], int(rows.labels[i])
        assert row["mode"] == 0
        present = {int(t) for t in row["input_ids"] if t in (good, bad)}
        assert present <= {FORGET: {bad}, RETAIN: {good}, UNLABELED: set()}[label]
        seen[label] += len(present)
        plain = row["input_ids"][~np.isin(row["input_ids"], (good, bad))]
        assert plain.tolist() == data.train.data[i]["input_ids"]
        told = row["labels"] != -100
        assert row["labels"][told].tolist() == plain.tolist()[1:], "the targets of any other method"
    assert seen[UNLABELED] == 0
    assert min(seen[FORGET], seen[RETAIN]) > 0.9 * min(counts["forget as forget"], counts["retain as retain"])


def test_the_longest_row_with_control_tokens(data):
    grown = data.with_control(seed=0)
    every = Control(grown.control.good.tokens, grown.control.end, dropped=0.0)
    lengths = [
        len(grown.for_removed(split)[i]["input_ids"]) for split in (data.train, data.test) for i in range(len(split))
    ]
    assert every.longest(data.train.data) <= grown.longest == max(lengths) > data.longest == 16


def test_spans_are_segments(tmp_path):
    spans = lambda i, c: [[0, 5, c]] if c in DOMAINS else []  # noqa: E731
    data = load(prepared(tmp_path, rows_of(spans=spans))).with_control(seed=0)
    rows, _ = training_rows(data.train, LabelConfig(), "condition", 0, data.control)
    bad = data.control.tokens[0]
    assert data.control.tokens == (bad, bad, bad - 1, -1), "one token for all domains"
    found = [i for i in range(len(rows)) if bad in rows[i]["input_ids"]]
    assert {rows.categories[i] for i in found} == {0, 1}
    lengths = [len(rows[i]["input_ids"]) for i in range(len(rows))]
    assert max(lengths) <= data.longest
    assert max(lengths) > max(len(r["input_ids"]) for r in rows.data)
    assert "mode" not in data.for_removed(data.test)[0]
    assert bad not in np.concatenate([data.for_removed(data.test)[i]["input_ids"] for i in range(len(data.test))])


def test_padding_of_conditioned_rows(data):
    grown = data.with_control(seed=0)
    rows, _ = training_rows(grown.train, LabelConfig(retain_fraction=0.5), "condition", 0, grown.control)
    examples = [rows[i] for i in range(20)]
    batch = collate(examples)
    assert batch["labels"].shape == batch["input_ids"].shape
    assert int((batch["labels"] != -100).sum()) == sum(len(rows.data[i]["input_ids"]) - 1 for i in range(20))


@pytest.mark.parametrize("use", ["condition", "mask", "unlikelihood"])
def test_labels_drawn_for_whole_steps_are_refused(data, use):
    with pytest.raises(ConfigError, match="needs the labels of rows; use example"):
        step_draw_chances(data.train, LabelConfig(), use)


def test_codes_of_labels():
    assert labels(("forget",)) == ("forget", "retain", "unlabeled"), "the codes that these tests use"
