"""Sources with one column a language."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from sgtm.cli import main
from sgtm.config import CATEGORIES, LABELS, ConfigError, DataConfig, PrepareConfig
from sgtm.data.mixture import PreparedData
from sgtm.data.tinystories import source, synthetic_source
from sgtm.data.tokenize import prepare

COLUMNS = {"text": "retain", "text_es": "forget"}
ROWS = [{"text": "One day.", "text_es": "Un día."}, {"text": "The end.", "text_es": "Fin."}]


@pytest.fixture(params=["parquet", "jsonl", "folder", "saved", "saved_dict"])
def path(request, tmp_path):
    table = pa.Table.from_pylist(ROWS)
    if request.param == "parquet":
        pq.write_table(table, tmp_path / "x.parquet")
        return tmp_path / "x.parquet"
    if request.param == "jsonl":
        (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS))
        return tmp_path / "x.jsonl"
    if request.param == "folder":
        for i in range(2):
            pq.write_table(table.slice(i, 1), tmp_path / f"{i}.parquet")
        return tmp_path
    data = Dataset.from_list(ROWS)
    (data if request.param == "saved" else DatasetDict(train=data)).save_to_disk(tmp_path / "set")
    return tmp_path / "set"


def test_all_kinds_of_local_data_give_the_same_documents(path):
    documents = list(source(str(path), "train", COLUMNS)())
    assert [(d.category, d.text) for d in documents] == [
        ("retain", "One day."),
        ("forget", "Un día."),
        ("retain", "The end."),
        ("forget", "Fin."),
    ]
    assert documents[0].group == documents[1].group != documents[2].group


def test_a_source_can_be_read_again(path):
    again = source(str(path), "train", COLUMNS)
    assert list(again()) == list(again())


def test_a_missing_column_is_named_with_those_there_are(path):
    with pytest.raises(ConfigError, match=r"no column \['text_fr'\]; it has \['text', 'text_es'\]"):
        source(str(path), "train", {"text": "retain", "text_fr": "forget"})


@pytest.mark.parametrize("name", ["./none.parquet", "none.parquet", "/no/such/folder"])
def test_a_missing_file_is_said_to_be_missing(name):
    with pytest.raises(ConfigError, match="does not exist"):
        source(name, "train", COLUMNS)


def test_a_wrong_split_names_the_right_ones(tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "set")
    with pytest.raises(ConfigError, match="no split 'validation'"):
        source(str(tmp_path / "set"), "validation", COLUMNS)


def test_synthetic_stories_are_parallel_documents():
    documents = list(synthetic_source(3, seed=1)())
    assert [d.category for d in documents] == ["retain", "forget"] * 3
    swapped = list(synthetic_source(3, seed=1, forget="en")())
    assert [d.text for d in swapped] == [d.text for d in documents]
    assert [d.category for d in swapped] == ["forget", "retain"] * 3
    with pytest.raises(ConfigError, match="at least two"):
        synthetic_source(1, seed=0)


def test_real_sentences_are_prepared_whole(test_data, tmp_path):
    folder = test_data / "bilingual" / "tatoeba"
    train, test = (source(str(folder / f"{name}.parquet"), "train", COLUMNS) for name in ("train", "validation"))
    gpt2 = str(test_data / "tokenizer" / "gpt2")
    out = prepare(test, PrepareConfig(tmp_path / "out", gpt2, 64, pack=True, test_fraction=0.1), {})
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert sum(counts[s]["retain"]["documents"] for s in counts) == 2997
    assert next(iter(train())).text


STORIES = [
    {
        "text": " ".join(f"one{i}word{j}" for j in range(12)),
        "text_es": " ".join(f"una{i}palabra{j}" for j in range(9)),
    }
    for i in range(400)
]


@pytest.fixture
def stories_file(tmp_path):
    pq.write_table(pa.Table.from_pylist([*STORIES, {"text": "Go!", "text_es": "¡Vete!"}]), tmp_path / "x.parquet")
    return str(tmp_path / "x.parquet")


def test_mixed_documents_begin_in_one_language_and_go_on_in_the_other(stories_file):
    documents = list(source(stories_file, "train", COLUMNS, mixed_share=0.25, seed=3)())
    mixed = [d for d in documents if d.only == "train"]
    assert 2 * 70 < len(mixed) < 2 * 130  # of 400 rows, five standard deviations
    for first, second in zip(mixed[::2], mixed[1::2], strict=True):
        assert {first.category, second.category} == {"forget"}
        assert first.text.startswith("one")
        assert second.text.startswith("una")
        row = next(r for r in STORIES if r["text"] == first.group)
        # No word is lost, cut or doubled between the two.
        words = sorted(first.text.split() + second.text.split())
        assert words == sorted(row["text"].split() + row["text_es"].split())
        assert {w[:3] for w in first.text.split()} == {"one", "una"}
    whole = [d for d in documents if d.only == "test"]
    assert [d.group for d in whole] == [d.group for d in mixed]
    assert documents[-1].only == ""  # of one word: cannot be cut
    assert documents == list(source(stories_file, "train", COLUMNS, mixed_share=0.25, seed=3)())
    assert documents != list(source(stories_file, "train", COLUMNS, mixed_share=0.25, seed=4)())


def test_the_test_split_is_not_mixed(stories_file, tmp_path):
    def counts(share):
        documents = source(stories_file, "train", COLUMNS, mixed_share=share)
        config = PrepareConfig(tmp_path / f"out{share}", "train:400", 64, test_fraction=0.2)
        return json.loads((prepare(documents, config, {}) / "manifest.json").read_text())["counts"]

    plain, mixed = counts(0.0), counts(1.0)
    of_test = [{c: of["documents"] for c, of in found["test"].items()} for found in (plain, mixed)]
    assert of_test[0] == of_test[1]
    assert mixed["train"]["forget"]["documents"] == plain["train"]["forget"]["documents"] * 2 - 1
    assert mixed["train"].get("retain", {"documents": 0})["documents"] <= 1  # the row of one word


def test_tokens_of_mixed_documents_are_labelled_by_language(stories_file, tmp_path):
    out = tmp_path / "out"
    words = ["--mixed-share", "0.5", "--label-tokens", "--tokenizer", "train:400", "--context", "128"]
    main(["data", "tinystories", "--source", stories_file, "--out", str(out), "--test-fraction", "0.1", *words])
    data = PreparedData.load(DataConfig(str(out)))
    seen = set()
    for i in range(len(data.train)):
        row = data.train.data[i]
        labels = [LABELS[code] for code in data.train.token_labels[np.array(row["token_labels"])]]
        for label in set(labels):
            part = [t for t, said in zip(row["input_ids"], labels, strict=True) if said == label]
            text = data.tokenizer.decode(part, skip_special_tokens=True)
            assert ("una" in text, "one" in text) == (label == "forget", label == "retain") or "!" in text
        seen.add((CATEGORIES[data.train.categories[i]], frozenset(labels)))
    assert seen == {
        ("forget", frozenset({"forget", "retain"})),
        ("forget", frozenset({"forget"})),
        ("retain", frozenset({"retain"})),
    }


def test_a_share_that_is_none_is_refused(stories_file):
    with pytest.raises(ConfigError, match=r"mixed_share=1.5"):
        source(stories_file, "train", COLUMNS, mixed_share=1.5)
