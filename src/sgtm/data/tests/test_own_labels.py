"""Labels of one's own: from texts without labels to a training set."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("sklearn", reason="the extra `label` has scikit-learn")

from sgtm.cli import main
from sgtm.config import ClassifyConfig, ConfigError, DataConfig, LabelConfig
from sgtm.data import own_labels
from sgtm.data.classify import Classifier, fit, platt
from sgtm.data.mixture import PreparedData, training_rows
from sgtm.data.own_labels import CLASSIFIER, label_texts, summary
from sgtm.data.texts import texts

TOPIC = {
    "forget": ["cell", "gene", "virus", "protein", "enzyme", "membrane", "tissue", "organism", "mutation", "plasma"],
    "retain": ["treaty", "border", "army", "parliament", "election", "king", "empire", "duke", "council", "reform"],
}
COMMON = ["the", "of", "and", "a", "in", "was", "many", "that", "by", "some", "with", "for", "large", "small", "old"]
TARGETS = {"target_precision": 0.9, "target_recall": 0.9}


def rows_of(number, seed=0, share=0.3, strength=0.15):
    """Texts of 12 words, a share of them from their topic: hard enough to be mistaken now and then."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(number):
        category = "forget" if rng.random() < share else "retain"
        words = [rng.choice(TOPIC[category] if rng.random() < strength else COMMON) for _ in range(12)]
        if rng.random() < 0.1:
            words[0] = rng.choice(TOPIC["retain" if category == "forget" else "forget"])
        rows.append({"text": f"{' '.join(words)} {i}", "category": category, "page": i})
    return rows


def write(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def read(out):
    return pa.concat_tables([pq.read_table(f) for f in sorted(out.glob("part-*.parquet"))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    write(folder / "examples.parquet", rows_of(300, seed=1))
    (folder / "data").mkdir()
    rows = rows_of(2000, seed=2)
    write(folder / "data" / "a.parquet", rows[:900])
    write(folder / "data" / "b.parquet", rows[900:])
    return folder


def label(folder, out, **settings):
    config = ClassifyConfig(out, **({"shard_rows": 700} | TARGETS | settings))
    return label_texts(str(folder / "data"), config, examples=str(folder / "examples.parquet"))


@pytest.fixture(scope="module")
def labelled(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("labelled") / "out"
    return out, label(folder, out)


def test_every_row_gets_a_label_and_a_score(folder, labelled):
    out, manifest = labelled
    table = read(out)
    assert [pq.read_metadata(f).num_rows for f in sorted(out.glob("part-*"))] == [700, 700, 600]
    assert table["page"].to_pylist() == list(range(2000))
    assert table.column_names == ["text", "category", "page", "label", "score"]
    scores, labels = table["score"].to_numpy(), np.array(table["label"].to_pylist())
    t = manifest["thresholds"]["forget"]
    np.testing.assert_array_equal(labels == "forget", scores >= np.float32(t["forget"]))
    np.testing.assert_array_equal(labels == "retain", scores < np.float32(t["retain"]))
    assert manifest["rows"] == 2000 == sum(manifest["labels"].values())
    assert len(manifest["shards"]) == 3


def test_the_labels_are_as_good_as_was_asked(labelled):
    """On 2000 rows that it never saw; targets hold on average, so a margin of two standard deviations of the choice
    (from 210 examples)."""
    table = read(labelled[0])
    truth, said = (np.array(table[c].to_pylist()) for c in ("category", "label"))
    assert (truth[said == "forget"] == "forget").mean() > 0.9 - 0.08
    assert (said[truth == "forget"] == "retain").mean() < 0.1 + 0.08
    assert (said[truth == "forget"] == "forget").mean() > 0.5
    assert labelled[1]["truth"]["forget as forget"] == ((truth == "forget") & (said == "forget")).sum()
    measured = labelled[1]["held_out"]["measured"]["forget"]["precision"]
    assert measured["low"] <= (truth[said == "forget"] == "forget").mean() <= measured["high"]


def test_scores_are_calibrated():
    """One in ten is forget; scores say so on average, and in each third of them. (1200 examples leave the calibration
    an error of about a hundredth in the mean.)"""
    shown, new = rows_of(1200, seed=1, share=0.1), rows_of(4000, seed=2, share=0.1)
    codes = np.array([0 if row["category"] == "forget" else -1 for row in shown])
    classifier, own = fit([row["text"] for row in shown], codes, ("forget",), "words")
    scores = classifier.scores([row["text"] for row in new])[:, 0]
    truth = np.array([row["category"] == "forget" for row in new])
    assert scores.mean() == pytest.approx(truth.mean(), abs=0.02)
    assert own.mean() == pytest.approx((codes == 0).mean(), abs=0.01)
    for low, high in ((0, 0.2), (0.2, 0.6), (0.6, 1)):
        where = (scores >= low) & (scores < high)
        assert truth[where].mean() == pytest.approx(scores[where].mean(), abs=0.1)


def test_shards_and_seeds_reproduce(folder, labelled, tmp_path):
    again = label(folder, tmp_path / "again", shard_rows=123)
    assert read(tmp_path / "again").equals(read(labelled[0]))
    assert again["thresholds"] == labelled[1]["thresholds"]
    other = label(folder, tmp_path / "other", seed=5)
    assert other["thresholds"] != labelled[1]["thresholds"]


def test_a_stored_classifier_gives_the_same_scores(folder, labelled):
    classifier = Classifier.load(labelled[0] / CLASSIFIER)
    table = read(labelled[0])
    scores = classifier.scores(table["text"].to_pylist()[:50])[:, 0]
    np.testing.assert_array_equal(scores.astype(np.float32), table["score"].to_numpy()[:50])


def test_an_interrupted_run_goes_on(folder, labelled, tmp_path, monkeypatch):
    """In the middle of the third file; whole files are not written again."""
    out, close = tmp_path / "out", own_labels._close
    arguments = ["label", str(folder / "data"), "--examples", str(folder / "examples.parquet"), "--out", str(out)]
    arguments += ["--shard-rows", "700", "--target-precision", "0.9", "--target-recall", "0.9"]

    def dies(writer, out, number):
        if number == 2:
            raise KeyboardInterrupt
        close(writer, out, number)

    monkeypatch.setattr(own_labels, "_close", dies)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    monkeypatch.setattr(own_labels, "_close", close)
    with pytest.raises(ConfigError, match="not labelled to its end"):
        texts(str(out))
    names = sorted(p.name for p in out.iterdir())
    assert names == [
        CLASSIFIER,
        "manifest.json",
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet.partial",
    ]
    first = (out / "part-00000.parquet").stat().st_mtime_ns
    with pytest.raises(SystemExit, match="go on with --resume"):
        main(arguments)
    with pytest.raises(SystemExit, match="begun with another target_recall"):
        main([*arguments[:-1], "0.8", "--resume"])
    main([*arguments, "--resume"])
    assert (out / "part-00000.parquet").stat().st_mtime_ns == first
    assert read(out).equals(read(labelled[0]))
    assert not list(out.glob("*.partial"))
    with pytest.raises(SystemExit, match="exists already; remove it"):
        main([*arguments, "--resume"])


def test_a_column_that_has_labels_in_some_rows(tmp_path):
    """As JSON lines, with the labelled rows last: the column is empty where its type is looked for."""
    rows = rows_of(1500, seed=3)
    for i, row in enumerate(rows):
        row["said"] = row["category"] if i >= 1200 else None
        del row["category"]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = label_texts(str(file), ClassifyConfig(tmp_path / "out", **TARGETS), column="said")
    table = read(tmp_path / "out")
    assert table["label"].to_pylist()[1200:] == [row["said"] for row in rows[1200:]]  # what a person said stays
    assert {"forget", "retain"} <= set(table["label"].to_pylist()[:1200]) <= {"forget", "retain", "unlabeled"}
    assert manifest["examples"]["forget"] == sum(row["said"] == "forget" for row in rows)
    assert "truth" not in manifest


def test_a_category_that_is_known_of_some_rows(tmp_path):
    """Where it is known it stays what the text is; elsewhere the label stands for it."""
    rows = rows_of(900, seed=3)
    known = [row["category"] if i < 400 else None for i, row in enumerate(rows)]
    source = write(tmp_path / "x.parquet", [row | {"category": said} for row, said in zip(rows, known, strict=True)])
    label_texts(source, ClassifyConfig(tmp_path / "out", **TARGETS), column="category")
    documents = {d.text: d for d in texts(str(tmp_path / "out"))[0]()}
    for row, said in zip(rows, known, strict=True):
        document = documents[row["text"]]
        if said is not None:
            assert (document.category, document.label, document.only) == (said, said, "")
        elif document.label == "unlabeled":
            assert (document.category, document.only) == ("retain", "train")
        else:
            assert (document.category, document.only) == (document.label, "")


def test_a_column_named_label_is_completed(folder, tmp_path):
    rows = rows_of(600, seed=3)
    labels = [row.pop("category") if i < 300 else None for i, row in enumerate(rows)]
    source = write(tmp_path / "x.parquet", [row | {"label": said} for row, said in zip(rows, labels, strict=True)])
    label_texts(source, ClassifyConfig(tmp_path / "out", **TARGETS), column="label")
    table = read(tmp_path / "out")
    assert table.column_names.count("label") == 1
    assert table["label"].to_pylist()[:300] == labels[:300]
    assert None not in table["label"].to_pylist()


def test_examples_that_stand_in_the_data_keep_their_label(folder, tmp_path):
    rows = rows_of(300, seed=1)
    manifest = label_texts(
        write(tmp_path / "x.parquet", rows),
        ClassifyConfig(tmp_path / "out", **TARGETS),
        examples=str(folder / "examples.parquet"),
    )
    assert set(manifest["truth"]) == {"forget as forget", "retain as retain"}


def test_from_texts_without_truth_to_training_rows(folder, tmp_path, capsys):
    rows = [{"text": row["text"]} for row in rows_of(1500, seed=4)]
    source = write(tmp_path / "x.parquet", rows)
    words = ["label", source, "--examples", str(folder / "examples.parquet"), "--out", str(tmp_path / "out")]
    main([*words, "--target-precision", "0.9", "--target-recall", "0.9"])
    assert "held-out examples" in capsys.readouterr().out
    prepared = tmp_path / "prepared"
    small = ["--tokenizer", "train:400", "--context", "64", "--test-fraction", "0.3"]
    main(["data", "texts", "--source", str(tmp_path / "out"), "--out", str(prepared), *small])
    assert "labels stand for it" in capsys.readouterr().out
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["origin"]["truth"] == "label"
    data = PreparedData.load(DataConfig(str(prepared)))
    labels = read(tmp_path / "out")["label"].to_pylist()
    assert labels.count("unlabeled") > 20
    # The test split has confident documents alone; those without a label are all trained on.
    counts = training_rows(data.train, LabelConfig(), "modes", 0)[1]
    assert counts["retain as unlabeled"] == labels.count("unlabeled")
    assert set(counts) == {"forget as forget", "retain as retain", "retain as unlabeled"}
    assert set(data.test.labels[data.test.categories == 0]) == {0}
    assert set(data.test.labels[data.test.categories == 2]) == {1}


def test_from_texts_with_truth_to_a_confusion(labelled, tmp_path):
    small = ["--tokenizer", "train:400", "--context", "64", "--test-fraction", "0.2"]
    main(["data", "texts", "--source", str(labelled[0]), "--out", str(tmp_path / "prepared"), *small])
    data = PreparedData.load(DataConfig(str(tmp_path / "prepared")))
    counts = training_rows(data.train, LabelConfig(), "modes", 0)[1]
    assert {"forget as forget", "forget as unlabeled", "retain as retain"} <= set(counts)
    filtered, _ = training_rows(data.train, LabelConfig(), "filter", 0)
    assert len(filtered) == len(data.train) - sum(n for name, n in counts.items() if name.endswith("as forget"))


def test_several_domains(tmp_path):
    rng, rows = np.random.default_rng(0), []
    topics = {"bio": TOPIC["forget"], "state": TOPIC["retain"], "none": COMMON}
    for i in range(900):
        kind = list(topics)[i % 3]
        rows.append({"text": " ".join(rng.choice(topics[kind], 6)) + f" {i}", "category": kind})
    examples = write(tmp_path / "examples.parquet", rows[:300])
    source = write(tmp_path / "x.parquet", rows[300:])
    config = ClassifyConfig(tmp_path / "out", domains="bio,state")
    manifest = label_texts(source, config, examples=examples)
    table = read(tmp_path / "out")
    assert table.column_names[-3:] == ["label", "score_bio", "score_state"]
    wrong = {name for name in manifest["truth"] if name not in ("bio as bio", "state as state", "none as retain")}
    assert sum(manifest["truth"][name] for name in wrong) < 0.1 * 600
    assert set(manifest["labels"]) >= {"bio", "state", "retain"}


def test_what_somebody_labelled_stays_where_a_sample_is_learned_from(tmp_path, monkeypatch):
    """All of it, though the classifier would say otherwise."""
    monkeypatch.setattr("sgtm.data.examples._MOST_EXAMPLES", 200)
    rows = rows_of(600, seed=1)
    other = {"forget": "retain", "retain": "forget"}
    rows = [
        row | {"category": other[row["category"]] if i % 20 == 0 else row["category"]} for i, row in enumerate(rows)
    ]
    examples, source = write(tmp_path / "examples.parquet", rows), write(tmp_path / "x.parquet", rows)
    label_texts(source, ClassifyConfig(tmp_path / "out", **TARGETS), examples=examples)
    said = dict(zip(*(read(tmp_path / "out")[c].to_pylist() for c in ("text", "label")), strict=True))
    first = {}
    for row in rows:
        first.setdefault(row["text"], row["category"])
    assert said == first


def test_values_can_be_numbers(tmp_path):
    rows = [{"text": r["text"], "label": int(r["category"] == "forget")} for r in rows_of(300, seed=1)]
    examples = write(tmp_path / "examples.parquet", rows)
    source = write(tmp_path / "x.parquet", rows_of(200, seed=2))
    config = ClassifyConfig(tmp_path / "out", domains="forget=1", **TARGETS)
    assert "forget as forget" in label_texts(source, config, examples=examples)["truth"]


def test_rare_domains_are_cautioned_about(tmp_path):
    """Half of the examples are forget, one in twenty rows is: the precision that was measured does not hold."""
    examples = write(tmp_path / "examples.parquet", rows_of(600, seed=1, share=0.5))
    source = write(tmp_path / "x.parquet", rows_of(4000, seed=2, share=0.05))
    manifest = label_texts(source, ClassifyConfig(tmp_path / "a", **TARGETS), examples=examples)
    assert "caution: forget seems to be" in summary(manifest)
    truth = manifest["truth"]
    naive = truth["forget as forget"] / (truth["forget as forget"] + truth["retain as forget"])
    assert naive < 0.7
    config = ClassifyConfig(tmp_path / "b", prevalence="0.05", target_precision=0.5, target_recall=0.8)
    manifest = label_texts(source, config, examples=examples)
    assert "caution" not in summary(manifest)
    truth = manifest["truth"]
    assert truth["forget as forget"] / (truth["forget as forget"] + truth.get("retain as forget", 0)) > naive + 0.05


def test_a_misspelt_label_is_told(folder, tmp_path):
    rows = rows_of(300, seed=1)
    for row in rows[:40]:
        row["category"] = {"forget": "forgett", "retain": "history"}[row["category"]]
    examples = write(tmp_path / "examples.parquet", rows)
    manifest = label_texts(str(folder / "data"), ClassifyConfig(tmp_path / "out", **TARGETS), examples=examples)
    said = summary(manifest)
    misspelt = manifest["other_labels"]["forgett"]
    assert f"'forgett' ({misspelt})" in said
    assert "caution: examples labelled 'forgett' were taken as examples of no domain; did you mean 'forget'?" in said
    assert said.count("caution: examples") == 1


def test_what_has_no_text_has_no_label(folder, tmp_path):
    rows = [*rows_of(50, seed=3), {"text": "", "category": "retain", "page": 50}, {"text": None, "page": 51}]
    source = write(tmp_path / "data.parquet", rows)
    examples = str(folder / "examples.parquet")
    label_texts(source, ClassifyConfig(tmp_path / "out", **TARGETS), examples=examples)
    assert read(tmp_path / "out")["label"].to_pylist()[50:] == ["unlabeled", "unlabeled"]


def test_characters_and_an_encoder(folder, tmp_path):
    """A random encoder of words still tells some of them apart."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", *TOPIC["forget"], *TOPIC["retain"], *COMMON]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path / "encoder")
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    rows = rows_of(400, seed=1, strength=0.8)
    codes = np.array([0 if row["category"] == "forget" else -1 for row in rows])
    for features in ("characters", str(tmp_path / "encoder")):
        classifier, _ = fit([row["text"] for row in rows[:300]], codes[:300], ("forget",), features)
        scores = classifier.scores([row["text"] for row in rows[300:]])[:, 0]
        is_forget = codes[300:] == 0
        assert scores[is_forget].mean() > scores[~is_forget].mean() + 0.3
        classifier.save(tmp_path / "c.safetensors")
        again = Classifier.load(tmp_path / "c.safetensors").scores([row["text"] for row in rows[300:]])[:, 0]
        np.testing.assert_allclose(again, scores, atol=1e-6)  # an encoder's batches are the same, its sums in fp32


def test_platt_finds_the_odds_again():
    rng = np.random.default_rng(0)
    decisions = rng.normal(size=20_000)
    truth = rng.random(20_000) < 1 / (1 + np.exp(-(1.7 * decisions - 0.6)))
    assert platt(decisions, truth) == pytest.approx((1.7, -0.6), abs=0.08)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domains": "biology"}, r"no example labelled 'biology' \(it has"),
        ({"domains": "forgt"}, "did you mean 'forget'"),
        ({"text_column": "txt"}, "no column 'txt'; did you mean 'text'"),
        ({"target_precision": 0.999}, "target_precision=0.999 is not reached"),
        ({"target_recall": 0.999}, "target_recall=0.999 is not reached"),
        ({"features": "./no/encoder"}, "no encoder in a folder"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_nothing(folder, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        label(folder, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_precision": 1.5}, "target_precision=1.5"),
        ({"held_out": 0.9}, "held_out=0.9"),
        ({"domains": "a,a"}, "one twice"),
        ({"domains": "retain"}, "cannot name a domain"),
        ({"prevalence": "0.1,0.2"}, "a share between 0 and 1 for each"),
        ({"prevalence": "x"}, "no list of numbers"),
        ({"shard_rows": 0}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        ClassifyConfig(tmp_path, **settings)


def test_data_and_examples_that_do_not_fit_are_refused(folder, labelled, tmp_path):
    examples, data = str(folder / "examples.parquet"), str(folder / "data")
    config = ClassifyConfig(tmp_path / "out", **TARGETS)
    with pytest.raises(ConfigError, match="--examples FILE, or --column"):
        label_texts(data, config)
    with pytest.raises(ConfigError, match="no column 'page2'; did you mean 'page'"):
        label_texts(data, config, column="page2")
    with pytest.raises(ConfigError, match="'label' already"):
        label_texts(str(labelled[0]), config, examples=examples)
    with pytest.raises(ConfigError, match="does not exist"):
        label_texts("./none.parquet", config, examples=examples)
    with pytest.raises(ConfigError, match="lies in"):
        label_texts(data, ClassifyConfig(folder / "data" / "out"), examples=examples)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("empty.parquet", "empty.jsonl"):
        with pytest.raises(ConfigError, match=r"cannot be read|has no rows|no column 'text'"):
            label_texts(str(tmp_path / name), config, examples=examples)
    with pytest.raises(ConfigError, match=r"no example labelled 'forget' \(it has .* and 294 other values"):
        label_texts(examples, config, column="page")
    few = write(tmp_path / "few.parquet", rows_of(12, seed=1))
    with pytest.raises(ConfigError, match="too few; label more"):
        label_texts(data, config, examples=few)
    noise = [row | {"text": f"{i}"} for i, row in enumerate(rows_of(80, seed=1))]
    with pytest.raises(ConfigError, match=r"no better than chance|not reached"):
        label_texts(data, config, examples=write(tmp_path / "noise.parquet", noise))
    assert not (tmp_path / "out").exists()
