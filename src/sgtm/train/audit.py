"""An audit: every attack on every model, one folder each, and what they found.

    audit.yaml                 the models and the settings
    ATTACK/MODEL/RUN/          what `sgtm attack` and `sgtm relearn` write; `unattacked`: the losses before any attack
    audit.jsonl                what was found (``sgtm.train.findings``)

Attacks that are finished are kept and checked against their settings; a kill loses at most the attack in flight (of
relearning, the curve in flight). Everything that can be checked is checked before the first attack.
"""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sgtm.config import (
    RELEARNING,
    AttackConfig,
    Audit,
    AuditConfig,
    ConfigError,
    RelearnConfig,
    read_yaml,
    write,
)
from sgtm.data.mixture import PreparedData
from sgtm.evaluate.loss import evaluate_categories
from sgtm.plain import to_yaml
from sgtm.records import ATTACK, AUDIT, METRICS
from sgtm.train.attack import attack
from sgtm.train.compared import Models
from sgtm.train.findings import UNATTACKED, Done, Record, findings_of, write_findings
from sgtm.train.opening import Opened, open_model
from sgtm.train.relearn import finished_curves, parts_of, relearn
from sgtm.train.start import check_fits, data_for, domain_of, on_device, test_rows, words

Report = Callable[[str], None]
_NEEDS = {"relearn-lora": ("peft", "lora"), "probe": ("sklearn", "label")}  # module, extra


@dataclass(frozen=True)
class Job:
    """One attack on one run of one model."""

    attack: str
    model: str
    run: str
    start: Path
    folder: Path
    config: AttackConfig | RelearnConfig

    def __str__(self) -> str:
        return f"{self.attack}, {self.model}, {self.run}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"start": str(self.start), **asdict(self.config)}

    def finished(self) -> bool:
        """Whether its records are there.

        Raises:
            ConfigError: there are records of other settings.
        """
        if isinstance(self.config, RelearnConfig):
            return set(self.config.learning_rates) <= finished_curves(self.start, self.config, self.folder).keys()
        if not self.folder.exists():
            return False
        before, now = read_yaml(self.folder / ATTACK), self.settings
        if changed := [key for key in now if now[key] != before.get(key)]:
            raise ConfigError(f"{self.folder} was made with another {', '.join(changed)}; choose another --out")
        return True

    @property
    def done(self) -> Done:
        """For those who read its records."""
        return Done(self.attack, self.model, self.run, self.folder)

    def do(self, report: Report) -> None:
        """Attack, and write what is measured; a folder without training appears when it is whole."""
        if isinstance(self.config, RelearnConfig):
            relearn(self.start, self.config, self.folder, report)
            return
        partial = self.folder.with_name(f"{self.folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if self.attack == UNATTACKED:
            _measure(self, partial)
        else:
            attack(self.start, self.config, partial, report)
        partial.rename(self.folder)


@dataclass(frozen=True)
class Plan:
    """All attacks of an audit, and (attack, model, why) of those that cannot be or were not asked for."""

    config: AuditConfig
    models: Models
    jobs: tuple[Job, ...]
    skipped: tuple[tuple[str, str, str], ...]


def audit(models: Models, config: AuditConfig, out: Path, report: Report = print) -> list[Record]:
    """Attack all ``models`` and write ``out``; returns the lines of audit.jsonl.

    Args:
        models: of ``sgtm.train.compared``; the first is audited.
        report: is told how far it is.

    Raises:
        ConfigError: anything wrong with models, data, settings or folder, before the first attack.
    """
    plan = plan_of(models, config, out)
    missing = [job for job in plan.jobs if not job.finished()]
    _start_folder(plan, out)
    for number, job in enumerate(missing, 1):
        report(f"[{number}/{len(missing)}] {job}")
        job.do(report)
        write_findings(_findings(plan, without=missing[number:]), out)
    found = _findings(plan)
    write_findings(found, out)
    return found


def _findings(plan: Plan, without: Sequence[Job] = ()) -> list[Record]:
    done = [job.done for job in plan.jobs if job not in without]
    return findings_of(done, plan.config, next(iter(plan.models)), plan.skipped)


def plan_of(models: Models, config: AuditConfig, out: Path) -> Plan:
    """What is to be done, with the data and the domain that are meant.

    Raises:
        ConfigError: a model or data that do not fit one another, a package that is missing, too few tokens for a step.
    """
    opened = _first_run(models)
    data = data_for(opened, config.data)
    given = bool(config.data.path or config.data.parts)
    known = opened.config.data if opened.config is not None and not given else config.data
    config = replace(config, domain=domain_of(data, config.domain), data=known)
    _check_needs(config)
    units = {model: _have_units(runs.values(), data) for model, runs in models.items()}
    if units.get(config.reference):
        raise ConfigError(
            f"{config.reference} is the model that nothing was removed from, and "
            f"{', '.join(map(str, models[config.reference].values()))} has forget units; give runs of method none, or "
            "name another --reference"
        )
    skipped = _skipped(config, units, len(data.train.of("adjacent")) > 0)
    for name in config.attacks:
        settings = config.settings_of(name)
        if isinstance(settings, RelearnConfig) and not all((name, model) in skipped for model in models):
            parts_of(data, settings, config.domain)
    jobs = tuple(_jobs(models, config, units, skipped, out))
    return Plan(config, models, jobs, tuple((*key, why) for key, why in skipped.items()))


def _first_run(models: Models) -> Opened:
    """The first model that is a run, whose data is known; where there is none, the first model."""
    paths = [path for runs in models.values() for path in runs.values()]
    return open_model(next((path for path in paths if (path / "config.yaml").is_file()), paths[0]))


def _have_units(paths: Iterable[Path], data: PreparedData) -> bool:
    """Whether one of the models has forget units; ``data`` must fit all of them."""
    found = []
    for path in paths:
        opened = open_model(path)  # one at a time: they may be large
        check_fits(opened, data)
        found.append(opened.sgtm is not None)
    return any(found)


def _skipped(config: AuditConfig, units: Mapping[str, bool], adjacent: bool) -> dict[tuple[str, str], str]:
    """(attack, model) -> why it is not attacked so."""
    found: dict[tuple[str, str], str] = {}
    for model, has_units in units.items():
        for name in AuditConfig().attacks:
            if name not in config.attacks:
                found[name, model] = "not asked for"
            elif name == "relearn-adjacent" and not adjacent:
                found[name, model] = "the data has no adjacent text"
            elif name == "relearn-init" and not has_units:
                found[name, model] = "it has no forget units that could be made fresh"
            elif name in RELEARNING and model == config.reference:
                found[name, model] = "nothing was removed from it"
    return found


def _jobs(
    models: Models, config: AuditConfig, units: Mapping[str, bool], skipped: Mapping[tuple[str, str], str], out: Path
) -> Iterator[Job]:
    """Without training first, all models one after the other: what is wrong shows early."""
    names: list[Audit] = [name for name in AuditConfig().attacks if name in config.attacks]
    for name in (UNATTACKED, *names):
        settings = config.settings_of("quantize" if name == UNATTACKED else name)  # type: ignore[arg-type]
        for model, runs in models.items():
            of_model = settings if units[model] else replace(settings, without="")
            for run, start in runs.items():
                if (name, model) not in skipped:
                    yield Job(name, model, run, start, out / name / model / run, of_model)


def _check_needs(config: AuditConfig) -> None:
    for name, (module, extra) in _NEEDS.items():
        if name in config.attacks and importlib.util.find_spec(module) is None:
            raise ConfigError(f"{name} needs {module}; `pip install 'sgtm[{extra}]'`, or leave it out of --attacks")


def _measure(job: Job, out: Path) -> None:
    """Losses with and without forget units, before any attack."""
    config = job.config
    opened = open_model(job.start)
    data = data_for(opened, config.data)
    model, rows = on_device(opened.model), test_rows(data, config.evaluate.rows)
    without = words(config.without)
    losses = evaluate_categories(model, rows, opened.sgtm, None, config.evaluate.batch_size, without)
    out.mkdir()
    write(out / ATTACK, to_yaml(job.settings))
    about = {"step": 0, "tokens": 0, "flops": 0, "split": "test"}
    records = [
        {**about, "category": category, "variant": variant, "loss": loss.mean, "num_tokens": loss.num_tokens}
        for (category, variant), loss in losses.items()
    ]
    write(out / METRICS, "".join(json.dumps(record) + "\n" for record in records))


def _start_folder(plan: Plan, out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / AUDIT).is_file():
        raise ConfigError(f"{out} holds something else; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    models = {model: {run: str(path) for run, path in runs.items()} for model, runs in plan.models.items()}
    values = {"models": models, **asdict(plan.config)}
    write(out / AUDIT, to_yaml(values))
