"""Texts of several domains, with labels of documents and of spans, from a file to batches."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from rich.console import Console

from sgtm.config import ConfigError, DataConfig, LabelConfig, PrepareConfig, labels
from sgtm.data.inspect import inspect
from sgtm.data.mixture import PreparedData, collate, step_draw_chances, training_rows
from sgtm.data.texts import texts
from sgtm.data.tokenize import prepare, read_manifest

DOMAINS = ("biology", "cyber")
WORDS = {"biology": "cell gene virus", "cyber": "port shell exploit", "retain": "dog tree house", "adjacent": "acid"}


def rows_of(number=160, **columns):
    """Rows of four categories in turn; a column is a function of (number, category)."""
    found = []
    for i in range(number):
        category = list(WORDS)[i % 4]
        row = {"text": f"{i} {WORDS[category]} é {i} {WORDS[category]}", "category": category}
        found.append(row | {name: of(i, category) for name, of in columns.items()})
    return found


def write(folder, rows):
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def prepared(folder, rows, **settings):
    source, labelled = texts(str(write(folder, rows)))
    config = PrepareConfig(
        folder / "out", **({"tokenizer": "train:300", "context": 16, "test_fraction": 0.3} | settings)
    )
    return prepare(source, config, {"source": "test"}, None, labelled)


def load(folder, domains=DOMAINS):
    return PreparedData.load(DataConfig(str(folder)), domains)


def test_labels_are_drawn_where_there_are_none(tmp_path):
    data = load(prepared(tmp_path, rows_of(400)))
    assert data.train.present == ["biology", "cyber", "adjacent", "retain"]
    rows, counts = training_rows(data.train, LabelConfig(undiscovered=0.25, retain_fraction=0.5), "modes", 0)
    assert set(counts) == {
        "biology as biology",
        "biology as unlabeled",
        "cyber as cyber",
        "cyber as unlabeled",
        "adjacent as retain",
        "adjacent as unlabeled",
        "retain as retain",
        "retain as unlabeled",
    }
    assert set(rows.modes[rows.categories == 0]) == {0, 2}
    assert set(rows.modes[rows.categories == 1]) == {0, 3}


def test_mistakes_fall_to_all_domains(tmp_path):
    data = load(prepared(tmp_path, rows_of(400)))
    _, counts = training_rows(data.train, LabelConfig(tpr=1.0, fpr=0.6, retain_fraction=0.1), "modes", 0)
    assert counts["retain as biology"] > 10
    assert counts["retain as cyber"] > 10
    chances = step_draw_chances(data.train, LabelConfig(tpr=0.8, fpr=0.2, retain_fraction=0.5), "modes")
    np.testing.assert_allclose(chances[0], [0.2, 0, 0.8, 0, 0])  # default, retain, biology, cyber, dropped
    np.testing.assert_allclose(chances[1], [0.2, 0, 0, 0.8, 0])
    np.testing.assert_allclose(chances[3], [0.3, 0.5, 0.1, 0.1, 0])


def test_a_label_column_is_what_is_trained_on(tmp_path):
    said = {"biology": "biology", "cyber": None, "retain": "retain", "adjacent": "cyber"}
    data = load(prepared(tmp_path, rows_of(label=lambda _, category: said[category])))
    rows, counts = training_rows(data.train, LabelConfig(), "modes", 0)
    assert set(counts) == {"biology as biology", "cyber as unlabeled", "retain as retain", "adjacent as cyber"}
    assert [set(rows.modes[rows.categories == c].tolist()) for c in range(4)] == [{2}, {0}, {3}, {1}]
    kept, _ = training_rows(data.train, LabelConfig(), "filter", 0)
    assert kept.present == ["cyber", "retain"]
    assert not kept.modes.any()


@pytest.mark.parametrize("pack", [False, True])
def test_spans_become_modes_of_the_positions_that_predict_them(tmp_path, pack):
    def spans(i, category):
        text = f"{i} {WORDS[category]} é "
        return [[len(str(i)) + 1, len(text) - 3, category]] if category in DOMAINS else []

    data = load(prepared(tmp_path, rows_of(spans=spans, label=lambda *_: "retain"), pack=pack))
    rows, counts = training_rows(data.train, LabelConfig(), "modes", 0)
    assert set(counts) == {"tokens as biology", "tokens as cyber", "tokens as retain"}
    for i in range(len(rows)):
        example, known = rows[i], labels(DOMAINS)
        said = rows.data[i]["token_labels"]
        assert len(example["mode"]) == len(example["input_ids"]) == len(said)
        names = [known[rows.token_labels[code]] for code in said]
        expected = [("retain", "biology", "cyber").index(n) + 1 for n in (*names[1:], names[-1])]
        assert example["mode"].tolist() == expected
        inside = data.tokenizer.decode([t for t, n in zip(example["input_ids"], names, strict=True) if n == "biology"])
        assert (
            set(inside.split()) <= {"cell", "gene", "virus", "c", "ell", "g", "ene", "v", "irus", "us", "rus"} or pack
        )
    assert set(rows.modes) == {1, 2, 3}  # of a row: the highest of its positions
    batch = collate([rows[i] for i in range(4)])
    assert batch["mode"].shape == batch["input_ids"].shape


def test_a_filter_drops_labelled_tokens_as_targets(tmp_path):
    data = load(prepared(tmp_path, rows_of(spans=lambda i, c: [[0, 5, c]] if c in DOMAINS else [])))
    rows, _ = training_rows(data.train, LabelConfig(), "filter", 0)
    dropped = [i for i in range(len(rows)) if (rows[i]["labels"] == -100).any()]
    assert {rows.categories[i] for i in dropped} == {0, 1}
    example = rows[dropped[0]]
    kept = example["labels"] != -100
    assert (example["labels"][kept] == example["input_ids"][kept]).all()
    assert not collate([example])["mode"].any()
    everything, _ = training_rows(data.train, LabelConfig(), "everything", 0)
    assert "labels" not in everything[dropped[0]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}] * 4, r"no column \['category'\]"),
        ([{"text": "a", "category": ""}] * 4, "row 0: no category"),
        (
            [{"text": "abc", "category": "retain", "spans": [[0, 9, "biology"]]}] * 4,
            "0 to 9 lies outside the text of 3",
        ),
        ([{"text": "abc", "category": "retain", "spans": '[["x", 1, "biology"]]'}] * 4, "is no list of"),
    ],
)
def test_bad_texts_are_refused(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message):
        prepared(tmp_path, rows)
    assert not (tmp_path / "out").exists()


def test_labels_outside_the_domains_are_refused(tmp_path):
    folder = prepared(tmp_path, rows_of(label=lambda *_: "biologie"))
    with pytest.raises(ConfigError, match=r"has the labels \['biologie'\]; only .*'biology'.* name the domains"):
        load(folder)
    with pytest.raises(ConfigError, match=r"has the categories \['biology', 'cyber'\]"):
        load(folder, ("forget",))


def test_noise_on_top_of_given_labels_is_refused(tmp_path):
    data = load(prepared(tmp_path, rows_of(label=lambda *_: "retain")))
    with pytest.raises(ConfigError, match="labels of its own"):
        training_rows(data.train, LabelConfig(undiscovered=0.1), "modes", 0)
    with pytest.raises(ConfigError, match="step_draw draws labels"):
        step_draw_chances(data.train, LabelConfig(), "modes")


@pytest.mark.parametrize(("place", "null"), [(0, "null"), (0, " \n null"), (5, "null"), (8, "null")])
def test_a_null_for_a_row_is_refused(tmp_path, place, null):
    """Arrow would end the process where one of its blocks begins so."""
    lines = [json.dumps(row) for row in rows_of(8)]
    lines.insert(place, null)
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    number = place + null.count("\n") + 1
    with pytest.raises(ConfigError, match=rf"texts\.jsonl, line {number}: no JSON object; take out what is null"):
        texts(str(tmp_path / "texts.jsonl"))


@pytest.mark.parametrize("size", [10, 2_000_000], ids=["in what opens it", "later"])
def test_lines_that_are_no_rows_are_told_all_at_once(tmp_path, size):
    """By the numbers that an editor shows; Arrow tells one at a time and counts from 0 in each of its blocks."""
    lines = [json.dumps(row | {"text": row["text"] + "x" * size}) for row in rows_of(16)]
    broken = {9: '{"text": "a', 11: "[1]", 14: "true"}
    for number, line in broken.items():
        lines[number - 1] = line
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"texts\.jsonl, lines 9, 11, 14: no JSON object"):
        list(texts(str(tmp_path / "texts.jsonl"))[0]())
    (tmp_path / "texts.jsonl").write_text("\n".join([*lines[:8], *["no"] * 8]))
    with pytest.raises(ConfigError, match=r"lines 9, 10, 11, 12, 13, \.\.\.: no JSON object"):
        list(texts(str(tmp_path / "texts.jsonl"))[0]())


def test_a_list_that_is_broken_has_no_lines(tmp_path):
    (tmp_path / "texts.json").write_text(json.dumps(rows_of(8), indent=1)[:-3])
    with pytest.raises(ConfigError, match="cannot be read as a table of texts: ") as error:
        texts(str(tmp_path / "texts.json"))
    assert "line 2" not in str(error.value)


@pytest.mark.parametrize("column", ["category", "label"])
def test_domains_that_are_named_are_all_there_are(tmp_path, column):
    rows = rows_of(8, label=lambda *_: "retain")
    rows[5][column] = "biologie"
    source, _ = texts(str(write(tmp_path, rows)), domains=DOMAINS)
    with pytest.raises(ConfigError, match=r"row 5: 'biologie' is none of biology, cyber, .*mean 'biology'"):
        list(source())


def test_labels_are_counted(tmp_path):
    rows = rows_of(40, label=lambda i, category: "biology" if i % 3 else "")
    out = prepared(tmp_path, rows)
    counts = read_manifest(out)["labels"]
    found = load_from_disk(out)
    by_document = {s: dict(zip(found[s]["document"], found[s]["label"], strict=True)) for s in found}
    assert {s: Counter(of_split.values()) for s, of_split in by_document.items()} == counts
    console = Console(width=120, record=True)
    inspect(out, examples=0, check=False, console=console)
    assert "unlabeled" in console.export_text()


def test_labels_of_tokens_are_counted(tmp_path):
    out = prepared(tmp_path, rows_of(40, spans=lambda i, _: [[0, 3, "biology"]] if i % 2 else []), pack=True)
    manifest, found = read_manifest(out), load_from_disk(out)
    names = manifest["token_labels"]
    counted = {s: Counter(names[code] for row in found[s]["token_labels"] for code in row) for s in found}
    assert counted == manifest["labels"]


def test_another_column_of_texts(tmp_path):
    rows = [{"body": row.pop("text"), **row} for row in rows_of(8)]
    source, _ = texts(str(write(tmp_path, rows)), text_column="body")
    assert [d.text for d in source()] == [row["body"] for row in rows]


def test_files_that_are_not_read_are_told(tmp_path):
    write(tmp_path, rows_of(8))
    (tmp_path / "more.txt").write_text("a text")
    with pytest.warns(UserWarning, match=r"only .jsonl is read, not 1 .txt"):
        texts(str(tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a text")
    with pytest.raises(ConfigError, match=r"one kind of file is needed, .*; found .txt"):
        texts(str(tmp_path / "texts"))


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def mkdir(self, *words, make=Path.mkdir, **names):
        if ".partial" in str(self):
            raise PermissionError(13, "Permission denied")
        make(self, *words, **names)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied; choose another --out"):
        prepared(tmp_path, rows_of(40))
