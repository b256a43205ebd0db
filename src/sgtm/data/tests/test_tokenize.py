"""Documents to rows: nothing lost, nothing on both sides, clear errors, nothing left behind."""

import json

import numpy as np
import pytest
from datasets import load_from_disk

from sgtm.config import ConfigError, PrepareConfig
from sgtm.data.tokenize import Document, prepare
from sgtm.data.tokenizer import load_tokenizer, tokenizer_hash


def source(sentences):
    def documents():
        for english, spanish in sentences:
            yield Document(english, "retain", english)
            yield Document(english, "forget", spanish)

    return documents


def texts_of(rows, tokenizer, category, overlap=False):
    """All documents of one category, as the tokens of its rows spell them; rows of one document may overlap by one."""
    ids, before = [], None
    for row in rows.filter(lambda r: r["category"] == category):
        continues = overlap and row["document"] == before
        assert not continues or row["input_ids"][0] == ids[-1]
        ids += row["input_ids"][int(continues) :]
        before = row["document"]
    return tokenizer.decode(ids).split("<|endoftext|>")


@pytest.mark.parametrize("pack", [True, False])
def test_every_document_is_in_exactly_one_split(tmp_path, sentences, pack):
    config = PrepareConfig(tmp_path / "out", "train:300", 16, pack=pack, test_fraction=0.1)
    data = load_from_disk(prepare(source(sentences), config, {}))
    tokenizer = load_tokenizer(str(tmp_path / "out" / "tokenizer"))
    splits = {split: texts_of(data[split], tokenizer, "retain", not pack) for split in ("train", "test")}
    spanish = {split: texts_of(data[split], tokenizer, "forget", not pack) for split in ("train", "test")}
    for texts, column in ((splits, 0), (spanish, 1)):
        assert all(t[-1] == "" for t in texts.values()), "every document ends with end-of-text"
        assert sorted(t for s in texts.values() for t in s[:-1]) == sorted(s[column] for s in sentences)
    translation = dict(sentences)
    assert {translation[t] for t in splits["test"][:-1]} == set(spanish["test"][:-1])
    assert 0.05 < len(splits["test"]) / len(sentences) < 0.15


def test_rows_are_full_when_packed_and_own_rows_when_not(tmp_path, sentences):
    packed = prepare(source(sentences), PrepareConfig(tmp_path / "a", "train:300", 16, pack=True), {})
    rows = load_from_disk(packed)["train"]
    lengths = np.array([len(r) for r in rows["input_ids"]])
    assert (lengths < 16).sum() <= 2, "only the last row of each category is short"
    single = load_from_disk(prepare(source(sentences), PrepareConfig(tmp_path / "b", "train:300", 16), {}))["train"]
    numbers = single["document"]
    assert max(len(r) for r in single["input_ids"]) <= 16
    assert len(set(numbers)) == 2 * len(set(single.filter(lambda r: r["category"] == "forget")["document"]))


def test_the_manifest_counts_what_is_there(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    data = load_from_disk(prepared)
    for split, categories in manifest["counts"].items():
        for category, counts in categories.items():
            rows = data[split].filter(lambda r, c=category: r["category"] == c)
            assert counts["rows"] == len(rows)
            assert counts["tokens"] == sum(map(len, rows["input_ids"]))
    assert sum(c["documents"] for s in manifest["counts"].values() for c in s.values()) == 1200
    assert manifest["tokenizer_sha256"] == tokenizer_hash(load_tokenizer(str(prepared / "tokenizer")))


def test_copies_of_a_text_stay_on_one_side(tmp_path, sentences):
    config = PrepareConfig(tmp_path / "out", "train:300", 16, test_fraction=0.3)
    data = load_from_disk(prepare(source(sentences[:100] * 4), config, {}))
    tokenizer = load_tokenizer(str(tmp_path / "out" / "tokenizer"))
    train, test = (set(texts_of(data[s], tokenizer, "retain", True)) - {""} for s in ("train", "test"))
    assert train
    assert test
    assert not train & test


def test_a_test_source_keeps_its_documents_out_of_training(tmp_path, sentences):
    config = PrepareConfig(tmp_path / "out", "train:300", 16)
    prepare(source(sentences), config, {}, source(sentences[:50]))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["test"]["forget"]["documents"] == 50
    assert manifest["counts"]["train"]["forget"]["documents"] == 550
    assert manifest["rejected"] == {"in the test split as well": 100}


@pytest.mark.parametrize("own_test_split", [True, False])
def test_no_text_of_the_test_split_is_trained_on(tmp_path, sentences, own_test_split):
    """Two sentences with one translation are two groups that share a text."""
    same = [(f"One of {i} sentences.", "La misma traducción.") for i in range(40)]
    config = PrepareConfig(tmp_path / "out", "train:300", 16, test_fraction=0.2)
    test = source(same[:1] + sentences[:5]) if own_test_split else None
    prepare(source(same + sentences[5:]), config, {}, test)
    data = load_from_disk(tmp_path / "out")
    tokenizer = load_tokenizer(str(tmp_path / "out" / "tokenizer"))
    train, test = (set(texts_of(data[s], tokenizer, "forget", True)) - {""} for s in ("train", "test"))
    assert "La misma traducción." in test
    assert not train & test
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["rejected"]["in the test split as well"] >= 25


@pytest.mark.parametrize("length", [15, 16, 17, 30, 31, 32, 33])
def test_every_token_of_a_long_document_is_predicted_once(tmp_path, length):
    """Whatever its length, end-of-text never stands alone in a row."""
    texts = [(f"{n:03d}" + "ab" * length, "x" * (n + 1)) for n in range(40)]
    config = PrepareConfig(tmp_path / "out", "train:257", 16, test_fraction=0.3)
    data = load_from_disk(prepare(source(texts), config, {}))
    rows = data["train"].filter(lambda r: r["category"] == "retain")
    assert min(len(r) for r in rows["input_ids"]) >= 2
    predicted = sum(len(r) - 1 for r in rows["input_ids"])
    assert predicted == len(set(rows["document"])) * (3 + 2 * length)  # bytes, and end-of-text, less the first


def test_empty_texts_are_counted_not_lost(tmp_path, sentences):
    config = PrepareConfig(tmp_path / "out", "train:300", 16, test_fraction=0.1)
    prepare(source([*sentences, ("", "sin par"), ("no pair", "  ")]), config, {})
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["rejected"] == {"empty text": 2}


def test_a_new_tokenizer_is_the_same_each_time_and_spells_everything(tmp_path, sentences):
    folders = [prepare(source(sentences), PrepareConfig(tmp_path / n, "train:300", 16), {}) for n in "ab"]
    first, second = (load_tokenizer(str(f / "tokenizer")) for f in folders)
    assert tokenizer_hash(first) == tokenizer_hash(second)
    text = "Ñandú — 漢字 <b>\n\t🙂"
    assert first.decode(first(text)["input_ids"]) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 1}, "at least 2"),
        ({"test_fraction": 1.0}, "must be smaller than the data"),
        ({"test_fraction": 0.0}, "not empty"),
        ({"tokenizer": "train:100"}, "at least 257"),
        ({"tokenizer": "./no/such/folder"}, "neither a folder"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(tmp_path, sentences, change, message):
    settings = {"tokenizer": "train:300", "context": 16, **change}
    with pytest.raises(ConfigError, match=message):
        prepare(source(sentences), PrepareConfig(tmp_path / "out", **settings), {})
    assert not list(tmp_path.iterdir())


def test_an_empty_split_is_refused_and_nothing_is_left_behind(tmp_path, sentences):
    with pytest.raises(ConfigError, match="test split is empty"):
        prepare(source(sentences[:3]), PrepareConfig(tmp_path / "out", "train:300", 16, test_fraction=1e-6), {})
    with pytest.raises(ConfigError, match="train split is empty"):
        prepare(source([]), PrepareConfig(tmp_path / "out", "train:300", 16), {})
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_overwritten(prepared, sentences):
    with pytest.raises(ConfigError, match="exists already"):
        prepare(source(sentences), PrepareConfig(prepared, "train:300", 16), {})
