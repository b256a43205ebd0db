"""Prepared data to training rows."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sgtm.config import CATEGORIES, MODES, ConfigError, DataConfig, LabelConfig
from sgtm.data.mixture import PreparedData, Rows, by_topic, collate, count_modes, step_draw_chances, training_rows
from sgtm.data.tokenizer import load_tokenizer, tokenizer_hash

LABELS = LabelConfig(undiscovered=0.2, retain_fraction=0.25)


def test_each_use_of_the_labels(data):
    everything, counts = training_rows(data.train, LABELS, "everything", 0)
    modes, _ = training_rows(data.train, LABELS, "modes", 0)
    filtered, _ = training_rows(data.train, LABELS, "filter", 0)
    assert sum(counts.values()) == len(everything) == len(modes) == len(data.train)
    assert count_modes(everything) == {"default": len(everything), "retain": 0, "forget": 0}
    assert count_modes(modes)["forget"] == counts["forget as forget"]
    assert count_modes(modes)["retain"] == counts["retain as retain"]
    assert len(filtered) == len(data.train) - counts["forget as forget"]
    undiscovered = filtered.of("forget")
    assert len(undiscovered) == counts["forget as unlabeled"] > 0
    assert undiscovered[0]["mode"] == MODES.index("default")


@pytest.fixture
def with_topics(tmp_path):
    """Rows of three categories with topics."""
    kinds = {"forget": "STEM.Biology", "adjacent": "STEM.Chemistry", "retain": "Culture.Media.Films"}
    columns = {
        "input_ids": [[1, 2, 3]] * 12,
        "category": [*kinds] * 4,
        "document": list(range(12)),
        "topic": [*kinds.values()] * 3 + ["STEM.Biology", "STEM.Space", "STEM.Space"],
    }
    split = Dataset.from_dict(columns)
    DatasetDict(train=split, test=split).save_to_disk(tmp_path / "data")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<|endoftext|>")
    tokenizer.add_tokens(["a", "b", "c"])
    tokenizer.save_pretrained(tmp_path / "data" / "tokenizer")
    about = {"tokenizer_sha256": tokenizer_hash(tokenizer), "settings": {"pack": False}}
    about["counts"] = {"train": {}, "test": {}}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(about))
    return PreparedData.load(DataConfig(str(tmp_path / "data")))


def test_the_strict_filter_drops_what_is_adjacent_too(with_topics):
    labels = LabelConfig(undiscovered=0)
    kept = {use: training_rows(with_topics.train, labels, use, 0)[0] for use in ("filter", "strict_filter")}
    assert kept["filter"].present == ["adjacent", "retain"]
    assert kept["strict_filter"].present == ["retain"]
    assert len(kept["strict_filter"]) == 4
    dropped = step_draw_chances(with_topics.train, labels, "strict_filter")[:, -1]
    assert dropped.tolist() == [1, 1, 0]


def test_rows_by_topic(with_topics, data):
    test = {category: with_topics.test.of(category) for category in with_topics.test.present}
    names = {level: {name: len(rows) for name, rows in by_topic(test, level).items()} for level in (1, 2)}
    assert names[1] == {"forget/STEM": 4, "adjacent/STEM": 4, "retain/Culture": 3, "retain/STEM": 1}
    assert names[2]["retain/Culture.Media"] == 3
    with pytest.raises(ConfigError, match="the data has no topics"):
        by_topic({"retain": data.test.of("retain")}, 1)


def test_a_forget_row_is_trained_in_the_mode_of_its_label(data):
    rows, _ = training_rows(data.train, LabelConfig(undiscovered=0.0), "modes", 0)
    for i in range(0, len(rows), 7):
        is_forget = rows.categories[i] == CATEGORIES.index("forget")
        assert (rows[i]["mode"] == MODES.index("forget")) is bool(is_forget)
        assert rows[i]["input_ids"].tolist() == data.train.data[i]["input_ids"]


def test_rows_of_a_category_are_drawn_without_replacement(data):
    some = data.test.of("retain", 3, seed=1)
    assert len(some) == 3
    assert len(set(some.documents.tolist())) == 3 or len({tuple(r["input_ids"]) for r in some.data}) == 3
    assert [r["input_ids"] for r in some.data] == [r["input_ids"] for r in data.test.of("retain", 3, seed=1).data]
    assert len(data.test.of("retain", 10**9)) == len(data.test.of("retain"))


def test_padding_is_told_apart_by_place_not_by_token():
    batch = collate([{"input_ids": np.array([5, 0]), "mode": 1}, {"input_ids": np.array([7, 8, 0, 0]), "mode": 0}])
    assert batch["labels"].tolist() == [[5, 0, -100, -100], [7, 8, 0, 0]]
    assert batch["input_ids"].shape == (2, 4)
    assert batch["mode"].tolist() == [1, 0]
    assert batch["input_ids"].dtype == torch.long


def test_chances_of_a_step(data):
    chances = step_draw_chances(data.train, LabelConfig(tpr=0.8, fpr=0.1, retain_fraction=0.25), "modes")
    assert chances.sum(1) == pytest.approx(1)
    by_mode = {mode: chances[:, MODES.index(mode)] for mode in MODES}
    forget, retain = CATEGORIES.index("forget"), CATEGORIES.index("retain")
    assert by_mode["forget"][forget] == pytest.approx(0.8)
    assert by_mode["forget"][retain] == pytest.approx(0.1)
    assert by_mode["retain"][[forget, retain]].tolist() == [0, 0.25]
    dropped = step_draw_chances(data.train, LABELS, "filter")[:, -1]
    assert dropped[[forget, retain]] == pytest.approx([0.8, 0])


@pytest.fixture
def paper_data(tmp_path, prepared):
    """As the paper's code prepared them: padded with end-of-text, an attention mask, one folder a language."""
    tokenizer = load_tokenizer(str(prepared / "tokenizer"))
    eos = tokenizer.eos_token_id
    rows = {"input_ids": [[9, 8, eos, eos], [7, 6, 5, 4]], "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]]}
    for language in ("en", "es"):
        split = Dataset.from_dict(rows)
        DatasetDict(train=split, test=split).save_to_disk(tmp_path / language)
    parts = {"retain": str(tmp_path / "en"), "forget": str(tmp_path / "es")}
    return DataConfig(parts=parts, tokenizer=str(prepared / "tokenizer"))


def test_data_prepared_by_the_papers_code_loads(paper_data):
    data = PreparedData.load(paper_data)
    assert data.train.present == ["forget", "retain"]
    eos = data.tokenizer.eos_token_id
    assert [data.train[i]["input_ids"].tolist() for i in range(4)] == [[9, 8, eos], [7, 6, 5, 4]] * 2


def test_longest_row_and_largest_id(data):
    rows = data.train.data["input_ids"]
    assert data.train.longest == max(map(len, rows)) == 16
    assert data.train.largest_id == max(map(max, rows))


def test_bad_data_is_refused(tmp_path, prepared, paper_data):
    with pytest.raises(ConfigError, match="is not set"):
        PreparedData.load(DataConfig())
    with pytest.raises(ConfigError, match="holds no prepared data"):
        PreparedData.load(DataConfig(str(tmp_path / "none")))
    with pytest.raises(ConfigError, match=r"no column \['category', 'document'\]"):
        PreparedData.load(DataConfig(paper_data.parts["forget"]))
    with pytest.raises(ConfigError, match="its keys are categories"):
        PreparedData.load(DataConfig(parts={"spanish": paper_data.parts["forget"]}))
    Dataset.from_dict({"input_ids": [[1]]}).save_to_disk(tmp_path / "one")
    with pytest.raises(ConfigError, match="no split 'train'"):
        PreparedData.load(DataConfig(str(tmp_path / "one")))
    empty = Dataset.from_dict({"input_ids": [], "category": [], "document": []})
    DatasetDict(train=empty, test=empty).save_to_disk(tmp_path / "empty")
    with pytest.raises(ConfigError, match="is empty"):
        PreparedData.load(DataConfig(str(tmp_path / "empty")))


def test_a_tokenizer_that_does_not_belong_to_the_data_is_refused(tmp_path, prepared, paper_data):
    changed = tmp_path / "changed"
    shutil.copytree(prepared, changed)
    manifest = json.loads((changed / "manifest.json").read_text())
    (changed / "manifest.json").write_text(json.dumps({**manifest, "tokenizer_sha256": "0"}))
    with pytest.raises(ConfigError, match="not the tokenizer that the data was prepared with"):
        PreparedData.load(DataConfig(str(changed)))
    (changed / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"has no manifest.json"):
        PreparedData.load(DataConfig(str(changed)))
    big = Dataset.from_dict({"input_ids": [[100_000]]})
    DatasetDict(train=big, test=big).save_to_disk(tmp_path / "big")
    with pytest.raises(ConfigError, match="do not belong"):
        PreparedData.load(DataConfig(parts={"forget": str(tmp_path / "big")}, tokenizer=paper_data.tokenizer))


@pytest.mark.parametrize("lengths", [(5, 5, 5, 5), (5, 2, 9, 1)], ids=["packed", "ragged"])
def test_a_batch_of_rows_is_its_rows(lengths):
    """What torch's loader reads together is what it would read one by one, of a selection as well."""
    rng = np.random.default_rng(0)
    data = Dataset.from_dict(
        {"input_ids": [rng.integers(99, size=n).tolist() for n in lengths], "other": ["text"] * len(lengths)}
    )
    whole = Rows(data, np.zeros(4, np.int8), np.arange(4), modes=np.array([0, 2, 1, 0], np.int8))
    for rows in (whole, whole.select(np.array([3, 1, 2])), replace(whole, modes=None)):
        for keys in ([1, 0, 2], [(2, 1), (0, 2)]):
            for one, together in zip((rows[key] for key in keys), rows.__getitems__(keys), strict=True):
                assert one.keys() == together.keys()
                assert one.get("mode") == together.get("mode")
                assert one["input_ids"].tolist() == together["input_ids"].tolist()
