"""Attacks without training, as records.

Losses go to metrics.jsonl: the fields of ``sgtm.records.RECORD`` and ``model`` (start, or against), ``attack`` (none,
quantize, prune, few-shot, elicit) and ``setting``; step and tokens are what it took to find a prompt, else 0. Probes go
to probes.jsonl: model, layer, other (the category that the domain is told from), accuracy, auc, low, high.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel

from sgtm.config import AttackConfig, Category, ConfigError, Stream
from sgtm.data.mixture import PreparedData, Rows
from sgtm.environment import tune_malloc
from sgtm.evaluate.compress import pruned, quantized
from sgtm.evaluate.elicit import Prompt, Prompted, best_prompt, cut, soft_prompt, split
from sgtm.evaluate.few_shot import few_shot_losses
from sgtm.evaluate.loss import Loss, evaluate_loss
from sgtm.evaluate.probes import States, mean_states, probe_layers
from sgtm.model.attention import plain_config
from sgtm.plain import to_yaml
from sgtm.records import ATTACK, METRICS, PROBES
from sgtm.train.opening import open_model
from sgtm.train.start import check_fits, data_for, domain_of, on_device, start_model, test_rows, words

Record = dict[str, Any]
_QUANTISERS = {"int8": (8, False), "int8 dynamic": (8, True), "int4": (4, False), "int4 dynamic": (4, True)}
NO_PROMPT = "no prompt"
UNTRAINED, SHUFFLED = "untrained", "shuffled labels"
_SHUFFLES = 10


@dataclass(frozen=True)
class Setting:
    """What is attacked, and with what."""

    config: AttackConfig
    data: PreparedData
    test: dict[Category, Rows]
    domain: Category
    models: dict[str, PreTrainedModel]


def attack(start: Path, config: AttackConfig, out: Path, report: Callable[[str], None] = print) -> list[Record]:
    """Attack ``start``, its forget units removed, and the model ``config.against``; returns all records.

    Args:
        start: anything that ``open_model`` opens.
        out: the folder to write: attack.yaml, metrics.jsonl, probes.jsonl; a kill leaves nothing there.
        report: is told how far it is.

    Raises:
        ConfigError: anything wrong with model, data, settings or folder, before anything is measured.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; remove it or choose another --out")
    setting = _setting(start, config)
    losses = [*_unattacked(setting)]
    for kind, measure in _MEASURES.items():
        if kind in config.kind:
            report(kind)
            losses += measure(setting)
    probes: list[Record] = []
    if "probe" in config.kind:
        report("probe")
        probes = list(_probes(setting))
    out.mkdir(parents=True)
    settings = to_yaml({"start": str(start), **asdict(config)})
    (out / ATTACK).write_text(settings, encoding="utf-8")
    for name, records in ((METRICS, losses), (PROBES, probes)):
        if records:
            (out / name).write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return losses + probes


def _setting(start: Path, config: AttackConfig) -> Setting:
    tune_malloc()
    opened = open_model(start)
    data = data_for(opened, config.data, config.against)
    domain, test = domain_of(data, config.domain), test_rows(data, config.evaluate.rows)
    if missing := {domain, "retain"} - test.keys():
        raise ConfigError(f"the data has no test rows of {' and '.join(sorted(missing))}; prepare it with some")
    models = {"start": start_model(opened, "absent", words(config.without))}
    if config.against is not None:
        against = open_model(Path(config.against))
        check_fits(against, data)
        models["against"] = start_model(against, "absent", words(config.without) if against.sgtm else ())
    return Setting(config, data, test, domain, models)


def _losses(s: Setting, model: str, name: str, setting: str) -> Iterator[Record]:
    """Test losses of every category of a model as it now is."""
    for category, rows in s.test.items():
        loss = evaluate_loss(s.models[model], rows, batch_size=s.config.evaluate.batch_size)
        yield _record(model, name, setting, category, loss)


def _record(model: str, name: str, setting: str, category: Category, loss: Loss) -> Record:
    what = {
        "split": "test",
        "category": category,
        "variant": "ablated",
        "loss": loss.mean,
        "num_tokens": loss.num_tokens,
    }
    return {"step": 0, "tokens": 0, "flops": 0, **what, "model": model, "attack": name, "setting": setting}


def _unattacked(s: Setting) -> Iterator[Record]:
    for model in s.models:
        yield from _losses(s, model, "none", "")


def _quantize(s: Setting) -> Iterator[Record]:
    for name, (bits, dynamic) in _QUANTISERS.items():
        for model, found in s.models.items():
            with quantized(found, bits, dynamic):
                yield from _losses(s, model, "quantize", name)


def _prune(s: Setting) -> Iterator[Record]:
    for share in s.config.sparsities:
        for model, found in s.models.items():
            with pruned(found, share, s.config.scope):
                yield from _losses(s, model, "prune", f"{100 * share:g} % ({s.config.scope})")


def _few_shot(s: Setting) -> Iterator[Record]:
    c, end = s.config, s.data.tokenizer.eos_token_id
    for category in (s.domain, "retain"):
        shots = s.data.train.of(category)
        for model, found in s.models.items():
            losses = few_shot_losses(found, s.test[s.domain], shots, c.shots, end, c.seed, c.evaluate.batch_size)
            for count, loss in losses.items():
                yield _record(model, "few-shot", f"{count} of {category}", s.domain, loss)


def _elicit(s: Setting) -> Iterator[Record]:
    for name, model in s.models.items():
        yield from _behind(s, name, NO_PROMPT, None)
        prompts = {}
        for category in ("retain", s.domain):  # retain text is the control: what any prompt is good for
            texts, choosing = _prompt_rows(s, category)
            prompts[category] = best_prompt(model, texts, choosing, s.config.elicit, s.config.seed)
            yield from _behind(s, name, f"best of {s.config.elicit.prompts} from {category}", prompts[category])
        soft = soft_prompt(model, prompts[s.domain], texts, choosing, s.config.elicit, s.config.seed)
        yield from _behind(s, name, f"soft, {s.config.elicit.length} vectors", soft)


def _prompt_rows(s: Setting, category: Category) -> tuple[Rows, Rows]:
    """Rows of a category that prompts are made of; rows of the domain that they are chosen by."""
    texts, choosing = split(s.data.train.of(s.domain), s.config.elicit, s.config.seed)
    return (texts if category == s.domain else s.data.train.of(category)), choosing


def _behind(s: Setting, name: str, setting: str, prompt: Prompt | None) -> Iterator[Record]:
    """Losses behind a prompt, on the rows' parts that it leaves room for; without one, on the same parts."""
    model: Any = s.models[name] if prompt is None else Prompted(s.models[name], prompt.vectors)
    cost = (0, 0) if prompt is None else (prompt.steps, prompt.tokens)
    for category, rows in s.test.items():
        loss = evaluate_loss(model, cut(rows, s.models[name], s.config.elicit), batch_size=s.config.evaluate.batch_size)
        record = _record(name, "elicit", setting, category, loss)
        # Forward, and back to the prompt alone: no gradient of weights.
        flops = 4 * s.models[name].num_parameters() * cost[1] if cost[0] else 0
        yield record | {"step": cost[0], "tokens": cost[1], "flops": flops}


_MEASURES = {"quantize": _quantize, "prune": _prune, "few-shot": _few_shot, "elicit": _elicit}


def _probes(s: Setting) -> Iterator[Record]:
    c = s.config
    torch.manual_seed(c.seed)
    untrained = on_device(AutoModelForCausalLM.from_config(plain_config(s.models["start"])))
    others = [category for category in ("adjacent", "retain") if category in s.test]
    for model, found in {**s.models, UNTRAINED: untrained}.items():
        states = {category: _states(s, found, category) for category in (s.domain, *others)}
        for other in others:
            train, test = ((states[s.domain][part], states[other][part]) for part in (0, 1))
            for name in (model, SHUFFLED) if model == "start" else (model,):
                rng, shuffles = np.random.default_rng((c.seed, Stream.PROBE)), _SHUFFLES * (name == SHUFFLED)
                for layer, probe in enumerate(probe_layers(train, test, c.resamples, rng, shuffles)):
                    yield {"model": name, "layer": layer, "other": other, **asdict(probe)}


def _states(s: Setting, model: PreTrainedModel, category: Category) -> tuple[States, States]:
    """Of training and of test rows."""
    limit, seed = s.config.examples, s.config.seed
    train, test = s.data.train.of(category, limit, seed), s.data.test.of(category, limit, seed)
    return mean_states(model, train), mean_states(model, test)


def print_attacks(records: Sequence[Record]) -> None:
    """Losses as a table, a row a setting; and probes, a row a layer."""
    losses, probes = ([r for r in records if key in r] for key in ("loss", "auc"))
    console = Console(width=max(120, Console().width))
    if losses:
        keys = [(r["attack"], r["setting"]) for r in losses]
        columns = [(r["model"], r["category"]) for r in losses]
        found = {(r["attack"], r["setting"], r["model"], r["category"]): f"{r['loss']:.3f}" for r in losses}
        console.print(_table("test loss, nats per token", ("attack", "setting"), keys, columns, found))
    if probes:
        rows = [(r["other"], str(r["layer"])) for r in probes]
        names = [(r["model"],) for r in probes]
        cells = {
            (r["other"], str(r["layer"]), r["model"]): f"{r['auc']:.3f} ({r['low']:.3f}, {r['high']:.3f})"
            for r in probes
        }
        console.print(_table("probes: held-out AUC (95 %)", ("forget against", "layer"), rows, names, cells))


def _table(
    title: str,
    header: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    columns: Sequence[tuple[str, ...]],
    cells: Mapping[Any, str],
) -> Table:
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name)
    for column in dict.fromkeys(columns):
        table.add_column("\n".join(column), justify="right")
    for row in dict.fromkeys(rows):
        table.add_row(*row, *(cells.get((*row, *column), "") for column in dict.fromkeys(columns)))
    return table
