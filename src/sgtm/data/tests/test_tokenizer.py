"""A tokenizer opened in a process of its own."""

import sys
from types import SimpleNamespace

import pytest

from sgtm.config import ConfigError
from sgtm.data import tokenizer
from sgtm.data.tokenizer import Opener, SavedTokenizer, load_tokenizer, tokenizer_hash


@pytest.fixture
def no_transformers(monkeypatch):
    """As in a process that has not imported it yet."""
    monkeypatch.setattr(tokenizer, "sys", SimpleNamespace(modules={}, executable=sys.executable))


def test_a_tokenizer_opened_apart_is_the_same(prepared, no_transformers, tmp_path):
    folder = str(prepared / "tokenizer")
    with Opener(folder, early=True) as opener:
        assert opener.process is not None
        apart = opener.tokenizer()
    assert apart == SavedTokenizer.of(load_tokenizer(folder))
    assert opener.process.poll() is not None
    apart.save(tmp_path / "saved")
    assert tokenizer_hash(load_tokenizer(str(tmp_path / "saved"))) == apart.sha256


def test_what_is_wrong_with_a_tokenizer_is_said_from_apart(tmp_path, no_transformers):
    (tmp_path / "tokenizer.json").write_text("{}")
    with (
        Opener(str(tmp_path), early=True) as opener,
        pytest.raises(ConfigError, match=r"neither a folder with a sound"),
    ):
        opener.tokenizer()


def test_where_that_process_is_gone_the_tokenizer_is_opened_here(prepared, no_transformers):
    with Opener(str(prepared / "tokenizer"), early=True) as opener:
        opener.process.kill()
        opener.process.wait()
        assert opener.tokenizer() == Opener(str(prepared / "tokenizer")).tokenizer()
