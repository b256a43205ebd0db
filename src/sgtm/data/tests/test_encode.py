"""The encoder gives the tokenizer's own ids, whatever came before and whatever the text looks like."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from sgtm.data import encode
from sgtm.data.encode import Encoder, Encoders, words_stand_alone

SPACES = [" ", " ", " ", "  ", "\n", "\n\n", "\n\n", "\n\n\n", "\t", "\r\n", "\x85", "\xa0", "\u2003", "\u3000", "\x1c"]
PIECES = [
    *SPACES,
    "a",
    "the",
    "cat",
    "'s",
    "'",
    "12",
    "é",
    "漢",
    "🙂",
    ".",
    ",",
    "Ġ",
    "<|endoftext|>",
    "\ufeff",
    "\0",
    "cat,",
    "12.",
    "é)",
    "sat!?",
]
TEXTS = st.lists(st.one_of(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.text(max_size=20)))


def trained(cut=None, more=()) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut or pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat\n\nthe  cat's   mat 12", "  a\n a\t b\n\n\n", *more] * 50, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return trained()


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(TEXTS, max_size=3))
def test_ids_are_the_tokenizers_own(tokenizer, batches):
    encoder = Encoder(tokenizer)
    assert encoder.is_cut
    for texts in batches:
        expected = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
        assert [ids.tolist() for ids in encoder(texts)] == expected


def test_more_words_than_are_remembered(tokenizer, monkeypatch):
    monkeypatch.setattr(encode, "_KNOWN_PARTS", 10)
    monkeypatch.setattr(encode, "_PARTS", 3)
    encoder = Encoder(tokenizer)
    for n in range(5):
        texts = [" ".join(f"cat{n * i}" for i in range(20)), "the cat", ""]
        expected = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
        assert [ids.tolist() for ids in encoder(texts)] == expected
    assert len(encoder.known) <= 10


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        lambda t: setattr(t, "normalizer", normalizers.NFC()),
        lambda t: t.add_special_tokens(["of two words"]),
        lambda t: t.add_tokens(["Ġmat"]),
        lambda t: setattr(t.model, "dropout", 0.5),
        lambda t: t.enable_truncation(3),
        lambda t: t.enable_padding(length=20),
    ],
)
def test_other_tokenizers_see_whole_texts(change):
    tokenizer = trained()
    assert words_stand_alone(tokenizer)
    change(tokenizer)
    assert not Encoder(tokenizer).is_cut


def test_characters_that_have_no_token():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(["the, a\n\nthe"] * 5, trainers.BpeTrainer(vocab_size=60, show_progress=False))
    encoder = Encoder(tokenizer)
    for texts in (["z the", "the\n\nz the"], ["z, the z, a", "the\n\nz, the"]):
        expected = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
        assert [ids.tolist() for ids in encoder(texts)] == expected


def test_paragraphs_without_spaces_are_not_remembered(tokenizer):
    encoder = Encoder(tokenizer)
    encoder(["漢" * 40 + "\n\n" + "字" * 40 + " " + "cat" * 20 + " cat"])
    assert set(encoder.known) == {" cat"}


@pytest.mark.parametrize("added", ["at", "1", ",", ".\u00b2", "t,", "a,Ġ"])
def test_added_tokens_may_stand_anywhere(added):
    tokenizer = trained()
    tokenizer.add_tokens([added])
    texts = ["the cat, sat.\n\ncat, 112. sat", "the catat, 1.\u00b2 sat.\u00b2"]
    expected = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    encoder = Encoder(tokenizer)
    assert encoder.is_cut
    assert [ids.tolist() for ids in encoder(texts)] == [ids.tolist() for ids in encoder(texts)] == expected


@pytest.mark.parametrize("processes", [1, 2])
def test_lots_come_back_in_order(tokenizer, processes):
    lots = [[f"the cat{n} {'sat ' * (n * i % 7)}" for i in range(50 - n)] for n in range(9)]
    with Encoders(processes) as encoders:
        encoders.load(tokenizer.to_str())
        found = [[ids.tolist() for ids in lot] for lot in encoders(lots)]
    assert found == [[e.ids for e in tokenizer.encode_batch(lot, add_special_tokens=False)] for lot in lots]
    assert all(worker.returncode is not None for worker, _ in encoders.workers)


@pytest.mark.parametrize(
    "texts", [["a \xa0", "b \xa0\xa0x"], ["the\t", "cat \t", "a \r", "b \rb", "x \n\t", "y \t\tz"]]
)
def test_parts_that_end_in_white_space(texts):
    """The tokenizer has tokens of white space with a space inside."""
    tokenizer = trained(more=[" \xa0 \xa0\xa0x \t \t\tz \r \rb" * 20])
    assert any("Ġ" in token[1:] for token in tokenizer.get_vocab())
    encoder = Encoder(tokenizer)
    expected = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert [ids.tolist() for ids in encoder(texts)] == [ids.tolist() for ids in encoder(texts[::-1])][::-1] == expected


@pytest.mark.parametrize("processes", [1, 2])
def test_special_tokens_that_are_text(processes):
    tokenizer = trained()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.encode_special_tokens = True
    texts = ["the cat <|end|> sat", "<|end|>.", "cat<|end|>"]
    with Encoders(processes) as encoders:
        encoders.load(tokenizer.to_str(), splits_special=True)
        ((ids),) = ([i.tolist() for i in lot] for lot in encoders([texts]))
    assert ids == [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert tokenizer.token_to_id("<|end|>") not in ids[0]


def test_a_process_that_ends_is_no_silence(tokenizer):
    with Encoders(2) as encoders:
        encoders.load(tokenizer.to_str())
        encoders.workers[1][0].kill()
        with pytest.raises(RuntimeError, match=r"has ended \(\[-9\]\): is the memory full"):
            list(encoders([["the cat"]] * 5))


def test_a_tokenizer_of_another_kind():
    tokenizer = trained(pre_tokenizers.Metaspace())
    texts = ["the cat sat", "  a  b ", ""]
    expected = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert [ids.tolist() for ids in Encoder(tokenizer)(texts)] == expected


def test_gpt2_on_real_articles(test_data):
    import pyarrow.parquet as pq

    tokenizer = Tokenizer.from_file(str(test_data / "tokenizer" / "gpt2" / "tokenizer.json"))
    articles = next(pq.ParquetFile(test_data / "wiki" / "articles.parquet").iter_batches(60, columns=["text"]))
    texts = articles["text"].to_pylist()
    expected = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert [ids.tolist() for ids in Encoder(tokenizer)(texts)] == expected
