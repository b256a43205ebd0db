"""Sources with one column a language."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from sgtm.config import ConfigError, PrepareConfig
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
