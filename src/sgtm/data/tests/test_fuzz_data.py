"""Texts, labels, topics and prepared data that are damaged or made up: rows are used, or counted, or all is refused."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from sgtm.config import ClassifyConfig, DataConfig, LabelConfig, PrepareConfig
from sgtm.data.mixture import PreparedData, training_rows
from sgtm.data.ores import read_topics
from sgtm.data.texts import texts
from sgtm.data.tokenize import prepare
from sgtm.tests.fuzzing import amount, fuzz, near, plain_values, taken_or_refused, with_another

ROW = {"text": "the cat ran", "category": "forget", "label": "forget", "spans": [[0, 3, "forget"]], "group": "a"}


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Files of one name with ever new content."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


# ---- Texts


@amount(40, 2000)
def test_texts(examples, tmp_path):
    rows = [{**ROW, "text": f"the cat ran {i}", "category": ("forget", "retain")[i % 2]} for i in range(4)]

    def check(content: bytes) -> None:
        (tmp_path / "texts.jsonl").write_bytes(content)

        def read() -> None:
            source, _ = texts(str(tmp_path / "texts.jsonl"))
            for document in source():
                assert isinstance(document.text, str)
                assert all(0 <= start < stop <= len(document.text) for start, stop, _ in document.spans)

        taken_or_refused(read)

    some = st.one_of(
        near(jsonl(rows)), with_another(rows, plain_values()).filter(lambda r: isinstance(r, list)).map(jsonl)
    )
    fuzz(examples, check, some)


@amount(4, 150)
def test_every_text_is_used_or_counted(examples, tmp_path):
    rows = [
        {**ROW, "text": f"the cat ran {i}", "group": str(i), "category": ("forget", "retain")[i % 2]} for i in range(30)
    ]
    some = with_another(rows, plain_values()).filter(lambda r: isinstance(r, list))
    numbers = iter(range(10**6))

    def check(damaged: list[Any]) -> None:
        folder = tmp_path / str(next(numbers))
        (tmp_path / "texts.jsonl").write_bytes(jsonl(damaged))

        def run() -> None:
            source, labelled = texts(str(tmp_path / "texts.jsonl"))
            prepare(source, PrepareConfig(folder, "train:300", 16, test_fraction=0.4), {}, None, labelled)
            about = json.loads((folder / "manifest.json").read_text())
            used = sum(of["documents"] for split in about["counts"].values() for of in split.values())
            assert used + sum(about["rejected"].values()) == len(damaged)
            shutil.rmtree(folder)

        taken_or_refused(run)
        assert not list(tmp_path.glob(f"{folder.name}*"))

    fuzz(examples, check, some)


# ---- Labels of one's own


@amount(4, 150)
def test_examples_and_texts_to_label(examples, tmp_path):
    pytest.importorskip("sklearn", reason="the extra `label` has scikit-learn")
    from sgtm.data.own_labels import label_texts

    rows = [
        {"text": f"{('gene cell', 'hill sea')[i % 2]} {i}", "category": ("forget", "retain")[i % 2]} for i in range(60)
    ]
    numbers = iter(range(10**6))

    def check(shown: list[Any], data: list[Any]) -> None:
        out = tmp_path / f"labelled{next(numbers)}"
        (tmp_path / "examples.jsonl").write_bytes(jsonl(shown))
        (tmp_path / "data.jsonl").write_bytes(jsonl(data))
        config = ClassifyConfig(out, target_precision=0.5, target_recall=0.5)

        def run() -> None:
            about = label_texts(str(tmp_path / "data.jsonl"), config, str(tmp_path / "examples.jsonl"))
            assert about["rows"] == sum(about["labels"].values()) == len(data)

        taken_or_refused(run)

    damaged = with_another(rows, plain_values(4)).filter(lambda r: isinstance(r, list))
    fuzz(examples, check, st.one_of(damaged, st.just(rows)), damaged)


# ---- Topics of articles


def lines_of(content: bytes) -> int:
    return content.count(b"\n") + (not content.endswith(b"\n"))


TOPICS = "wikidata_id,page_id,title,source,topic,score\n" + "".join(
    f'Q{i},{i % 7},"a, {i}",{("enwiki", "dewiki")[i % 5 == 0]},{("STEM.Biology", "STEM.STEM*", "Art")[i % 3]},0.{i}\n'
    for i in range(20)
)


@amount(80, 3000)
def test_every_row_of_topics_is_used_or_counted(examples, tmp_path):
    pytest.importorskip("duckdb", reason="the extra `data` has duckdb")
    path = tmp_path / "topics.csv"

    def check(content: bytes, pack: bool) -> None:
        path.write_bytes(gzip.compress(content) if pack else content)
        found = taken_or_refused(lambda: read_topics(path, "enwiki"))
        if found is not None:
            header = content.removeprefix(b"\xef\xbb\xbf").replace(b'"', b"").startswith(b"wikidata_id")
            assert lines_of(content) - found.num_rows in (0, header)
            assert len(found.pages) <= found.num_used <= found.num_rows
            assert sorted(set(found.pages.tolist())) == found.pages.tolist()

    fuzz(examples, check, near(TOPICS.encode()), st.booleans())


@amount(60, 2000)
def test_topics_are_those_of_a_plain_reading(examples, tmp_path):
    """Each page's best topic, row by row in Python."""
    pytest.importorskip("duckdb", reason="the extra `data` has duckdb")
    path = tmp_path / "topics.csv"
    field = st.sampled_from(["", "x", "a,b", '"q"', "é"])
    row = st.tuples(
        st.sampled_from(["1", "2", "3.0", "", "x", "-4"]),
        field,
        st.sampled_from(["enwiki", "enwiki", "dewiki", "en wiki"]),
        st.sampled_from(["STEM.Biology", "STEM.STEM*", "History and Society.History", ""]),
        st.sampled_from(["0.5", "0.25", "1", "1.5", "nan", "", "x"]),
    )

    def check(rows: list[tuple[str, ...]]) -> None:
        path.write_text("".join(",".join(("Q1", *r)) + "\n" for r in rows), encoding="utf-8")
        best: dict[int, tuple[bool, float, int, str]] = {}
        used: set[tuple[int, str]] = set()
        for number, (page, _, wiki, topic, score) in enumerate(rows):
            if wiki == "enwiki" and page in ("1", "2", "3.0") and topic and score in ("0.5", "0.25", "1"):
                name = topic.replace(" ", "_")
                used.add((int(float(page)), name))
                rank = (name.endswith("*"), -float(score), number, name)
                best[int(float(page))] = min(rank, best.get(int(float(page)), rank))
        found = taken_or_refused(lambda: read_topics(path, "enwiki"))
        if found is None:
            assert not used
            return
        assert {p: found.names[c] for p, c in zip(found.pages, found.codes, strict=True)} == {
            page: rank[-1] for page, rank in best.items()
        }
        assert found.num_rows == len(rows)
        assert found.num_used == len(used)

    fuzz(examples, check, st.lists(row, min_size=1, max_size=12))


# ---- Prepared data


@amount(40, 1500)
def test_prepared_data(examples, prepared, tmp_path):
    """Any file of it damaged: it loads and labels every row, or is refused."""
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".arrow")]
    whole = {path: path.read_bytes() for path in files}

    def check(path: Path, data: st.DataObject) -> None:
        content = whole[path]
        path.write_bytes(data.draw(st.one_of(near(content), st.integers(0, len(content)).map(lambda n: content[:n]))))

        def load() -> None:
            found = PreparedData.load(DataConfig(str(folder)))
            rows, counts = training_rows(found.train, LabelConfig(undiscovered=0.5), "modes", 0)
            assert sum(counts.values()) == len(found.train) == len(rows)
            assert all(0 <= rows[i]["mode"] < 3 for i in range(len(rows)))

        taken_or_refused(load)
        path.write_bytes(content)

    fuzz(examples, check, st.sampled_from(files), st.data())
