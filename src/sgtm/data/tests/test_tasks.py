"""Questions are about held-out text, true to it in one answer alone, and the same for the same seed."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import yaml
from datasets import DatasetDict, concatenate_datasets, load_from_disk
from hypothesis import given
from hypothesis import strategies as st

from sgtm.cli import main
from sgtm.config import ConfigError, PrepareConfig, TasksConfig
from sgtm.data.documents import documents
from sgtm.data.passages import SPAN, Passage, lower_case_words, read_corpus, span_hashes
from sgtm.data.questions import Vocabulary, own_words, questions
from sgtm.data.tasks import make_tasks
from sgtm.data.tokenize import Document, prepare
from sgtm.data.tokenizer import load_tokenizer

KINDS = ("cloze", "swapped", "replaced", "fact")
OWN = {
    "forget": "cell gene enzyme protein virus tissue membrane plasma root leaf stem seed bone blood nerve skin",
    "retain": "engine wheel river bridge market village castle harbour road ship train coin king law song stone",
}
WORDS = {category: words.split() for category, words in OWN.items()}
COMMON = ["the", "was", "near", "some", "with", "and", "then", "over"]


def story(category: str, rng: np.random.Generator) -> str:
    """Two lines of words, of which every other one is the category's own."""
    lines = []
    for _ in range(2):
        own = rng.permutation(WORDS[category])[: len(COMMON)]
        words = [w for pair in zip(rng.permutation(COMMON), own, strict=True) for w in pair]
        lines.append(f"{words[0].title()} {' '.join(words[1:])}.")
    return "\n".join(lines)


def stories() -> list[Document]:
    rng = np.random.default_rng(0)
    return [Document(str(i), c, story(c, rng)) for i in range(300) for c in ("forget", "retain")]


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "not packed"])
def data(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("stories") / "data"
    config = PrepareConfig(out, "train:400", 64, pack=request.param, test_fraction=0.2)
    return prepare(stories, config, {"source": "test"})


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("tasks") / "tasks"
    make_tasks(data, TasksConfig(out, items=60, name="t"))
    return out


def lines_of(data, split: str) -> set[str]:
    """Lines of the documents of a split, told by ``documents`` and the tokenizer."""
    tokenizer = load_tokenizer(str(data / "tokenizer"))
    pack = json.loads((data / "manifest.json").read_text())["settings"]["pack"]
    rows = documents(load_from_disk(data)[split], tokenizer.eos_token_id, pack)
    return {line for _, ids in rows for line in tokenizer.decode(ids).splitlines()}


def read(folder, task: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]


def test_documents_come_back_as_they_were(data):
    written = {line for d in stories() for line in d.text.splitlines()}
    train, test = lines_of(data, "train"), lines_of(data, "test")
    assert train | test == written
    assert not train & test


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("category", ["forget", "retain"])
def test_one_answer_is_the_held_out_text(data, made, kind, category):
    found = read(made, f"t_{kind}_{category}")
    test, training = lines_of(data, "test"), "\n".join(lines_of(data, "train"))
    assert len(found) >= 40
    assert len({q["answer"] for q in found}) == (4 if kind in ("cloze", "fact") else 2)
    for q in found:
        texts = [f"{q['context']} {choice}" for choice in q["choices"]]
        stands = [any(text in line for line in test) for text in texts]
        assert stands == [i == q["answer"] for i in range(len(texts))]
        assert kind == "fact" or texts[q["answer"]] not in training  # a fact's text may be its first four words


def test_minimal_pairs_are_minimal(data, made):
    counts = Counter(w for line in lines_of(data, "train") for w in lower_case_words(line))
    for q in read(made, "t_swapped_forget"):
        true, other = q["choices"][q["answer"]].split(), q["choices"][1 - q["answer"]].split()
        assert true[2:] == other[2:]
        assert true[:2] == other[1::-1] != other[:2]
    for q in read(made, "t_replaced_forget"):
        true, other = (re.findall(r"\w+", q["choices"][i]) for i in (q["answer"], 1 - q["answer"]))
        assert true[1:] == other[1:]
        assert true[0] != other[0]
        assert int(np.log2(counts[true[0]])) == int(np.log2(counts[other[0]]))


def test_facts_are_words_of_the_category(made):
    for category, own in WORDS.items():
        for q in read(made, f"t_fact_{category}"):
            assert set(q["choices"]) <= set(own)
            assert not set(q["choices"]) & set(q["context"].split())


def test_endings_are_of_other_documents(made):
    for q in read(made, "t_cloze_retain"):
        assert len({len(choice.split()) for choice in q["choices"]}) == 1


def test_the_same_seed_writes_the_same(data, made, tmp_path):
    for seed, is_same in ((0, True), (1, False)):
        make_tasks(data, TasksConfig(tmp_path / str(seed), items=60, name="t", seed=seed))
        pairs = [(p.read_bytes(), (tmp_path / str(seed) / p.name).read_bytes()) for p in made.glob("*.jsonl")]
        assert len(pairs) == 8
        assert all((a == b) == is_same for a, b in pairs)


def test_a_task_without_another(data, made, tmp_path):
    """Questions of one kind do not depend on which others are made."""
    make_tasks(data, TasksConfig(tmp_path / "one", kinds=["fact"], items=60, name="t"))
    assert read(tmp_path / "one", "t_fact_retain") == read(made, "t_fact_retain")
    assert len(list((tmp_path / "one").glob("*.jsonl"))) == 2


def test_the_manifest_and_the_description(data, made):
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["tokenizer_sha256"] == json.loads((data / "manifest.json").read_text())["tokenizer_sha256"]
    for task, about in manifest["tasks"].items():
        found = read(made, task)
        assert about["questions"] == len(found)
        assert about["documents"] == len({q["document"] for q in found})
        assert about["chance"] == 1 / len(found[0]["choices"])
        assert yaml.safe_load((made / f"{task}.yaml").read_text())["task"] == task


def test_text_that_stands_in_training_is_left_out(data, tmp_path):
    """Of test documents put into training too, nothing is asked; nor of passages that a training document quotes."""
    both = load_from_disk(data)
    numbers = sorted(set(both["test"]["document"]))[::2]
    copies = both["test"].filter(lambda document: document in numbers, input_columns="document")
    leaky = DatasetDict(train=concatenate_datasets([both["train"], copies]), test=both["test"])
    leaky.save_to_disk(tmp_path / "data")
    for name in ("manifest.json", "tokenizer"):
        (tmp_path / "data" / name).symlink_to(data / name)
    clean = read_corpus(data, 96, 1000, 0)
    corpus = read_corpus(tmp_path / "data", 96, 1000, 0)
    taken, known = ({p.text for of_category in c.passages.values() for p in of_category} for c in (corpus, clean))
    assert not clean.left_out
    assert len(taken) + corpus.left_out.total() == len(known)
    assert 0.2 * len(known) < len(taken) < 0.8 * len(known)
    training = lines_of(tmp_path / "data", "train")
    assert not any(passage in line for passage in taken for line in training)


def test_a_quotation_of_enough_tokens_is_found(tmp_path):
    """A training document that is no copy, but has a test passage inside."""
    quoted = stories()[0].text.splitlines()[0]
    training = [*stories()[2:], Document("quotes", "retain", f"He said: {quoted} And so on.")]
    config = PrepareConfig(tmp_path / "data", "train:400", 64)
    path = prepare(lambda: training, config, {}, lambda: stories()[:2])
    corpus = read_corpus(path, 96, 1000, 0)
    assert corpus.left_out == {f"{SPAN} tokens in a row stand in training": 1}
    assert quoted not in {p.text for p in corpus.passages["forget"]}
    assert len(corpus.passages["forget"]) == 1


@given(st.lists(st.integers(0, 50_000), max_size=60))
def test_span_hashes_are_the_polynomial(ids):
    base = 0x9E3779B97F4A7C15
    spans = [ids[i : i + SPAN] for i in range(len(ids) - SPAN + 1)]
    wanted = [sum((x + 1) * base ** (SPAN - 1 - j) for j, x in enumerate(span)) % 2**64 for span in spans]
    assert span_hashes(np.array(ids, np.int32)).tolist() == wanted


def test_passages_fit_and_are_whole_words(data):
    corpus = read_corpus(data, 20, 50, 0)
    texts = [p.text for p in corpus.passages["forget"]]
    assert len(texts) == 50
    assert max(corpus.num_tokens(texts)) <= 21  # the first word may begin with a token of its own
    assert {w.strip(".").lower() for t in texts for w in t.split()} <= {*COMMON, *WORDS["forget"]}


def test_words_are_whole():
    assert lower_case_words("Don't say x-ray, it's l’eau; say eau, é2 or Été été.") == [
        "say",
        "say",
        "eau",
        "or",
        "été",
    ]


def test_frequency_classes():
    vocabulary = Vocabulary.of({"a": 8, "b": 15, "c": 16, "rare": 7})
    assert vocabulary.class_of == {"a": 3, "b": 3, "c": 4}
    assert vocabulary.others("a", 3, (), np.random.default_rng(0)) == ["b"]
    assert vocabulary.others("a", 3, ["b"], np.random.default_rng(0)) == []


def test_own_words_are_content_words():
    """Not of all categories, and no function words, which no other category has where it is another language."""
    rare = {f"w{i}x": 1 for i in range(9000)}
    words = {"forget": Counter(rare | {"gene": 10, "y": 990, "time": 20}), "retain": Counter(time=20, river=20)}
    own = own_words(words, "forget")
    assert own.keys() == {*rare, "gene"}
    assert own_words(words, "retain") == {"time": 20, "river": 20}  # of two words, each may be half of the text


def test_what_cannot_be_asked_is_not(data):
    """No question about words that are too few, apart by more than a space, or of no class."""
    rng = np.random.default_rng(0)
    odd = [Passage("One  two  three  four  five  six", 0), Passage("A b c D E F", 1)]
    for kind in KINDS:
        assert list(questions(kind, odd, {"forget": Counter()}, "forget", 4, rng)) == []


def test_the_command(data, tmp_path, capsys):
    main(["data", "tasks", str(data), "--out", str(tmp_path / "x"), "--items", "30", "--kinds", "cloze"])
    assert "data_cloze_forget: 30 questions about" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": 1}, "choices=1"),
        ({"items": 0}, "tasks.items=0"),
        ({"kinds": []}, "names no task"),
        ({"passage": 4}, "has no 20 passages"),
    ],
)
def test_settings_that_make_no_task(data, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        make_tasks(data, TasksConfig(tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(data, tmp_path):
    with pytest.raises(ConfigError, match="exists already"):
        make_tasks(data, TasksConfig(tmp_path))
    with pytest.raises(ConfigError, match=r"has no manifest\.json"):
        make_tasks(tmp_path, TasksConfig(tmp_path / "out"))
