"""Prepared data -> a folder of multiple-choice tasks in the form that lm-evaluation-harness reads.

Each task is NAME.yaml and NAME.jsonl (context, choices, answer, document); ``manifest.json`` says what they were made
of. NAME is the data's name, the kind of question, and the category.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sgtm.config import Category, ConfigError, Stream, TasksConfig, write
from sgtm.data.passages import SPAN, Corpus, read_corpus
from sgtm.data.questions import Kind, Question, questions
from sgtm.data.tokenize import MANIFEST, read_manifest
from sgtm.plain import to_yaml

_CANDIDATES = 4  # passages for each question: not every passage allows for every kind
_FEWEST = 20  # questions of a task; fewer say nothing


def make_tasks(data: Path, config: TasksConfig) -> dict[str, Any]:
    """Write the folder ``config.out`` and return its manifest.

    Args:
        data: a folder that ``sgtm data`` wrote; its test split is asked about.

    Raises:
        ConfigError: no prepared data there, ``config.out`` exists, or the data is too small for any task.
    """
    config.check()
    corpus = read_corpus(data, config.passage, _CANDIDATES * config.items, config.seed)
    name, made = config.name or data.resolve().name, {}
    for kind in config.kinds:
        for number, category in enumerate(corpus.passages):
            rng = np.random.default_rng((config.seed, Stream.TASKS, _KINDS.index(kind), number))
            found = _fitting(kind, corpus, category, config, rng)
            if len(found) >= _FEWEST:
                made[f"{name}_{kind}_{category}"] = kind, category, found
    if not made:
        raise ConfigError(
            f"the test split of {data} has no {_FEWEST} passages to ask about; prepare it with a larger test_fraction"
        )
    return _write(data, config, corpus, name, made)


_KINDS: tuple[Kind, ...] = ("cloze", "swapped", "replaced", "fact")
_Made = dict[str, tuple[Kind, Category, list[Question]]]


def _fitting(
    kind: Kind, corpus: Corpus, category: Category, config: TasksConfig, rng: np.random.Generator
) -> list[Question]:
    """Questions that fit into the data's context with each of their answers."""
    found: list[Question] = []
    for question in questions(kind, corpus.passages[category], corpus.words, category, config.choices, rng):
        if max(corpus.num_tokens([f"{question.context} {choice}" for choice in question.choices])) <= corpus.context:
            found.append(question)
        if len(found) == config.items:
            break
    return found


def _write(data: Path, config: TasksConfig, corpus: Corpus, name: str, made: _Made) -> dict[str, Any]:
    about = read_manifest(data)
    settings = {key: value for key, value in asdict(config).items() if key != "out"}
    manifest = {
        "data": str(data),
        "tokenizer_sha256": about["tokenizer_sha256"],
        "settings": settings | {"name": name},
        "tasks": {task: _counts(*what) for task, what in made.items()},
        "held_out": {"split": "test", "span": SPAN, "passages_left_out": dict(corpus.left_out)},
    }
    partial = config.out.with_name(f"{config.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for task, (kind, _, found) in made.items():
        lines = "".join(json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in found)
        write(partial / f"{task}.jsonl", lines)
        write(partial / f"{task}.yaml", to_yaml(_task(task, kind, name)))
    write(partial / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
    partial.rename(config.out)
    return manifest


def _counts(kind: Kind, category: Category, found: list[Question]) -> dict[str, Any]:
    return {
        "kind": kind,
        "category": category,
        "questions": len(found),
        "documents": len({question.document for question in found}),
        "chance": 1 / len(found[0].choices),
    }


def _task(task: str, kind: Kind, tag: str) -> dict[str, Any]:
    """What lm-evaluation-harness is told.

    Endings differ in length and in how common they are, so by mutual information: log p(ending | context) / p(ending).
    """
    metric = "acc_mutual_info" if kind == "cloze" else "acc"
    return {
        "task": task,
        "tag": tag,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{task}.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": " ",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
