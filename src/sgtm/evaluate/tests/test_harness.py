"""What the harness is told of a model is what the model says, of the intact one and of the ablated one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from sgtm.config import ConfigError
from sgtm.data.tokenizer import load_tokenizer
from sgtm.evaluate.loss import evaluating
from sgtm.train.tests.conftest import masked

pytest.importorskip("lm_eval", reason="the extra `eval` has lm-eval")
import lm_eval.tasks
from lm_eval.api.instance import Instance

from sgtm.evaluate.harness import Scorer, answers, load_tasks

TEXT = "The cat saw 7 birds and ran and ran and ran."


@pytest.fixture
def model() -> GPTNeoForCausalLM:
    kinds = [[["global", "local"], 1]]
    torch.manual_seed(0)
    model = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=300,
            hidden_size=16,
            num_layers=2,
            num_heads=4,
            attention_types=kinds,
            max_position_embeddings=64,
            window_size=8,
        )
    )
    for p in model.parameters():
        p.data.normal_(0, 0.3)
    return model.eval()


@pytest.fixture
def tokenizer(prepared):
    return load_tokenizer(str(prepared / "tokenizer"))


def cuts(text: str) -> list[tuple[str, str]]:
    """(context, answer) of all places between two words."""
    return [(text[:i], text[i:]) for i, c in enumerate(text) if c == " "]


def said_by(model, tokenizer, context: str, answer: str) -> float:
    """log p(answer | context), one forward pass for it alone."""
    ids = tokenizer(context + answer, return_tensors="pt").input_ids
    before = len(tokenizer(context).input_ids) if context else 0
    if not before:
        ids, before = torch.cat([torch.tensor([[tokenizer.eos_token_id]]), ids], 1), 1
    with torch.no_grad():
        logs = model(input_ids=ids).logits.log_softmax(-1)
    return float(logs[0, before - 1 : -1].gather(-1, ids[0, before:, None]).sum())


def asked(scorer: Scorer, pairs) -> list[float]:
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return [log for log, _ in scorer.loglikelihood(requests, disable_tqdm=True)]


def test_log_probabilities_are_the_models(model, tokenizer):
    """Of one text cut at many places, and of answers of one token that share a context: each as if it was alone."""
    one_token = [("The cat", f"{letter}") for letter in "abcde"]
    pairs = [*cuts(TEXT), *cuts(TEXT[:-1] + "!"), *one_token, ("", TEXT), *cuts(TEXT[4:])]
    wanted = [said_by(model, tokenizer, *pair) for pair in pairs]
    np.testing.assert_allclose(asked(Scorer(model, tokenizer, 7), pairs), wanted, atol=2e-4)


def test_the_ablated_model_is_asked(model, tokenizer):
    sgtm = masked(model)
    scorer = Scorer(model, tokenizer)
    intact = asked(scorer, cuts(TEXT))
    with evaluating(model, sgtm):
        ablated = asked(scorer, cuts(TEXT))
    assert asked(scorer, cuts(TEXT)) == intact
    sgtm.partition.ablate()
    np.testing.assert_allclose(ablated, asked(scorer, cuts(TEXT)), atol=2e-4)
    assert np.abs(np.subtract(ablated, intact)).min() > 1e-2


def test_the_precision_is_the_runs(model, tokenizer):
    with torch.autocast("cpu", torch.bfloat16):
        wanted = [said_by(model, tokenizer, *pair) for pair in cuts(TEXT)]
    exact, rounded = (asked(Scorer(model, tokenizer, 1, p), cuts(TEXT)) for p in ("fp32", "bf16"))
    # bf16 has 8 bits: sums over other shapes differ in the last of them.
    np.testing.assert_allclose(rounded, wanted, rtol=2e-2)
    assert np.abs(np.subtract(rounded, exact)).max() > 1e-3


def test_what_is_too_long(model, tokenizer):
    scorer = Scorer(model, tokenizer)
    asked(scorer, [("a " * 80 + "a", " b"), ("a", " b")])
    assert (scorer.num_asked, scorer.num_cut) == (2, 1)
    with pytest.raises(ConfigError, match=r"an answer has \d+ tokens and the model only 64"):
        asked(scorer, [("a", " b" * 80)])


def write_task(folder: Path, name: str, rows: list[dict], **more) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(about | more))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two tasks about the same passages, cut at different places, and their group."""
    lines = [f"The {a} saw {i} {b}s and ran." for i, (a, b) in enumerate([("cat", "dog"), ("dog", "bird")] * 10)]
    for name, place, other in (("one", 2, "tree"), ("two", 3, "1000")):
        rows = []
        for i, line in enumerate(lines):
            words = line.split()
            rest = " ".join(words[place + 1 :])
            choices = [f"{words[place]} {rest}", f"{other} {rest}", f"and {rest}"]
            rows.append({"context": " ".join(words[:place]), "choices": choices, "answer": i % 3, "document": i // 2})
        write_task(tmp_path / "tasks", name, rows)
    both = {"group": "both", "task": ["one", "two"], "aggregate_metric_list": [{"metric": "acc"}]}
    (tmp_path / "tasks" / "both.yaml").write_text(yaml.safe_dump(both))
    return tmp_path / "tasks"


def test_tasks_of_a_folder(model, tokenizer, folder):
    """All of them, from anywhere; the answer with the highest log-probability is taken."""
    scorer = Scorer(model, tokenizer)
    found = answers(scorer, load_tasks([str(folder)]))
    assert found.keys() == {("one", "acc"), ("two", "acc")}
    for (name, _), of_task in found.items():
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        logs = [[said_by(model, tokenizer, r["context"], f" {c}") for c in r["choices"]] for r in rows]
        assert of_task.values == [float(np.argmax(logs[i]) == r["answer"]) for i, r in enumerate(rows)]
        assert of_task.chance == pytest.approx(1 / 3)
        assert (len(of_task.values), of_task.num_groups, of_task.aggregate) == (20, 10, None)
    assert 0 < sum(found["one", "acc"].values) < 20


def test_a_group_is_all_its_questions(model, tokenizer, folder):
    found = answers(Scorer(model, tokenizer), load_tasks([str(folder / "both.yaml")]))
    assert list(found) == [("both", "acc"), ("one", "acc"), ("two", "acc")]
    both, one, two = found.values()
    assert both.values == one.values + two.values
    assert both.num_groups == 20  # documents of two tasks are not one
    assert both.chance == pytest.approx(1 / 3)


def test_fewer_questions_and_other_aggregates(model, tokenizer, tmp_path):
    rows = [{"context": "The cat", "choices": ["ran.", "saw."], "answer": i % 2} for i in range(10)]
    metric = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    write_task(tmp_path / "tasks", "f", rows, metric_list=metric)
    found = answers(Scorer(model, tokenizer), load_tasks([str(tmp_path / "tasks")]), limit=6)["f", "f1"]
    assert len(found.values) == found.num_groups == 6
    assert found.aggregate is not None
    logs = [said_by(model, tokenizer, "The cat", f" {choice}") for choice in ("ran.", "saw.")]
    # The same answer to all of them: the second is taken always (precision 1/2, recall 1) or never.
    assert found.score() == pytest.approx(2 / 3 if logs[1] > logs[0] else 0)
    assert found.chance == 0.5


def test_shots(model, tokenizer, tmp_path):
    """Examples stand before each question, unless the task says that it has none."""
    rows = [{"context": f"{i} cats", "choices": ["ran.", "saw."], "answer": 0} for i in range(4)]
    for name, more in (("open", {}), ("none", {"num_fewshot": 0})):
        write_task(tmp_path / name, name, rows, fewshot_split="test", **more)
    for shots, wanted in ((None, 0), (2, 2)):
        tasks = load_tasks([str(tmp_path / "open"), str(tmp_path / "none")], shots).tasks
        assert tasks["open"].get_config("num_fewshot") == wanted
        assert tasks["none"].get_config("num_fewshot") == 0


def test_tasks_that_cannot_be_had(folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no task"):
        load_tasks([str(tmp_path / "empty")])
    with pytest.raises(ConfigError, match="two tasks are called 'one'"):
        load_tasks([str(folder), str(folder / "one.yaml")])
    (folder / "one.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"the data of .*tasks cannot be had"):
        load_tasks([str(folder)])


def test_tasks_by_name_say_how_to_get_them(monkeypatch):
    """The harness's own description of WMDP, where the Hub cannot be reached."""

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'cais/wmdp' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    file = Path(lm_eval.tasks.__file__).parent / "wmdp" / "wmdp_bio.yaml"
    with pytest.raises(ConfigError, match=r"Couldn't reach 'cais/wmdp' on the Hub\. Tasks by name fetch it"):
        load_tasks([str(file)])


@pytest.mark.slow
def test_the_names_are_the_harnesss(monkeypatch):
    """WMDP and MMLU are known by name; others are not, and the nearest is named."""
    asked_for = []
    monkeypatch.setattr("sgtm.evaluate.harness._load", lambda manager, names, where: asked_for.append(names))
    monkeypatch.setattr("sgtm.evaluate.harness._joined", lambda one, other: one)
    load_tasks(["wmdp", "wmdp_bio", "mmlu"])
    assert asked_for == [["wmdp"], ["wmdp_bio"], ["mmlu"]]
    with pytest.raises(ConfigError, match=r"'mmluu' is no task .* did you mean 'mmlu'"):
        load_tasks(["mmluu"])
