"""The inspection sees the documents that were written, copies and overlaps among them."""

import numpy as np
import pytest
from datasets import load_from_disk

from sgtm.cli import main
from sgtm.config import PrepareConfig
from sgtm.data.inspect import Overlap, document_hashes
from sgtm.data.tokenize import Document, prepare
from sgtm.data.tokenizer import load_tokenizer


@pytest.mark.parametrize("pack", [True, False])
def test_documents_are_put_together_from_rows(tmp_path, pack):
    """Long and short documents of two categories, some of them twice, as many as there are."""
    texts = [f"{n:03d} " + "abc " * (n % 23) for n in range(200)]
    documents = [Document(t, c, t + c) for t in [*texts, *texts[:30]] for c in ("forget", "retain")]
    config = PrepareConfig(tmp_path / "out", "train:257", 16, pack=pack, test_fraction=0.3)
    data = load_from_disk(prepare(lambda: documents, config, {}))
    end = load_tokenizer(str(tmp_path / "out" / "tokenizer")).eos_token_id
    hashes = {split: document_hashes(data[split], end, pack) for split in data}
    assert sum(map(len, hashes.values())) == len(documents)
    assert sum(len(set(h.tolist())) for h in hashes.values()) == 400
    overlap = Overlap.of(hashes["train"], hashes["test"])
    assert overlap.test_in_train == 0
    assert overlap.train_copies + overlap.test_copies == 60


def test_an_overlap_is_counted():
    train, test = np.array([1, 2, 2, 3], np.uint64), np.array([3, 4, 3], np.uint64)
    assert Overlap.of(train, test) == Overlap(4, 3, 1, 1, 2)
    assert "in both splits: 2 (of 3" in str(Overlap.of(train, test))


def test_the_command_shows_any_data(prepared, capsys):
    main(["data", "inspect", str(prepared)])
    shown = capsys.readouterr().out
    assert "rows of 16 tokens, packed" in shown
    assert "in both splits: 0" in shown
    main(["data", "inspect", str(prepared), "--no-check", "--examples", "0"])
    assert "both splits" not in capsys.readouterr().out
