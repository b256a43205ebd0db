"""Models in memory, scored on the tasks of lm-evaluation-harness: its own, by name, or those of a folder, offline.

Only this module imports lm_eval, the extra ``eval``.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.group import Group
from lm_eval.api.registry import get_aggregation
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sgtm.config import ConfigError, nearest
from sgtm.evaluate.loss import rows_that_fit
from sgtm.evaluate.scores import Answers
from sgtm.model.loading import context_of

_SEED = 1234  # the harness's own, of few-shot examples
_MEAN = get_aggregation("mean")
Metric = tuple[str, str]  # task, or group of tasks, and metric


@dataclass(frozen=True)
class Tasks:
    """Tasks that are ready to be put to a model.

    Args:
        tasks, groups: by name.
    """

    tasks: dict[str, Any]
    groups: dict[str, Group]


def load_tasks(names: Sequence[str], shots: int | None = None) -> Tasks:
    """Load tasks, with their data.

    Args:
        names: folders of tasks, files of a task or a group in one (paths in them count from their folder), or the
            names of tasks, groups and tags that the harness comes with.
        shots: examples before each question, where a task leaves their number open.

    Raises:
        ConfigError: no such task; its data cannot be had; or two tasks have one name.
    """
    found = Tasks({}, {})
    with quiet():
        for name in names:
            load = _load_folder if Path(name).is_dir() else _load_file if Path(name).is_file() else _load_shipped
            found = _joined(found, load(name))
        for task in found.tasks.values():
            if task.get_config("num_fewshot") is None or (shots is not None and task.get_config("num_fewshot") != 0):
                task.set_config("num_fewshot", shots or 0)
            task.set_fewshot_seed(_SEED)
    return found


def _joined(one: Tasks, other: Tasks) -> Tasks:
    if twice := one.tasks.keys() & other.tasks.keys():
        raise ConfigError(f"two tasks are called {min(twice)!r}; leave one of them out, or rename it")
    return Tasks(one.tasks | other.tasks, one.groups | other.groups)


def _load_folder(name: str) -> Tasks:
    manager = TaskManager(include_path=Path(name).resolve(), include_defaults=False)
    if not manager.all_subtasks:
        raise ConfigError(f"{name} holds no task (a yaml file with `task:`); write some with `sgtm data tasks`")
    with contextlib.chdir(name):
        return _load(manager, manager.all_subtasks, name)


def _load_file(name: str) -> Tasks:
    file = Path(name).resolve()
    manager = TaskManager(include_path=file.parent, include_defaults=False)
    told = [task for task, entry in manager.task_index.items() if entry.yaml_path and entry.yaml_path.samefile(file)]
    if not told:
        raise ConfigError(f"{name} describes no task; give a yaml file with `task:`, or the folder of one")
    with contextlib.chdir(file.parent):
        return _load(manager, told, name)


def _load_shipped(name: str) -> Tasks:
    manager = _shipped()
    if name not in manager.all_tasks:
        raise ConfigError(
            f"{name!r} is no task of lm-evaluation-harness{nearest(name, manager.all_tasks)}, nor a folder of tasks"
        )
    return _load(manager, [name], name)


@cache
def _shipped() -> TaskManager:
    """All tasks that the harness comes with; reading their descriptions takes some seconds."""
    return TaskManager()


def _load(manager: TaskManager, names: list[str], where: str) -> Tasks:
    try:
        loaded = manager.load(names)
    except Exception as error:  # of many libraries
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ConfigError(
            f"the data of {where} cannot be had: {reason}. Tasks by name fetch it from the Hugging Face Hub: run them "
            "once where it can be reached (and logged in, if the data asks for it), then with HF_HOME where they left "
            "it; a folder of tasks needs no network"
        ) from error
    return Tasks(loaded["tasks"], loaded["groups"])


class Scorer(HFLM):  # type: ignore[misc]
    """A model and its tokenizer, as the harness asks them.

    Args:
        batch_size: questions of one forward pass, fewer where the logits would be large.
        precision: bf16 or fp32, the one that the model was trained in.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64, precision: str = "fp32"
    ) -> None:
        longest = context_of(model)
        with quiet():
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=rows_that_fit(model, longest, batch_size),
                # An autocast around it would have no effect: it opens one of its own.
                mixed_precision_dtype=torch.bfloat16 if precision == "bf16" else None,
            )
        self.num_asked = self.num_cut = 0

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        longest = max((len(answer) for _, _, answer in requests), default=0)
        if longest > self.max_length:
            raise ConfigError(f"an answer has {longest} tokens and the model only {self.max_length} positions")
        self.num_asked += len(requests)
        self.num_cut += sum(len(context) + len(answer) > self.max_length + 1 for _, context, answer in requests)
        found: list[Any] = [None] * len(requests)
        # The harness (0.4.13) computes texts that are alike but for their last token once. Where they are cut into
        # context and answer at several places, it reads the log-probabilities of the wrong tokens: two tasks about one
        # passage were below chance. Answers of one token are all cut at the same place.
        for self.logits_cache in (True, False):
            numbers = [i for i, (*_, answer) in enumerate(requests) if (len(answer) == 1) == self.logits_cache]
            of_part = super()._loglikelihood_tokens([requests[i] for i in numbers], **kwargs) if numbers else []
            for i, result in zip(numbers, of_part, strict=True):
                found[i] = result
        return found


def answers(scorer: Scorer, tasks: Tasks, limit: int | None = None) -> dict[Metric, Answers]:
    """Ask all questions, or ``limit`` of each task; by group or task, and metric."""
    with quiet():
        said = evaluate(
            scorer, {"tasks": tasks.tasks, "groups": tasks.groups, "group_map": {}}, limit=limit, bootstrap_iters=0
        )
    found = {
        (name, metric): of_metric
        for name, task in tasks.tasks.items()
        for metric, of_metric in _answers_of_task(task, said["samples"][name])
    }
    return dict(_answers_of_groups(tasks.groups.values(), found)) | found


def _answers_of_task(task: Any, samples: list[dict[str, Any]]) -> Iterator[tuple[str, Answers]]:
    """A metric of a task that reads answers in several ways (filters) is one of each."""
    choice = task.OUTPUT_TYPE == "multiple_choice"
    by_filter: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        by_filter.setdefault(sample["filter"], []).append(sample)
    for name, of_filter in by_filter.items():
        chance = float(np.mean([1 / len(task.doc_to_choice(s["doc"])) for s in of_filter])) if choice else None
        groups = np.array([s["doc"].get("document", s["doc_id"]) for s in of_filter])
        for metric in of_filter[0]["metrics"]:
            aggregate = task.aggregation().get(metric, _MEAN)
            values = [s[metric] for s in of_filter]
            yield (
                metric if name == "none" else f"{metric},{name}",
                Answers(values, groups, chance, None if aggregate is _MEAN else aggregate),
            )


def _answers_of_groups(groups: Iterable[Group], of_tasks: dict[Metric, Answers]) -> Iterator[tuple[Metric, Answers]]:
    """Of all questions of a group's tasks together, for metrics that are means and that all of them have."""
    for group in groups:
        names = [task.task_name for task in group.get_all_tasks()]
        for metric in dict.fromkeys(metric for name, metric in of_tasks if name == names[0]):
            parts = [of_tasks.get((name, metric)) for name in names]
            if all(part is not None and part.aggregate is None for part in parts):
                yield (group.name, metric), _pooled([part for part in parts if part is not None])


def _pooled(parts: list[Answers]) -> Answers:
    values = [value for part in parts for value in part.values]
    _, groups = np.unique([(i, g) for i, part in enumerate(parts) for g in part.groups], axis=0, return_inverse=True)
    chances = [part.chance for part in parts for _ in part.values]
    known = [chance for chance in chances if chance is not None]
    return replace(
        parts[0],
        values=values,
        groups=groups.ravel(),
        chance=float(np.mean(known)) if len(known) == len(chances) else None,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The harness says nothing but errors: it warns of models in memory, and of each question that it cuts."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
