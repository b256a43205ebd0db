"""Rows of topics: every one is used or counted, whatever it looks like; the best topic of a page by the stated rule."""

import gzip

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgtm.config import ConfigError
from sgtm.data import ores
from sgtm.data.ores import read_topics

HEADER = "wikidata_id,page_id,title,source,topic,score"
TOPICS = ["STEM.Biology", "STEM.Chemistry", "STEM.STEM*", "Culture.Media.Films", "History and Society.History"]


def read(folder, content, wiki="enwiki", name="topics.csv"):
    """Topics of ``content`` (lines, text or bytes)."""
    content = "\n".join(content) if isinstance(content, list) else content
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_topics(file, wiki)


def best(found):
    return {int(page): found.names[code] for page, code in zip(found.pages, found.codes, strict=True)}


def row(page, topic, score, title="A title", source="enwiki"):
    return f"Q{page},{page},{title},{source},{topic},{score}"


def number(text):
    try:
        return float(text) if text.strip().replace("_", "") == text.strip() else None
    except ValueError:
        return None


def expected_of(lines):
    """What the best topics are, line by line in plain Python; and how many lines are used."""
    rows = {}
    for i, line in enumerate(lines):
        parts = [p.strip(' "') for p in line.split(",")]
        if len(parts) < 6 or parts[-3] != "enwiki" or not parts[-2]:
            continue
        page, score = parts[1].removesuffix(".0"), number(parts[-1].strip(' "\r\t'))
        if not (page.isascii() and page.isdigit() and len(page) <= 18) or score is None or not 0 <= score <= 1:
            continue
        key = (int(page), parts[-2].replace(" ", "_"))
        rows[key] = (max(score, rows.get(key, (0, 0))[0]), rows.get(key, (0, i))[1])
    order = sorted(rows, key=lambda k: (k[0], k[1].endswith("*"), -rows[k][0], rows[k][1]))
    return dict(reversed(order)), len(rows)


TITLES = st.one_of(
    st.sampled_from(['"Santiago, Chile"', "Santiago, Chile", 'A "lone quote', '"', "", ",,", "x" * 300]),
    st.text(st.characters(blacklist_characters="\n\0", blacklist_categories=["Cs"]), max_size=12),
)
FIELDS = (
    st.sampled_from(["Q1", "", '"Q2"']),
    st.sampled_from(["1", "2", "3", "", "2.0", "1.5", "x", "-1", "99999999999999999999", " 3 ", "page_id"]),
    TITLES,
    st.sampled_from(["enwiki", "enwiki", "enwiki", "dewiki", "", "en wiki"]),
    st.sampled_from([*TOPICS, "", '"STEM.Physics"']),
    st.sampled_from(["0.5", "0.5", "1.0", "0.25", "", "nan", "2", "-0.1", "high", "1e-3", ' "0.75" ', "0.5\r"]),
)
ROWS = st.tuples(*FIELDS).map(",".join)
LINES = st.one_of(ROWS, ROWS, ROWS, TITLES, st.sampled_from(["", HEADER, ",", "\r", "Q1,1,t,enwiki,STEM.Biology"]))


@settings(deadline=None, max_examples=30)
@given(lines=st.lists(LINES, min_size=5, max_size=60), end=st.sampled_from(["", "\n"]))
def test_rows_in_are_rows_used_and_rejected(tmp_path_factory, lines, end):
    lines = ["Q9,9,a sound row,enwiki,STEM.Physics,0.5", *lines]
    content = "\n".join(lines) + end
    if content.endswith("\n"):  # the last line is one if something stands in it
        lines = content[:-1].split("\n")
    found = read(tmp_path_factory.mktemp("topics"), content)
    topics, used = expected_of(lines)
    assert found.num_rows == len(lines)
    assert found.num_used == used
    assert best(found) == topics


def test_the_best_topic(tmp_path):
    lines = [
        *(row(1, topic, score) for topic, score in (("STEM.STEM*", 1.0), ("STEM.Biology", 0.2), ("STEM.Physics", 0.4))),
        *(row(2, topic, 0.7) for topic in ("STEM.Physics", "STEM.Biology")),
        *(row(3, topic, 0.7) for topic in ("STEM.Biology", "STEM.Physics")),
        *(row(4, topic, score) for topic, score in (("STEM.STEM*", 0.3), ("Culture.Media.Media*", 0.4))),
        row(5, "History and Society.History", 0.1),
    ]
    assert best(read(tmp_path, lines)) == {
        1: "STEM.Physics",  # without an asterisk, then the highest score
        2: "STEM.Physics",  # a tie: the first in the file
        3: "STEM.Biology",
        4: "Culture.Media.Media*",
        5: "History_and_Society.History",
    }


def test_rows_are_recovered_where_the_columns_say_how(tmp_path):
    titles = ["Santiago, Chile", '"Santiago, Chile"', 'A "lone" quote"', '"', 'One, "two, three', "a\0b", ""]
    found = read(tmp_path, [row(i, "STEM.Biology", 0.5, title) for i, title in enumerate(titles)])
    assert (found.num_used, found.rejected) == (len(titles), {})


def test_rejected_rows_have_reasons(tmp_path):
    bad = {
        "empty line": "",
        "fewer than six columns": "Q1,1,title,enwiki,STEM.Biology",
        "a header": HEADER,
        "columns out of place": row(1, "STEM.Biology", 0.5) + ",",
        "another wiki": row(1, "STEM.Physics", 1.0, source="dewiki"),
        "no page id": row("", "STEM.Biology", 0.5),
        "page id is no number": row("1.5", "STEM.Biology", 0.5),
        "no topic": row(1, "", 0.5),
        "no score": row(1, "STEM.Biology", ""),
        "score is no number from 0 to 1": row(1, "STEM.Biology", "nan"),
        "topic of a page once more": row(1, "STEM.Biology", 0.1),
    }
    found = read(tmp_path, [HEADER, row(1, "STEM.Biology", 0.5), *bad.values()])
    assert found.rejected == dict.fromkeys(bad, 1)
    assert (found.num_rows, found.num_used) == (len(bad) + 1, 1)
    assert best(found) == {1: "STEM.Biology"}


def test_page_ids_that_went_through_floats(tmp_path):
    """One empty id makes every id of a column of floats 12.0 in the file that is written."""
    lines = [row("12.0", "STEM.Biology", 0.5), row("", "STEM.Biology", 0.5)]
    assert best(read(tmp_path, lines)) == {12: "STEM.Biology"}


@pytest.mark.parametrize("header", ["", HEADER + "\n", "\ufeff" + HEADER + "\r\n"])
@pytest.mark.parametrize("packed", [bytes, gzip.compress, lambda raw: pa.compress(raw, "zstd", asbytes=True)])
def test_headers_and_archives(tmp_path, monkeypatch, header, packed):
    monkeypatch.setattr(ores, "_CHUNK", 11)  # lines lie across several
    content = header + "\r\n".join([row(1, "STEM.Biology", 0.5, "Ñandú"), row(2, "STEM.Physics", 0.5)])
    found = read(tmp_path, packed(content.encode()))
    assert best(found) == {1: "STEM.Biology", 2: "STEM.Physics"}
    assert (found.num_rows, found.rejected) == (2, {})


def test_bytes_that_are_no_text_cost_no_row(tmp_path):
    content = row(1, "STEM.Biology", 0.5, "caf@").encode().replace(b"@", b"\xe9") + b"\n" + row(2, "A", 1).encode()
    assert best(read(tmp_path, content)) == {1: "STEM.Biology", 2: "A"}


def test_pages_without_a_topic(tmp_path):
    found = read(tmp_path, [row(7, "A", 1), row(3, "B", 1)])
    assert found.of(np.array([3, 4, 7, 8, -1])).tolist() == [1, -1, 0, -1, -1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("page_id,title,topic\n1,a,b", "they must be wikidata_id, page_id, title, source, topic, score, in this order"),
        (row(1, "STEM.Biology", 1, source="enwiktionary"), "no row of wiki='enwiki'.*did you mean 'enwiktionary'"),
        ("", "it is empty"),
        ("Q1,,t,enwiki,STEM.Biology,1", "'no page id': 1"),
        (gzip.compress(row(1, "A", 1).encode() * 100, mtime=0)[:60], "cannot be read to its end"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, content)


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="is no file"):
        read_topics(tmp_path / "none.csv", "enwiki")
