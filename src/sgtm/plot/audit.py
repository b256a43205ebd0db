"""An audit as one page: what was removed, how much came back, at what cost, and what was not tried."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean

from sgtm.config import RELEARNING, write
from sgtm.interval import mean_interval
from sgtm.plot.audit_records import (
    TITLES,
    UNTRIED,
    AuditRecords,
    Line,
    cost,
    percent,
    read_audit,
    skipped,
    verdict,
    with_half,
)
from sgtm.plot.chart import PALETTE, Mean, forest_chart, line_chart
from sgtm.plot.chart import Line as Curve
from sgtm.plot.page import Html, details, grid, page, pairs, paragraph, section, table, tag, tiles, without_secrets
from sgtm.plot.tradeoff import COLORS

PAGE = "audit.html"
_CHOSEN = (
    "Of each attack and run the best setting is taken, by the loss that is reported: what an attacker could have who "
    "knows these rows. ± is half of a 95 % t interval over runs that differ by their seed; one run has none."
)
__all__ = ["PAGE", "audit_page", "read_audit", "verdict", "write_page"]


def write_page(audit: AuditRecords) -> Path:
    """Write the page into the audit's folder; returns its path."""
    path = audit.folder / PAGE
    write(path, audit_page(audit))
    return path


def audit_page(audit: AuditRecords) -> str:
    """The page, from the records alone."""
    others = ", ".join(f"{m} ({len(audit.models[m])})" for m in audit.others) or "nothing"
    runs = len(audit.models[audit.audited])
    subtitle = f"{runs} run{'s' * (runs > 1)}, without {audit.domain}; compared with {others}"
    sections = [
        section("What this says", _tiles(audit), *map(paragraph, verdict(audit))),
        section("What was removed", _removed(audit)),
        section("How much came back", *_came_back(audit), intro=_CHOSEN),
        section("At what cost", *_costs(audit)),
        section("Probes", *_probes(audit)),
        section("Not tried", *_not_tried(audit)),
        section("Every setting", details("all attacks, settings and runs", _everything(audit))),
        section("Settings", *_settings(audit)),
    ]
    return page(f"Audit of {audit.audited}", subtitle, sections)


def colors_of(audit: AuditRecords) -> dict[str, str]:
    """Model -> colour: that of its method as in all figures, of other models the next that is free."""
    free = cycle(color for color in PALETTE if color not in COLORS.values())
    known = {m: COLORS.get(m) or COLORS.get(m.removesuffix("ed")) for m in audit.models}
    return {model: color or next(free) for model, color in known.items()}


def _tiles(audit: AuditRecords) -> Html:
    audited, domain = audit.audited, audit.domain
    without_training = [a for a in audit.attacks if a not in RELEARNING]
    values = {f"{domain} loss, removed": with_half(audit.losses(audited, domain), ".2f")}
    if known := audit.losses(audit.reference, domain):
        values[f"{domain} loss of {audit.reference}"] = with_half(known, ".2f")
    for title, attacks in (("came back by", audit.attacks), ("came back without training, by", without_training)):
        if (attack := audit.strongest(attacks)) is not None:
            values[f"{title} {TITLES[attack]}"] = _back(audit, attack)
    return tiles(values)


def _back(audit: AuditRecords, attack: str) -> str:
    shares = audit.recovered(attack, audit.audited)
    return percent(shares) or f"{with_half(audit.gains(attack, audit.audited), '.2f')} nats"


def _removed(audit: AuditRecords) -> Html:
    domain, rows = audit.domain, []
    for model in (audit.audited, *audit.others):
        losses = [(category, setting) for category in (domain, "retain") for setting in ("intact", "")]
        cells = [with_half(audit.losses(model, *key)) for key in losses]
        rows.append((model, len(audit.models[model]), *cells))
    header = ("model", "runs", f"{domain}, intact", f"{domain}, removed", "retain, intact", "retain, removed")
    return table(header, rows, "Test loss before any attack, nats per token; models without forget units have one loss")


def _came_back(audit: AuditRecords) -> Iterator[Html]:
    colors, models = colors_of(audit), (audit.audited, *audit.others)
    shares = [
        (f"{TITLES[a]} ({a})", [_mean(m, audit.recovered(a, m), colors) for m in models if audit.recovered(a, m)])
        for a in audit.attacks
    ]
    gains = [
        (f"{TITLES[a]} ({a})", [_mean(m, audit.gains(a, m), colors) for m in models if audit.gains(a, m)])
        for a in audit.attacks
    ]
    yield grid(
        forest_chart("Share of what is missing that came back", shares, "recovered share", [1.0]),
        forest_chart("What the attack gives each model", gains, "nats per token of forget loss"),
    )
    yield paragraph(
        "Recovered is (removed - attacked) / (removed - ",
        audit.reference,
        "), each on the same tokens, for each model by what it lacks itself. An attack that trains a model or a prompt "
        "also teaches: what it gives to a model that never had the text is no knowledge that was hidden. So the same "
        "attack on every model stands beside it.",
    )
    yield _table_of_attacks(audit, models)


def _mean(model: str, values: Sequence[float], colors: dict[str, str]) -> Mean:
    mean, half = mean_interval(values)
    return Mean(model, mean, half, values, colors[model])


def _table_of_attacks(audit: AuditRecords, models: Sequence[str]) -> Html:
    rows = []
    for attack in audit.attacks:
        for model in (m for m in models if audit.best(attack, m)):
            lines = audit.best(attack, model)
            before, after = ([r[when][audit.domain] for r in lines] for when in ("before", "after"))
            retain = [r["after"]["retain"] - r["before"]["retain"] for r in lines if "retain" in r["after"]]
            shares = percent(audit.recovered(attack, model)) or "-"
            change = with_half(retain, "+z.3f") if retain else "not measured"
            settings = ", ".join(dict.fromkeys(r["setting"] for r in lines))
            cells = (with_half(before), with_half(after), shares, change, settings)
            rows.append((attack, model, *cells))
    header = ("attack", "model", "before", "after", "recovered", "retain loss changes", "best setting")
    return table(header, rows, f"{audit.domain} loss before and after, nats per token", text_columns=2)


def _costs(audit: AuditRecords) -> Iterator[Html]:
    trained = [a for a in audit.attacks if a in RELEARNING]
    if not trained:
        yield paragraph("No model was fine-tuned.")
        return
    yield grid(*(_curves(audit, attack) for attack in trained))
    levels: list[Line] = next((r["levels"] for a in trained for r in audit.of(a, audit.audited)), [])
    if not levels:
        yield paragraph(f"No model without removal ({audit.reference}) to measure by, so no losses to be reached.")
        return
    header = ("fine-tuning", "model", *(f"{100 * one['share']:.0f} % back: loss {one['loss']:.3f}" for one in levels))
    rows = [
        (a, m, *(str(cost(audit, a, m, one["share"])) for one in levels))
        for a in trained
        for m in (audit.audited, *audit.others)
        if audit.of(a, m)
    ]
    yield table(header, rows, "Steps and forget tokens to the same loss, for every model", text_columns=None)


def _curves(audit: AuditRecords, attack: str) -> Html:
    """Of each model the learning rate with the least loss, mean over runs; a band from the least to the most."""
    colors, curves = colors_of(audit), []
    for model in (m for m in (audit.audited, *audit.others) if audit.best(attack, m)):
        runs = [{p["step"]: p[audit.domain] for p in r["curve"]} for r in audit.best(attack, model)]
        steps = sorted(set.intersection(*map(set, runs)))
        points = [(s, fmean(run[s] for run in runs)) for s in steps]
        band = [(s, min(run[s] for run in runs), max(run[s] for run in runs)) for s in steps] if len(runs) > 1 else []
        curves.append(Curve(model, points, colors[model], band=band))
    known = audit.losses(audit.reference, audit.domain)
    targets = [(audit.reference, fmean(known))] if known else []
    title = TITLES[attack][:1].upper() + TITLES[attack][1:]
    return line_chart(title, curves, "steps", f"{audit.domain} loss (nats per token)", targets)


def _probes(audit: AuditRecords) -> Iterator[Html]:
    if not audit.of("probe", audit.audited):
        yield paragraph("Hidden states were not probed.")
        return
    yield paragraph(
        "A probe tells rows of the domain from others by the mean hidden state of a layer. A high value alone says "
        "little: words tell topics apart in a model that never learned anything, so an untrained model, one that was "
        "never given the text, and shuffled labels stand beside it."
    )
    found: dict[tuple[str, str], dict[int, list[Line]]] = {}
    for model in (audit.audited, *audit.others):
        for line in audit.of("probe", model):
            own = line["states"] == "model"
            if own or model == audit.audited:
                key = (line["other"], model if own else line["states"])
                found.setdefault(key, {}).setdefault(line["layer"], []).append(line)
    layers = sorted({layer for by_layer in found.values() for layer in by_layer})
    rows = [
        (f"{audit.domain} from {other}", whose, *(_auc(by_layer.get(layer, [])) for layer in layers))
        for (other, whose), by_layer in found.items()
    ]
    header = ("told", "states of", *(f"layer {layer}" if layer else "embeddings" for layer in layers))
    caption = "Held-out AUC; of one run with its 95 % bootstrap interval over rows, of several with ± over runs"
    yield table(header, rows, caption, text_columns=2)


def _auc(lines: Sequence[Line]) -> str:
    if len(lines) == 1:
        return f"{lines[0]['auc']:.3f} ({lines[0]['low']:.3f} to {lines[0]['high']:.3f})"
    return with_half([line["auc"] for line in lines])


def _not_tried(audit: AuditRecords) -> Iterator[Html]:
    yield paragraph("What is written above is about the attacks that were made, and about no other. Not made were:")
    made = [f"{what} ({', '.join(models)})" for what, models in skipped(audit).items()]
    absent = [
        f"No model called {name} was compared with." for name in ("none", "filter", "rmu") if not _has(audit, name)
    ]
    yield tag("ul", *(tag("li", text) for text in (*made, *absent, *UNTRIED)))


def _has(audit: AuditRecords, name: str) -> bool:
    return any(name in model for model in audit.models)


def _everything(audit: AuditRecords) -> Html:
    rows = [
        (
            r["attack"],
            r["model"],
            r["run"],
            r["setting"],
            *(f"{r[when][audit.domain]:.3f}" for when in ("before", "after")),
            f"{r['after']['retain']:.3f}" if "retain" in r["after"] else "",
            "" if r["recovered"] is None else f"{100 * r['recovered']:z.0f} %",
            f"{r['steps']:,}",
            f"{r['forget_tokens']:,}",
        )
        for r in audit.lines
        if "before" in r and r["attack"] != "unattacked"
    ]
    header = (
        "attack",
        "model",
        "run",
        "setting",
        "before",
        "after",
        "retain after",
        "recovered",
        "steps",
        "forget tokens",
    )
    return table(header, rows, text_columns=4)


def _settings(audit: AuditRecords) -> Iterator[Html]:
    values = {key: value for key, value in audit.settings.items() if key != "models"}
    yield pairs({key: str(value) for key, value in _flat(without_secrets(values))})
    runs = [(model, run, path) for model, of_model in audit.models.items() for run, path in of_model.items()]
    yield table(("model", "run", "from"), runs, text_columns=None)


def _flat(values: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else value
