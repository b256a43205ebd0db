"""Scores of documents, from prepared data to the labels that depend on them."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sgtm.cli import main
from sgtm.config import ConfigError, DataConfig, LabelConfig, PrepareConfig
from sgtm.data.mixture import PreparedData, step_draw_chances, training_rows
from sgtm.data.scores import write_scores
from sgtm.data.tokenize import Document, prepare
from sgtm.evaluate.difficulty import document_losses
from sgtm.evaluate.loss import evaluate_loss
from sgtm.train.run import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentences):
    """Unpacked rows of at most 16 tokens, so that long documents have several."""

    def documents():
        for i, (english, spanish) in enumerate(sentences):
            yield Document(english, "retain", english)
            yield Document(english, "forget", spanish if i % 2 else spanish.replace("vio", "comió"))

    out = tmp_path_factory.mktemp("scored") / "data"
    return prepare(documents, PrepareConfig(out, "train:300", 16, test_fraction=0.1), {"source": "test"})


@pytest.fixture(scope="module")
def data(folder):
    return PreparedData.load(DataConfig(str(folder)))


def model_for(data):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(data.tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout=0.5,  # to be off
        initializer_range=0.5,  # losses that differ
    )
    return GPTNeoXForCausalLM(config)


def test_losses_of_documents_are_those_of_their_rows(data):
    model = model_for(data)
    numbers, losses = document_losses(model, data.train, batch_size=7)
    assert (numbers == np.unique(data.train.documents)).all()
    several = [n for n in numbers if (data.train.documents == n).sum() > 1][:3]
    for number in [*several, *numbers[:3]]:
        rows = data.train.select(np.flatnonzero(data.train.documents == number))
        assert losses[numbers == number] == pytest.approx(evaluate_loss(model, rows).mean, rel=1e-5)
    weights = [max(int(n), 0) for n in np.bincount(data.train.documents, data.train.lengths - 1)[numbers]]
    assert np.average(losses, weights=weights) == pytest.approx(evaluate_loss(model, data.train).mean, rel=1e-5)


def test_scores_by_command_and_the_labels_that_depend_on_them(folder, data, tmp_path, capsys):
    model = model_for(data)
    save_model(model, data.tokenizer, tmp_path / "run" / "model")
    main(["data", "score", str(folder), "--by", "loss", "--model", str(tmp_path / "run")])
    assert "written to" in capsys.readouterr().out
    numbers, losses = document_losses(model, data.train)
    loss_of = dict(zip(numbers.tolist(), losses.tolist(), strict=True))
    config = LabelConfig(undiscovered=0.25, retain_fraction=0.1, depends_on="loss", strength=float("inf"))
    rows, _ = training_rows(data.train, config, "modes", 0)
    of_rows = np.array([loss_of[d] for d in rows.documents.tolist()])
    forget = rows.categories == 0
    assert of_rows[forget & (rows.modes == 0)].min() >= of_rows[forget & (rows.modes == 2)].max() - 1e-9
    documents = [len(np.unique(rows.documents[forget & (rows.modes == mode)])) for mode in (0, 2)]
    assert documents[0] / sum(documents) == pytest.approx(0.25, abs=0.002)
    with pytest.raises(SystemExit, match=r"exists already \(made with .*run"):
        main(["data", "score", str(folder), "--by", "loss", "--model", str(tmp_path / "run")])


def test_topics_are_found_and_missed_as_a_whole(folder, data):
    pytest.importorskip("sklearn", reason="the extra `label` has scikit-learn")
    main(["data", "score", str(folder), "--by", "topic", "--topics", "2"])
    table = pq.read_table(folder / "scores" / "topic.parquet")
    topic = dict(zip(table["document"].to_pylist(), table["score"].to_pylist(), strict=True))
    train = data.train
    assert set(topic) == set(train.documents.tolist())
    of_rows = np.array([topic[d] for d in train.documents.tolist()])
    forget = train.categories == 0
    assert set(of_rows[forget]) == {0, 1}
    assert set(of_rows[~forget]) == {2, 3}
    share = np.mean([topic[d] == 0 for d in np.unique(train.documents[forget]).tolist()])
    config = LabelConfig(undiscovered=float(share), depends_on="topic", strength=float("inf"))
    missed = [training_rows(train, config, "modes", seed)[0].modes[forget] == 0 for seed in range(8)]
    assert any((m == (of_rows[forget] == 0)).all() for m in missed)


def test_a_classifiers_scores(folder, data):
    pytest.importorskip("sklearn", reason="the extra `label` has scikit-learn")
    main(["data", "score", str(folder), "--by", "classifier", "--examples", "40"])
    table = pq.read_table(folder / "scores" / "classifier.parquet").sort_by("document")
    forget = np.isin(table["document"].to_numpy(), data.train.documents[data.train.categories == 0])
    scores = table["score"].to_numpy()
    assert scores[forget].mean() > scores[~forget].mean() + 0.5
    config = LabelConfig(precision=0.9, recall=0.9, retain_fraction=0.1, depends_on="classifier", strength=float("inf"))
    assert training_rows(data.train, config, "modes", 0)[1]["retain as forget"] > 0


def test_lengths_need_no_scores_but_rows_of_documents(data, prepared):
    config = LabelConfig(undiscovered=0.25, depends_on="length", strength=float("inf"))
    rows, _ = training_rows(data.train, config, "modes", 0)
    lengths = np.bincount(rows.documents, rows.lengths)[rows.documents]
    forget = rows.categories == 0
    assert lengths[forget & (rows.modes == 0)].max() <= lengths[forget & (rows.modes == 2)].min()
    packed = PreparedData.load(DataConfig(str(prepared)))
    with pytest.raises(ConfigError, match="without --pack"):
        training_rows(packed.train, config, "modes", 0)


def test_scores_that_are_not_there_or_of_other_data_are_refused(data, prepared, tmp_path):
    config = LabelConfig(undiscovered=0.25, depends_on="loss")
    packed = PreparedData.load(DataConfig(str(prepared)))
    with pytest.raises(ConfigError, match=r"sgtm data score .* --by loss"):
        training_rows(packed.train, config, "modes", 0)
    write_scores(tmp_path, "loss", np.arange(3), [1.0, 2.0, 3.0], {})
    with pytest.raises(ConfigError, match="belongs to other data"):
        training_rows(replace(data.train, folder=tmp_path), config, "modes", 0)
    with pytest.raises(ConfigError, match=r"data\.parts have no scores"):
        training_rows(replace(data.train, folder=None), config, "modes", 0)
    with pytest.raises(ConfigError, match="step_draw"):
        step_draw_chances(data.train, config, "modes")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "loss"], "needs a reference model"),
        (["--by", "loss", "--model", "./nowhere"], "neither a folder"),
        (["--by", "topic", "--topics", "100000"], "at least 2 and at most"),
        (["--by", "classifier", "--examples", "3"], "use 8 to"),
    ],
)
def test_mistakes_are_refused(prepared, words, message):
    with pytest.raises(SystemExit, match=message):
        main(["data", "score", str(prepared), *words])
    with pytest.raises(SystemExit, match="has no manifest"):
        main(["data", "score", "./nowhere", "--by", "topic"])


def test_topics_of_texts_with_few_words(tmp_path):
    """Many documents, fewer different words than the dimensions that texts are clustered in."""
    pytest.importorskip("sklearn", reason="the extra `label` has scikit-learn")
    words = {"retain": ["cat", "dog", "sun", "hill"], "forget": ["gato", "perro", "sol", "cerro"]}

    def documents():
        rng = np.random.default_rng(0)
        for i in range(120):
            for category, known in words.items():
                yield Document(f"{category}{i}", category, " ".join(rng.choice(known, 12)))

    folder = prepare(
        documents, PrepareConfig(tmp_path / "data", "train:300", 16, test_fraction=0.1), {"source": "test"}
    )
    main(["data", "score", str(folder), "--by", "topic", "--topics", "2"])
    assert len(set(pq.read_table(folder / "scores" / "topic.parquet")["score"].to_pylist())) == 4
