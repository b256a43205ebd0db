"""What an audit's page says: its records, the attacker's best of every attack, means over runs, and verdicts in words.

Settings (learning rates, sparsities, numbers of shots) are chosen by the loss on the rows that are reported, for each
run by itself: what an attacker who knows these rows could reach, so a little more than others would.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sgtm.config import RELEARNING, ConfigError
from sgtm.interval import mean_interval
from sgtm.records import AUDIT, FINDINGS, read_records

Line = dict[str, Any]
TITLES = {
    "quantize": "quantisation",
    "prune": "pruning",
    "few-shot": "texts in the context",
    "elicit": "prompts, found or trained",
    "relearn": "fine-tuning of all weights",
    "relearn-lora": "fine-tuning of adapters (LoRA)",
    "relearn-adjacent": "fine-tuning on adjacent text alone",
    "relearn-init": "fine-tuning with fresh units",
    "probe": "linear probes",
}
UNTRIED = (
    "The intact model, its checkpoints and the modules of its domains: they have the capability by design.",
    "Tasks. All figures are losses on held-out text; a high loss does not show that no question can be answered.",
    "People: conversations of several turns, jailbreaks by hand, tools, search, more removed text in the context.",
    "Prompts by discrete optimisation (GCG and its kin), and prompts that another model writes.",
    "Editing or steering activations, merging with other models, distillation from the intact model.",
    "Fine-tuning by other optimizers, schedules and mixtures, on more data, or for longer than said above.",
    "What can be inferred from the retained text.",
    "Other sizes, other data, other labels than these runs had.",
)


@dataclass(frozen=True)
class AuditRecords:
    """One audit's folder, as read."""

    folder: Path
    settings: dict[str, Any]
    lines: list[Line]

    @property
    def models(self) -> dict[str, dict[str, str]]:
        """Model -> run -> path; the audited model is the first."""
        found: dict[str, dict[str, str]] = self.settings["models"]
        return found

    @property
    def audited(self) -> str:
        return next(iter(self.models))

    @property
    def others(self) -> list[str]:
        """The models to compare with, the reference last."""
        return sorted([m for m in self.models if m != self.audited], key=lambda m: m == self.reference)

    @property
    def reference(self) -> str:
        return str(self.settings["reference"])

    @property
    def domain(self) -> str:
        return str(self.settings["domain"])

    def of(self, attack: str, model: str) -> list[Line]:
        """The findings of one attack on one model, all settings and runs."""
        return [r for r in self.lines if (r["attack"], r["model"]) == (attack, model) and "skipped" not in r]

    def best(self, attack: str, model: str) -> list[Line]:
        """Of each run, the setting with the least forget loss."""
        found: dict[str, Line] = {}
        for line in self.of(attack, model):
            now = found.get(line["run"])
            if now is None or line["after"][self.domain] < now["after"][self.domain]:
                found[line["run"]] = line
        return list(found.values())

    def losses(self, model: str, category: str, setting: str = "") -> list[float]:
        """Unattacked losses, one a run; of the intact model for the setting ``intact``."""
        return [r["after"][category] for r in self.of("unattacked", model) if r["setting"] == setting]

    def gains(self, attack: str, model: str) -> list[float]:
        """Nats per token by which the best setting lowers the forget loss, one a run."""
        return [r["before"][self.domain] - r["after"][self.domain] for r in self.best(attack, model)]

    def recovered(self, attack: str, model: str) -> list[float]:
        """Share of what is missing that the best setting brings back, one a run; empty where nothing is missing."""
        return [r["recovered"] for r in self.best(attack, model) if r["recovered"] is not None]

    @property
    def attacks(self) -> list[str]:
        """Attacks that measure losses and were made on the audited model."""
        return [a for a in TITLES if a != "probe" and self.of(a, self.audited)]

    def strongest(self, attacks: Iterable[str]) -> str | None:
        """The attack that brings most back of the audited model."""
        means = {a: mean_interval(g)[0] for a in attacks if (g := self.gains(a, self.audited))}
        return max(means, key=means.__getitem__) if means else None


@dataclass(frozen=True)
class Cost:
    """Until a loss is reached: steps and forget tokens of the runs that reach it, the best learning rate of each.

    Args:
        runs: all, also those that do not reach it.
        within: steps of the shortest curve that does not.
    """

    steps: list[float]
    forget_tokens: list[float]
    runs: int
    within: int

    def __str__(self) -> str:
        if not self.runs:
            return "not tried"
        missed = self.runs - len(self.steps)
        of = "" if self.runs == 1 else f" in {missed} of {self.runs} runs"
        no = f"not within {self.within:,} steps{of}"
        if not self.steps:
            return f"not within {self.within:,} steps"
        yes = f"{with_half(self.steps, ',.1f')} steps, {with_half(self.forget_tokens, ',.0f')} forget tokens"
        yes = yes if max(self.steps) else "from the start"
        return f"{yes}; {no}" if missed else yes


def read_audit(folder: Path) -> AuditRecords:
    """Read what ``sgtm audit`` wrote.

    Raises:
        ConfigError: no audit there, or one without a finding.
    """
    if not (folder / AUDIT).is_file():
        raise ConfigError(f"{folder} has no {AUDIT}; give a folder that `sgtm audit` wrote")
    lines = read_records(folder / FINDINGS)
    if not lines:
        raise ConfigError(f"{folder} has no finished attack; run `sgtm audit` again, which goes on")
    return AuditRecords(folder, yaml.safe_load((folder / AUDIT).read_text(encoding="utf-8")), lines)


def cost(audit: AuditRecords, attack: str, model: str, share: float) -> Cost:
    """What it takes to bring ``share`` back by fine-tuning."""
    at: dict[str, list[Line]] = {}
    within = []
    for line in audit.of(attack, model):
        found = at.setdefault(line["run"], [])
        for level in (one for one in line["levels"] if one["share"] == share):
            found += [level["at"]] if level["at"] is not None else []
            within.append(level["within"])
    first = [min(points, key=lambda p: float(p["step"])) for points in at.values() if points]
    steps, tokens = ([point[key] for point in first] for key in ("step", "forget_tokens"))
    return Cost(steps, tokens, len(at) if within else 0, min(within, default=0))


def verdict(audit: AuditRecords) -> list[str]:
    """The findings in words: what was removed, what came back, at what cost. Never that nothing could come back."""
    said = [_removed(audit)]
    trained = [a for a in audit.attacks if a in RELEARNING]
    for about, attacks in (
        ("The strongest attack tried", audit.attacks),
        ("Without training the model, the strongest", [a for a in audit.attacks if a not in RELEARNING]),
    ):
        if (attack := audit.strongest(attacks)) is not None:
            said.append(_strongest(audit, attack, about))
    return [*said, *_soonest(audit, trained), _seeds(audit)]


def _removed(audit: AuditRecords) -> str:
    audited, domain = audit.audited, audit.domain
    said = (
        f"Removal took the {domain} loss of {audited} from {with_half(audit.losses(audited, domain, 'intact'))} to "
        f"{with_half(audit.losses(audited, domain))} nats per token, and the retain loss from "
        f"{with_half(audit.losses(audited, 'retain', 'intact'))} to {with_half(audit.losses(audited, 'retain'))}"
    )
    if not (known := audit.losses(audit.reference, domain)):
        return f"{said}. No model without removal was given (--against {audit.reference}=RUN), so shares are not known."
    return f"{said}. A model that nothing was removed from ({audit.reference}) has {with_half(known)} on {domain}."


def _strongest(audit: AuditRecords, attack: str, about: str) -> str:
    lines = audit.best(attack, audit.audited)
    said = f"{about} was {TITLES[attack]}: it brought back {_amount(audit, attack, audit.audited)}"
    if attack in RELEARNING:
        steps, tokens = ([float(r[key]) for r in lines] for key in ("steps", "forget_tokens"))
        said += f" after {with_half(steps, ',.0f')} steps and {with_half(tokens, ',.0f')} forget tokens"
    others = [f"{_amount(audit, attack, m)} of {m}" for m in audit.others if audit.gains(attack, m)]
    return f"{said}. The same attack brought back {', '.join(others)}." if others else f"{said}."


def _amount(audit: AuditRecords, attack: str, model: str) -> str:
    """Share of what is missing, nats, and where that leads: a model may be far off and gain much."""
    after = with_half([line["after"][audit.domain] for line in audit.best(attack, model)])
    gain = f"{with_half(audit.gains(attack, model))} nats, to a loss of {after}"
    shares = audit.recovered(attack, model)
    return f"{percent(shares)} of what is missing ({gain})" if shares else gain


def _soonest(audit: AuditRecords, attacks: Sequence[str]) -> Iterator[str]:
    """Which fine-tuning is the first to bring each share back, up to the first share that none does in every run."""
    for share in sorted(audit.settings["shares"]):
        costs = {a: c for a in attacks if (c := cost(audit, a, audit.audited, share)).runs}
        reached = {a: mean_interval(c.steps)[0] for a, c in costs.items() if len(c.steps) == c.runs}
        if not costs:
            return
        attack = min(reached, key=reached.__getitem__) if reached else max(costs, key=lambda a: len(costs[a].steps))
        how = "was back soonest by" if reached else "did not come back in every run; the nearest to it was"
        tried = [f"{m}: {c}" for m in audit.others if (c := cost(audit, attack, m, share)).runs]
        beside = f" To the same loss, {'; '.join(tried)}." if tried else ""
        yield f"{100 * share:.0f} % of what was removed {how} {TITLES[attack]}: {costs[attack]}.{beside}"
        if not reached:
            return


def _seeds(audit: AuditRecords) -> str:
    counts = {model: len(runs) for model, runs in audit.models.items()}
    said = ", ".join(f"{model} {n}" for model, n in counts.items())
    if min(counts.values()) > 1:
        return f"Runs that differ by their seed: {said}. ± is half of a 95 % t interval over them."
    return f"Runs that differ by their seed: {said}. One run has no interval: how far another seed is off is not known."


def with_half(values: Sequence[float], form: str = "z.3f") -> str:
    """The mean over runs and, of several, half of its 95 % interval."""
    if not values:
        return "not measured"
    mean, half = mean_interval(values)
    return f"{mean:{form}}" if half is None else f"{mean:{form}} ± {half:{form.lstrip('+')}}"


def percent(shares: Sequence[float]) -> str:
    """A mean share in percent, with half of its interval."""
    return f"{with_half([100 * share for share in shares], 'z.0f')} %" if shares else ""


def skipped(audit: AuditRecords) -> dict[str, list[str]]:
    """What was not made, and why -> the models that it was not made on."""
    found: dict[str, list[str]] = {}
    reasons = {(r["attack"], r["model"]): r["skipped"] for r in audit.lines if "skipped" in r}
    for attack in TITLES:
        for model in audit.models:
            why = reasons.get((attack, model)) or ("" if audit.of(attack, model) else "not finished")
            if why:
                found.setdefault(f"{TITLES[attack]}: {why}", []).append(model)
    return found
