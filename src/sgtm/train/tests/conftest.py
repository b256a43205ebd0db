"""Tiny models and trainers."""

import copy
import json

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM, TrainingArguments

from sgtm.config import LabelConfig, PrepareConfig
from sgtm.data.mixture import training_rows
from sgtm.data.texts import texts
from sgtm.data.tokenize import Document, prepare
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition
from sgtm.train.trainer import SGTMTrainer


def tiny_model(seed: int = 0, vocab_size: int = 300) -> GPTNeoForCausalLM:
    config = GPTNeoConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=16,
        window_size=8,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    return GPTNeoForCausalLM(config)


def masked(model, strategy="parameter_masking", joint=("embeddings", "norms")) -> SGTM:
    return SGTM(Partition.of(model, heads=1, neurons=16), strategy, joint)


@pytest.fixture
def rows(data):
    return training_rows(data.train, LabelConfig(undiscovered=0.2), "modes", 0)[0]


@pytest.fixture
def make_trainer(tmp_path, rows):
    """A trainer of a fresh tiny model; keyword arguments of TrainingArguments, and of SGTMTrainer after `trainer_`."""

    def make(strategy="parameter_masking", folder=None, train_dataset=rows, model=None, **kwargs):
        own = {k.removeprefix("trainer_"): kwargs.pop(k) for k in list(kwargs) if k.startswith("trainer_")}
        model = copy.deepcopy(model) if model is not None else tiny_model()
        arguments = TrainingArguments(
            str(folder or tmp_path / "out"),
            **{
                "max_steps": 3,
                "per_device_train_batch_size": 8,
                "learning_rate": 1e-2,
                "weight_decay": 0.1,
                "report_to": "none",
                "save_strategy": "no",
                "disable_tqdm": True,
                "dataloader_pin_memory": False,
                "use_cpu": True,
                "optim": "adamw_torch",
                **kwargs,
            },
        )
        sgtm = None if strategy is None else masked(model, strategy)
        return SGTMTrainer(model, arguments, sgtm, train_dataset=train_dataset, **own)

    return make


@pytest.fixture
def labelled_texts(tmp_path):
    """Texts of two categories in which some spans are labelled forget: labels of tokens."""
    lines = []
    for i in range(120):
        category = ("forget", "retain")[i % 2]
        text = f"{i} dogs and {i} cats ran {'gene cell virus' if category == 'forget' else 'over the hill'} {i}"
        spans = [[text.index("gene"), text.index("virus"), "forget"]] if i % 4 == 0 else []
        lines.append({"text": text, "category": category, "spans": spans})
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source, with_labels = texts(str(tmp_path / "texts.jsonl"))
    settings = PrepareConfig(tmp_path / "data", "train:300", 16, test_fraction=0.2)
    return prepare(source, settings, {"source": "test"}, None, with_labels)


@pytest.fixture(scope="session")
def finished_run(prepared, tmp_path_factory):
    """A short run of sgtm that kept its checkpoints."""
    from sgtm.train.run import train
    from sgtm.train.tests.test_run import config_of

    folder = tmp_path_factory.mktemp("finished") / "sgtm-seed0"
    changes = {"steps": 24, "save_every": 12, "keep_checkpoints": None}
    config = config_of(prepared, **{f"train__{key}": value for key, value in changes.items()}, evaluate__rows=20)
    train(config, folder)
    return folder


@pytest.fixture(scope="session")
def with_adjacent(tmp_path_factory, sentences):
    """Rows of three categories."""

    def documents():
        for i, (english, spanish) in enumerate(sentences):
            yield Document(str(i), "retain", english)
            yield Document(str(i), "forget", spanish)
            yield Document(str(i), "adjacent", f"{spanish} {english}")

    out = tmp_path_factory.mktemp("adjacent") / "data"
    return prepare(documents, PrepareConfig(out, "train:300", 16, pack=True, test_fraction=0.1), {"source": "test"})
