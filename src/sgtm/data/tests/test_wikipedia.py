"""Articles and topics to a data set: all accounted for, split by document, the same however it came to be written."""

import csv
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

from sgtm.cli import main
from sgtm.config import ConfigError, DataConfig, PrepareConfig, WikipediaConfig
from sgtm.data import tokenize
from sgtm.data.mixture import PreparedData
from sgtm.data.ores import read_topics
from sgtm.data.tests.fake_hub import REVISION, FakeHub
from sgtm.data.tokenizer import load_tokenizer
from sgtm.data.wikipedia import CategoryRule, Corpus, article_files, prepare_wikipedia

# Category, number of articles.
TOPICS = {
    "STEM.Biology": ("forget", 60),
    "STEM.Chemistry": ("adjacent", 20),
    "STEM.Medicine_&_Health": ("adjacent", 20),
    "Culture.Media.Films": ("retain", 90),
    "History and Society.History": ("retain", 90),
    "STEM.STEM*": ("retain", 20),
}
ADJACENT = "STEM.Chemistry,STEM.Medicine_&_Health"
CONTEXT = 32


def text_of(page, topic):
    return f"Article {page} is about {topic.lower()}.\n\n" + f"It goes  on, {page}. " * (page % 9)


def parquet(path, pages, texts):
    pq.write_table(pa.table({"id": pages, "title": pages, "text": texts}), path, row_group_size=70)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two files of articles, 10 of them without a topic, and topics with rows of another wiki for the same pages."""
    folder = tmp_path_factory.mktemp("wiki")
    topics = [topic for topic, (_, number) in TOPICS.items() for _ in range(number)]
    order = np.random.default_rng(0).permutation(len(topics))
    pages = {int(order[i]) + 100: topic for i, topic in enumerate(topics)}
    rows = []
    for page, topic in pages.items():
        rows += [f"Q{page},{page},Title, of {page},enwiki,{topic},0.6", f"Q{page},{page},x,enwiki,STEM.STEM*,0.9"]
        rows += [f"Q1,{page},y,dewiki,Culture.Sports,1.0"]
    (folder / "topics.csv").write_text("\n".join(rows), encoding="utf-8")
    (folder / "articles").mkdir()
    texts = {page: text_of(page, topic) for page, topic in pages.items()}
    texts |= dict.fromkeys(range(10), "nothing is known of this")
    items = [(str(page), text) for page, text in sorted(texts.items())]
    parquet(folder / "articles" / "0.parquet", *zip(*items[:200], strict=True))
    parquet(folder / "articles" / "1.parquet", *zip(*items[200:], strict=True))
    return folder


def config(out, **changes):
    return replace(PrepareConfig(out, "train:300", CONTEXT, pack=True, test_fraction=0.2), **changes)


def wikipedia(folder, **changes):
    given = WikipediaConfig(folder / "topics.csv", str(folder / "articles"), adjacent=ADJACENT, shard=64, processes=1)
    return replace(given, **changes)


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    return prepare_wikipedia(config(tmp_path_factory.mktemp("out") / "data"), wikipedia(source))


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def texts_of(rows, tokenizer):
    """Topic -> its documents, as its rows spell them."""
    ids = {}
    for row in rows:
        ids.setdefault(row["topic"], []).extend(row["input_ids"])
    return {topic: tokenizer.decode(found).split("<|endoftext|>")[:-1] for topic, found in ids.items()}


def test_every_article_is_in_one_split_under_its_topic(source, written):
    data, tokenizer = load_from_disk(written), load_tokenizer(str(written / "tokenizer"))
    splits = {split: texts_of(data[split], tokenizer) for split in ("train", "test")}
    for topic, (category, number) in TOPICS.items():
        name = topic.replace(" ", "_")
        both = [splits[split].get(name, []) for split in ("train", "test")]
        assert len(set(both[0]) | set(both[1])) == len(both[0]) + len(both[1]) == number
        for split in ("train", "test"):
            rows = [row for row in data[split] if row["topic"] == name]
            assert {row["category"] for row in rows} <= {category}
            assert all(len(row["input_ids"]) == CONTEXT for row in rows[:-1]), "only a topic's last row is short"
    assert sum(1 for _ in data["train"]) > 100
    assert not list(written.glob("**/*progress*"))


def test_the_manifest_accounts_for_everything(source, written):
    manifest = manifest_of(written)
    articles = sum(number for _, number in TOPICS.values())
    assert manifest["rejected"] == {"page has no topic": 10}
    assert manifest["origin"]["articles"] == articles + 10
    counts = manifest["counts"]
    assert {c: counts["train"][c]["documents"] + counts["test"][c]["documents"] for c in counts["test"]} == {
        "forget": 60,
        "adjacent": 40,
        "retain": 200,
    }
    assert {c: counts["test"][c]["documents"] for c in counts["test"]} == {"forget": 12, "adjacent": 8, "retain": 40}
    rows = manifest["origin"]["topic_rows"]
    # Where the best topic is STEM.STEM*, its two rows are one topic twice.
    assert rows["rejected"] == {"another wiki": articles, "topic of a page once more": 20}
    assert rows["in"] == 3 * articles == rows["used"] + sum(rows["rejected"].values())
    for split in ("train", "test"):
        for key in ("documents", "rows", "tokens"):
            of_topics = sum(counts[key] for counts in manifest["topics"][split].values())
            assert of_topics == sum(counts[key] for counts in manifest["counts"][split].values())
    data = load_from_disk(written)
    assert {t: c["tokens"] for t, c in manifest["topics"]["train"].items()} == Counter(
        {t: sum(len(r["input_ids"]) for r in data["train"] if r["topic"] == t) for t in manifest["topics"]["train"]}
    )
    topics_hash = hashlib.sha256((source / "topics.csv").read_bytes()).hexdigest()
    assert manifest["origin"]["topics_file"] == topics_hash


def test_the_hubs_wikipedia_is_the_default_source(source, written, tmp_path):
    """From listing its files to the manifest, over a connection that breaks once; what was fetched stays."""
    name, configuration = WikipediaConfig(Path()).source.split(":")
    for folder in (configuration, "20231101.de"):
        shutil.copytree(source / "articles", tmp_path / "hub" / folder)
    (tmp_path / "hub" / "README.md").write_text("nobody asks for it")
    start = [sys.executable, "-m", "sgtm.cli", "data", "wikipedia", "--topics", source / "topics.csv"]
    settings = ["--tokenizer", "train:300", "--context", str(CONTEXT), "--test-fraction", "0.2", "--shard", "64"]
    cut_short = f"{configuration}/1.parquet"
    with FakeHub(name, tmp_path / "hub", {cut_short}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        environment["HF_HUB_OFFLINE"] = "0"
        for out in ("first", "second"):
            words = [*start, "--out", tmp_path / out, *settings, "--adjacent", ADJACENT, "--processes", "1"]
            said = subprocess.run(words, env=environment, capture_output=True, text=True)
            assert said.returncode == 0, said.stderr
    assert set(hub.fetched) == {f"{configuration}/0.parquet", cut_short}
    assert hub.fetched[f"{configuration}/0.parquet"] == 1
    manifest, local = manifest_of(tmp_path / "first"), manifest_of(written)
    assert manifest["origin"]["revision"] == REVISION
    assert manifest["origin"]["source"] == f"{name}:{configuration}"
    assert manifest["counts"] == local["counts"]
    assert manifest["origin"]["files"] == local["origin"]["files"]
    of_rows = [{f: h for f, h in hashes(out).items() if f.endswith(".arrow")} for out in (tmp_path / "first", written)]
    assert len(of_rows[0]) > 2
    assert of_rows[0] == of_rows[1]
    environment["HF_HOME"] = str(tmp_path / "elsewhere")
    said = subprocess.run(
        [*start, "--out", tmp_path / "third", *settings], env=environment, capture_output=True, text=True
    )
    assert said.returncode == 1
    assert "is no local file or folder, and the Hub gave: " in said.stderr
    assert "Traceback" not in said.stderr


def test_a_test_set_is_at_most_so_many_documents(source, tmp_path):
    prepare_wikipedia(config(tmp_path / "out"), wikipedia(source, test_documents=10))
    counts = manifest_of(tmp_path / "out")["counts"]["test"]
    assert {c: counts[c]["documents"] for c in counts} == {"forget": 10, "adjacent": 8, "retain": 10}


def test_the_split_does_not_depend_on_order_or_other_articles(source):
    files, _ = article_files(str(source / "articles"))
    topics = read_topics(source / "topics.csv", "enwiki")
    rule = CategoryRule.of(wikipedia(source))

    def tested(files, seed=0):
        corpus = Corpus.join(files, topics, rule, config(source / "none", seed=seed), 5000)
        return [d.group for d in corpus.test()], [d.group for d in corpus.train()]

    test, train = tested(files)
    assert set(tested(files[::-1])[0]) == set(test)
    assert set(tested(files[::-1])[1]) == set(train)
    assert set(tested(files, seed=1)[0]) != set(test)


def test_a_share_of_the_retain_articles(source, tmp_path, written):
    """All other articles stay, and what is left out is counted."""
    prepare_wikipedia(config(tmp_path / "out"), wikipedia(source, retain_share=0.25))
    manifest, whole = manifest_of(tmp_path / "out"), manifest_of(written)
    both = {c: [manifest["counts"][s][c]["documents"] for s in ("train", "test")] for c in manifest["counts"]["train"]}
    assert both == {"forget": [48, 12], "adjacent": [32, 8], "retain": [40, 10]}
    assert manifest["rejected"] == {"not of retain_share": 150, "page has no topic": 10}
    for category in ("forget", "adjacent"):
        assert manifest["counts"]["train"][category]["documents"] == whole["counts"]["train"][category]["documents"]


def test_a_share_holds_some_of_what_a_larger_one_does(source):
    files, _ = article_files(str(source / "articles"))
    topics, rule = read_topics(source / "topics.csv", "enwiki"), CategoryRule.of(wikipedia(source))

    def documents(share):
        corpus = Corpus.join(files, topics, rule, config(source / "none"), 5000, share)
        return {d.group for d in corpus.test()}, {d.group for d in corpus.train()}

    (small_test, small_train), (test, train), (all_test, all_train) = map(documents, (0.25, 0.5, 1.0))
    assert small_test < test < all_test
    assert small_train < train < all_train


def test_sgtm_train_reads_it(source, written):
    data = PreparedData.load(DataConfig(str(written)))
    assert data.train.present == ["forget", "adjacent", "retain"]
    assert data.train.longest == CONTEXT
    assert len(data.test.of("forget")) == manifest_of(written)["counts"]["test"]["forget"]["rows"]


def test_several_domains(source, tmp_path):
    given = wikipedia(source, forget="bio=STEM.Biology, chem = STEM.Chemistry,bio=STEM.Medicine & Health", adjacent="")
    data = PreparedData.load(DataConfig(str(prepare_wikipedia(config(tmp_path / "out"), given))), ("bio", "chem"))
    assert data.train.present == ["bio", "chem", "retain"]
    assert manifest_of(tmp_path / "out")["counts"]["test"]["bio"]["documents"] == 16


def test_a_name_stands_for_all_below_it():
    rule = CategoryRule.of(WikipediaConfig("topics.csv", forget="STEM.Biology", adjacent="STEM,Culture.Media"))
    topics = ("STEM.Biology", "STEM.Physics", "Culture.Media.Films", "Culture.Sports", "STEMS.Other")
    assert rule.categories_of(topics) == ["forget", "adjacent", "adjacent", "retain", "retain"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forget": "STEM.Bioloy"}, "no article has the topic 'STEM.Bioloy'; did you mean 'STEM.Biology'"),
        ({"adjacent": "stem.Chemistry"}, "did you mean 'STEM.Chemistry'"),
        ({"forget": "Culture.Sports"}, "no article has the topic 'Culture.Sports'"),  # of another wiki only
        ({"forget": "STEM.Chemistry"}, "cannot be forget and adjacent"),
        ({"forget": "a=STEM.Biology,b=STEM.Biology"}, "cannot be a and b"),
        ({"forget": "retain=STEM.Biology"}, "cannot name a domain"),
        ({"forget": " "}, "forget names no topic"),
        ({"wiki": "enwik"}, "did you mean 'enwiki'"),
        ({"source": "./nowhere"}, "does not exist"),
        ({"test_documents": 0}, "must be at least 1"),
        ({"retain_share": 0.0}, "retain_share=0.0 is no share"),
        ({"retain_share": 1.5}, "use more than 0, to 1"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(source, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        prepare_wikipedia(config(tmp_path / "out"), wikipedia(source, **change))
    assert not list(tmp_path.iterdir())


def test_a_category_that_matches_nothing_or_too_little(source, tmp_path):
    few = tmp_path / "few.parquet"
    parquet(few, ["100", "101"], ["a", "b"])
    with pytest.raises(ConfigError, match=r"category \w+ matches \d articles"):
        prepare_wikipedia(config(tmp_path / "out"), wikipedia(source, source=str(few)))
    with pytest.raises(ConfigError, match=r"category forget matches 60 articles.* larger test_fraction"):
        prepare_wikipedia(config(tmp_path / "out", test_fraction=0.01), wikipedia(source))


def test_bad_articles_are_counted(source, tmp_path):
    """Empty and foreign ids, a page twice, an empty text, and a text that stands in the test split as well."""
    found = pq.read_table(source / "articles").to_pydict()
    corpus = Corpus.join(
        article_files(str(source / "articles"))[0],
        read_topics(source / "topics.csv", "enwiki"),
        CategoryRule.of(wikipedia(source)),
        config(tmp_path / "out"),
        5000,
    )
    tested, (first, second, *_) = next(corpus.test()), [d.group for d in corpus.train()]
    texts = dict(zip(found["id"], found["text"], strict=True)) | {first: tested.text, second: " "}
    bad = tmp_path / "bad.parquet"
    pages = [*texts, None, "", "12a", "-3", "100"]
    parquet(bad, pages, [*texts.values(), "a", "b", "c", "d", "e"])
    prepare_wikipedia(config(tmp_path / "out"), wikipedia(source, source=str(bad)))
    manifest = manifest_of(tmp_path / "out")
    assert manifest["rejected"] == {
        "page id is no number": 4,
        "page seen before": 1,
        "page has no topic": 10,
        "empty text": 1,
        "in the test split as well": 1,
    }
    used = sum(c["documents"] for split in manifest["counts"].values() for c in split.values())
    assert used + sum(manifest["rejected"].values()) == manifest["origin"]["articles"] == len(pages)


@pytest.mark.parametrize("content", [{"id": ["1"], "body": ["x"]}, None])
def test_files_that_are_no_articles(tmp_path, content):
    file = tmp_path / "x.parquet"
    file.write_bytes(b"no parquet")
    if content:
        pq.write_table(pa.table(content), file)
    with pytest.raises(ConfigError, match=r"has no column \['text'\]" if content else "is no parquet file"):
        article_files(str(tmp_path))


KILLED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from sgtm.config import PrepareConfig, WikipediaConfig
from sgtm.data import tokenize
from sgtm.data.wikipedia import prepare_wikipedia

source, out, method, times = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
whole, count = getattr(tokenize._Writing, method), 0

def killing(self, *arguments):
    global count
    count += 1
    result = whole(self, *arguments)
    if count == times:
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(tokenize._Writing, method, killing)
tokenize._BATCH = 16
prepare_wikipedia(
    PrepareConfig(out, "train:300", 32, pack=True, test_fraction=0.2),
    WikipediaConfig(source / "topics.csv", str(source / "articles"), adjacent=sys.argv[5], shard=64, processes=2),
)
"""


def killed_after(source, out, method, times):
    """Documents behind which the killed run can go on; the processes that tokenised for it end by themselves."""
    words = [sys.executable, "-c", KILLED, str(source), str(out), method, str(times), ADJACENT]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    deadline = time.monotonic() + 30
    while any(is_running(int(pid)) for pid in ended.stdout.split()):
        assert time.monotonic() < deadline, "the processes that tokenise outlive the one that started them"
        time.sleep(0.05)
    assert not out.exists()
    return json.loads((out.with_name("out.partial") / tokenize.PROGRESS).read_text())["num_read"]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("method", "times"),
    [
        ("_add", 15),
        pytest.param("_save", 2, marks=pytest.mark.slow),
        pytest.param("save_splits", 1, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(source, tmp_path, monkeypatch, method, times):
    """Killed between two points to go on from, behind one, and after the last document; with other processes."""
    monkeypatch.setattr(tokenize, "_BATCH", 16)
    unbroken = hashes(prepare_wikipedia(config(tmp_path / "unbroken"), wikipedia(source)))
    read = killed_after(source, tmp_path / "out", method, times)
    added = []
    whole = tokenize._Writing._add
    monkeypatch.setattr(
        tokenize._Writing, "_add", lambda self, batch, ids: (added.extend(batch), whole(self, batch, ids))
    )
    out = prepare_wikipedia(config(tmp_path / "out"), wikipedia(source))
    assert len(added) == 300 - read < 250, "what was done is not done again"
    assert hashes(out) == unbroken
    assert {path.name for path in tmp_path.iterdir()} == {"unbroken", "out"}


def test_ctrl_c_is_one_line_and_the_run_goes_on(source, tmp_path):
    """It stops the program that tokenises as well as those that it started."""
    words = [sys.executable, "-m", "sgtm.cli", "data", "wikipedia", "--topics", source / "topics.csv"]
    words += [
        "--source",
        source / "articles",
        "--out",
        tmp_path / "out",
        "--tokenizer",
        "train:300",
        "--processes",
        "2",
    ]
    given = ["--context", str(CONTEXT), "--test-fraction", "0.2", "--adjacent", ADJACENT]
    with subprocess.Popen([*words, *given], stderr=subprocess.PIPE, text=True, start_new_session=True) as started:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out.partial").is_dir() and time.monotonic() < deadline:
            time.sleep(0.002)
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        os.killpg(started.pid, signal.SIGINT)
        said = started.communicate()[1]
    assert started.returncode == -signal.SIGINT, said
    assert len(children) == 2
    assert not any(is_running(int(pid)) for pid in children)
    assert said.splitlines()[-1].endswith(f"; the same command goes on from what {tmp_path / 'out'}.partial holds")
    assert "Traceback" not in said
    assert subprocess.run([*words, *given], check=False).returncode == 0


@pytest.mark.parametrize("change", ["seed", "topics"])
def test_a_run_with_other_settings_or_data_starts_anew(source, tmp_path, monkeypatch, change):
    monkeypatch.setattr(tokenize, "_BATCH", 16)
    broken = tokenize._Writing._add

    def failing(self, batch, encodings):
        if self.num_read >= 150:
            raise KeyboardInterrupt
        broken(self, batch, encodings)

    monkeypatch.setattr(tokenize._Writing, "_add", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare_wikipedia(config(tmp_path / "out"), wikipedia(source))
    assert (tmp_path / "out.partial" / tokenize.PROGRESS).is_file()
    monkeypatch.setattr(tokenize._Writing, "_add", broken)
    settings, given = config(tmp_path / "out"), wikipedia(source)
    if change == "seed":
        settings = replace(settings, seed=1)
    else:
        moved = tmp_path / "topics.csv"
        moved.write_text((source / "topics.csv").read_text() + "\nQ1,100,t,enwiki,STEM.Biology,0.99")
        given = replace(given, topics=moved)
    resumed = prepare_wikipedia(settings, given)
    assert hashes(resumed) == hashes(prepare_wikipedia(replace(settings, out=tmp_path / "fresh"), given))


def test_a_full_disk_says_so_and_the_run_goes_on(source, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize, "_BATCH", 16)
    whole = tokenize._RowWriter.end_file

    def full(self):
        if self.num_files == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(self)

    monkeypatch.setattr(tokenize._RowWriter, "end_file", full)
    with pytest.raises(ConfigError, match="the disk is full; free some space; the same command goes on"):
        prepare_wikipedia(config(tmp_path / "out"), wikipedia(source))
    assert (tmp_path / "out.partial" / tokenize.PROGRESS).is_file()
    monkeypatch.setattr(tokenize._RowWriter, "end_file", whole)
    out = prepare_wikipedia(config(tmp_path / "out"), wikipedia(source))
    assert hashes(out) == hashes(prepare_wikipedia(config(tmp_path / "unbroken"), wikipedia(source)))


def test_a_full_disk_leaves_nothing_where_a_run_cannot_go_on(tmp_path, monkeypatch):
    def full(self):
        raise OSError("No space left on device while writing")

    monkeypatch.setattr(tokenize._RowWriter, "end_file", full)
    with pytest.raises(ConfigError, match=r"the disk is full; free some space$"):
        tokenize.prepare(
            lambda: [tokenize.Document("a", "retain", "abc")], PrepareConfig(tmp_path / "o", "train:257"), {}
        )
    assert not list(tmp_path.iterdir())


def test_real_articles_against_a_plain_count(test_data):
    """Each article's topic as a few lines of Python find it, on the whole development set."""
    files, _ = article_files(str(test_data / "wiki" / "articles.parquet"))
    with open(test_data / "wiki" / "topics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    best = {}
    for _, page, _, _, topic, score in rows:
        key = (topic.endswith("*"), -float(score))
        if page not in best or key < best[page][0]:
            best[page] = (key, topic.replace(" ", "_"))
    found = read_topics(test_data / "wiki" / "topics.csv", "enwiki")
    given = WikipediaConfig(test_data / "wiki" / "topics.csv")
    corpus = Corpus.join(files, found, CategoryRule.of(given), PrepareConfig(test_data, test_fraction=0.1), 5000)
    documents = [*corpus.train(), *corpus.test()]
    assert (found.num_rows, found.rejected) == (len(rows), {})
    assert {d.group: d.topic for d in documents} == {page: topic for page, (_, topic) in best.items()}
    expected = {"STEM.Biology": "forget"} | dict.fromkeys(given.adjacent.split(","), "adjacent")
    assert all(d.category == expected.get(d.topic, "retain") for d in documents)


def test_the_command_and_the_inspection(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--topics", str(source / "topics.csv"), "--source", str(source / "articles"), "--adjacent", ADJACENT]
    small = ["--tokenizer", "train:300", "--context", str(CONTEXT), "--processes", "1"]
    main(["data", "wikipedia", *words, "--out", "out", *small])
    assert "written to out" in capsys.readouterr().out
    main(["data", "inspect", "out", "--examples", "2"])
    shown = capsys.readouterr().out
    assert "rows of topics: 900 = 580 used + rejected: 300 another wiki" in shown
    assert "stand in both splits: 0 (of 30 test documents)" in shown.replace("\n", " ")
    assert "copies within train: 0 of 270" in shown.replace("\n", " ")
    assert "Culture.Media.Films" in shown
    assert shown.count("forget, document") + shown.count("test, forget") >= 4


def test_inspection_of_no_data(tmp_path):
    with pytest.raises(SystemExit, match="holds no prepared data"):
        main(["data", "inspect", str(tmp_path)])
