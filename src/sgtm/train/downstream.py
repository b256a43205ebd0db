"""Downstream tasks put to any model: as it is, ablated, or without some of its domains.

Records have: model, task, metric, variant (intact, ablated), without (domains), score, low, high (95 %), interval
(wilson, bootstrap), chance, questions, documents, shots; and, after the first variant, change, change_low, change_high:
against the first one, on the same questions.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sgtm.config import ConfigError
from sgtm.environment import tune_malloc
from sgtm.evaluate.loss import evaluating
from sgtm.evaluate.scores import Answers, change_interval, interval
from sgtm.train.opening import Opened, open_model
from sgtm.train.start import on_device

Record = dict[str, Any]
Variants = dict[str, tuple[str, ...] | None]  # name -> removed domains, None if it is intact
_RESAMPLES = 2000


def evaluate_tasks(
    path: Path,
    names: Sequence[str],
    variants: Sequence[str] = (),
    without: Sequence[str] = (),
    matrix: bool = False,
    questions: int | None = None,
    shots: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Record]:
    """Score the model at ``path`` on tasks; one record for each task, metric and variant.

    Args:
        path: anything that ``open_model`` opens.
        names: see ``sgtm.evaluate.harness.load_tasks``.
        variants: intact, ablated; by default all that the model has.
        without: domains that the ablated model is without; all by default.
        matrix: instead, the intact model, and the model without each of its domains and without all.
        questions: of each task, at most.
        shots: examples before each question, where a task leaves their number open.
        seed: of the bootstrap.

    Raises:
        ConfigError: the extra `eval` is not installed; no such model or task; or a variant that the model has not.
    """
    _check_installed()
    from sgtm.evaluate import harness

    opened = open_model(path)
    if opened.tokenizer is None:
        raise ConfigError(f"{path} has no tokenizer, and tasks are text; save the model's own beside it")
    chosen = _variants(opened, variants, without, matrix)
    tasks = harness.load_tasks(names, shots)
    tune_malloc()
    model, precision = on_device(opened.model), opened.config.train.precision if opened.config else "fp32"
    scorer = harness.Scorer(model, opened.tokenizer, batch_size, precision)
    found: dict[str, dict[harness.Metric, Answers]] = {}
    for name, removed in chosen.items():
        with evaluating(model, None if removed is None else opened.sgtm, removed or ()):
            found[name] = harness.answers(scorer, tasks, questions)
    if scorer.num_cut:
        print(
            f"{scorer.num_cut:,} of {scorer.num_asked:,} answers with their questions are longer than the model's "
            f"context of {scorer.max_length} tokens; their beginnings were cut off"
        )
    about = {"model": str(path), "shots": shots}
    return [about | record for record in _records(found, chosen, seed)]


def _check_installed() -> None:
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise ConfigError("--tasks needs lm-evaluation-harness: pip install 'sgtm[eval]'")


def _variants(opened: Opened, names: Sequence[str], without: Sequence[str], matrix: bool) -> Variants:
    if opened.sgtm is None:
        if matrix or without or "ablated" in names:
            raise ConfigError(f"{opened.path} has no forget units, so it has no variant but intact; ask for that one")
        return {"intact": None}
    partition = opened.sgtm.partition
    domains = partition.select_domains(())
    if matrix:
        each = {f"without {d}": (d,) for d in domains} if len(domains) > 1 else {}
        return {"intact": None, **each, "ablated": domains}
    known: Variants = {"intact": None, "ablated": partition.select_domains(without)}
    return {name: known[name] for name in names or known}


def _records(found: Mapping[str, Mapping[tuple[str, str], Answers]], variants: Variants, seed: int) -> list[Record]:
    first = next(iter(found.values()))
    records = []
    for key, before in first.items():
        for name, of_variant in found.items():
            removed, answers = variants[name], of_variant[key]
            record = {
                "task": key[0],
                "metric": key[1],
                "variant": "intact" if removed is None else "ablated",
                "without": list(removed or ()),
                **_score(answers, seed),
            }
            if of_variant is not first:
                within = change_interval(before, answers, _RESAMPLES, seed)
                record["change"] = answers.score() - before.score()
                record |= {"change_low": within.low, "change_high": within.high}
            records.append(record)
    return records


def _score(answers: Answers, seed: int) -> Record:
    within = interval(answers, _RESAMPLES, seed)
    return {
        "score": answers.score(),
        "low": within.low,
        "high": within.high,
        "interval": within.kind,
        "chance": answers.chance,
        "questions": len(answers.values),
        "documents": answers.num_groups,
    }


def write_scores(records: Sequence[Record], out: Path) -> None:
    """One record a line."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def print_scores(records: Sequence[Record]) -> None:
    """One row a task and metric; a column for each variant, with its change against the first."""
    rows: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        rows.setdefault((record["task"], record["metric"]), {})[_column(record)] = record
    columns = list(dict.fromkeys(map(_column, records)))
    table = Table(title="scores (95 %), and change against the first", title_justify="left")
    for name in ("task", "metric", "questions", "chance"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for column in columns:
        table.add_column(column, justify="right")
    for (task, metric), of_row in rows.items():
        one = next(iter(of_row.values()))
        chance = "" if one["chance"] is None else f"{one['chance']:.3f}"
        table.add_row(task, metric, f"{one['questions']:,}", chance, *(_cell(of_row[c]) for c in columns))
    Console(width=max(140, Console().width)).print(table)


def _column(record: Record) -> str:
    return f"without {', '.join(record['without'])}" if record["without"] else "intact"


def _cell(record: Record) -> str:
    cell = f"{record['score']:.3f} ({record['low']:.3f}, {record['high']:.3f})"
    if "change" not in record:
        return cell
    return f"{cell}\n{record['change']:+.3f} ({record['change_low']:+.3f}, {record['change_high']:+.3f})"
