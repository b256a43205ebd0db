"""Topics of prepared data: read from the manifest alone, each in its category."""

import json

import pytest

from sgtm.cli import main
from sgtm.config import ConfigError
from sgtm.plot.topics import read_topics


def counted(documents, tokens):
    return {"documents": documents, "rows": 1, "tokens": tokens}


@pytest.fixture
def data(tmp_path):
    """A manifest of two domains, one of which is a part of the tree of topics."""
    train = {
        "STEM.Biology": counted(3, 900),
        "STEM.Chemistry": counted(2, 400),
        "Culture.Media.Films": counted(9, 5000),
        "History_and_Society.Military_and_warfare": counted(4, 600),
        "STEM.Space": counted(1, 50),
    }
    manifest = {
        "origin": {"forget": "biology=STEM.Biology,war=History_and_Society.Military_and_warfare", "adjacent": "STEM"},
        "topics": {"train": train, "test": {"STEM.Biology": counted(1, 100), "Culture.Music": counted(1, 20)}},
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "data"


def test_each_topic_has_its_category(data):
    found = {t.name: t for t in read_topics(data)}
    assert next(iter(found)) == "Culture.Media.Films", "the largest first"
    assert {n.rpartition(".")[2]: t.category for n, t in found.items()} == {
        "Films": "retain",
        "Biology": "biology",
        "Military_and_warfare": "war",
        "Chemistry": "adjacent",
        "Space": "adjacent",
        "Music": "retain",
    }
    assert (found["STEM.Biology"].tokens, found["STEM.Biology"].documents, found["STEM.Biology"].test) == (1000, 4, 0.1)
    assert found["Culture.Music"].test == 1


def test_the_command(data, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `plot` has matplotlib")
    main(["plot", "topics", str(data), "--out", str(tmp_path / "topics.png")])
    assert (tmp_path / "topics.png").stat().st_size > 10_000


def test_data_without_topics_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no manifest\.json"):
        read_topics(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no topics"):
        read_topics(tmp_path)
