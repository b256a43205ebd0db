"""Models of every kind are opened alike."""

import pytest
import torch
from transformers import GPTNeoConfig

from sgtm.config import ConfigError
from sgtm.model.gpt_neo import GPTNeoForCausalLMSGTM
from sgtm.train.opening import open_model
from sgtm.train.tests.conftest import tiny_model


def test_stock_checkpoints_and_folders_with_a_model_are_opened_alike(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "stock")
    model.save_pretrained(tmp_path / "unlearned" / "model")
    for name in ("stock", "unlearned"):
        opened = open_model(tmp_path / name)
        assert (opened.sgtm, opened.config, opened.tokenizer) == (None, None, None)
        assert all(torch.equal(a, b) for a, b in zip(opened.model.parameters(), model.parameters(), strict=True))


def test_a_split_checkpoint_has_its_masking(tmp_path):
    split = GPTNeoForCausalLMSGTM(
        GPTNeoConfig(
            vocab_size=40,
            hidden_size=16,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            retain_mlp_dim=48,
            retain_attn_heads=3,
            masking_strategy="parameter_masking",
        )
    )
    split.save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    assert opened.sgtm is not None
    assert opened.sgtm.partition.num_parameters() == split.sgtm.partition.num_parameters()


def test_what_holds_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no model; give the folder"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_model(tmp_path)
