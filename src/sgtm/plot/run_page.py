"""A run's page, section by section: what was trained on what, what it lost, and what was measured of it since."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

from sgtm.config import ConfigError
from sgtm.plain import to_yaml
from sgtm.plot.chart import PALETTE, Dash, Dot, Line, line_chart, scatter_chart, short, signed
from sgtm.plot.leakage import leakage_table, read_leakage
from sgtm.plot.page import (
    Html,
    details,
    grid,
    missing,
    page,
    pairs,
    paragraph,
    preformatted,
    rich_table,
    section,
    table,
    tag,
    tiles,
    without_secrets,
)
from sgtm.plot.partition import partition_figure
from sgtm.plot.relearning import Relearning, relearning_table
from sgtm.plot.run_folder import VARIANTS, Record, RunFolder

NATS = "loss (nats per token)"
VARIANT_COLORS = {"intact": PALETTE[0], "ablated": PALETTE[1], "calibrated": PALETTE[2]}
_DASHES: dict[str, Dash] = {"intact": "", "ablated": "dashed", "calibrated": "dotted"}
_MEANINGS = (
    "Intact: the model as it was trained. Ablated: its forget units give zero. Calibrated: ablated, and one bias per "
    "vocabulary entry is fitted, which takes superficial spikes of the loss away. Losses are on the test split."
)


def run_page(found: RunFolder) -> str:
    """The whole page of one run."""
    sections = [part(found) for part in SECTIONS]
    top = tag("section", summary(found), class_="first")
    return page(found.run.name, _subtitle(found), [top, *sections])


def summary(found: RunFolder) -> Html:
    """What a reader wants to know first."""
    numbers: dict[str, object] = {}
    for category in found.categories:
        before, after = found.last(category, "intact"), found.last(category, found.removed)
        if before is not None and after is not None:
            numbers[f"{category} loss, intact → {found.removed}"] = f"{before:.2f} → {after:.2f}"
    if found.num_parameters:
        numbers["parameters"] = short(found.num_parameters)
    numbers["tokens trained on"] = short(max((r["tokens"] for r in found.run.records), default=0))
    if found.tokens_per_second:
        numbers["tokens per second"] = short(round(found.tokens_per_second))
    steps = found.run.config["train"]["steps"]
    warning = f"This run is not finished: step {found.step:,} of {steps:,}."
    return tag("div", *([] if found.is_finished else [tag("p", warning, class_="warning")]), tiles(numbers))


def _subtitle(found: RunFolder) -> str:
    started = found.about.get("started")
    words = [f"sgtm run, method {found.run.config['method']}", f"{found.step:,} steps"]
    return ", ".join([*words, *([f"started {started}"] if started else [])])


def configuration(found: RunFolder) -> Html:
    """The settings that tell runs apart, and all of them as they were resolved."""
    config = without_secrets(found.run.config)
    whole = to_yaml(config)
    return section("Configuration", pairs(_main_settings(config)), details("all settings", preformatted(whole)))


def _main_settings(config: Mapping[str, Any]) -> dict[str, object]:
    train, labels, model = (config.get(name) or {} for name in ("train", "labels", "model"))
    units = config["partition"].get("domains") or {
        "forget": {key: config["partition"].get(key) for key in ("heads", "neurons")}
    }
    own = {f"units of {name}": _words(of) for name, of in units.items() if of}
    noise = {key: value for key, value in labels.items() if value is not None}
    size = {k: v for k, v in (model.get("config") or {}).items() if not isinstance(v, dict | list)}
    chosen = {
        key: train[key]
        for key in ("steps", "batch_size", "learning_rate", "optimizer", "update", "mixing")
        if key in train
    }
    start = {"model": model["from_pretrained"]} if model.get("from_pretrained") else {}
    return {
        "method": config["method"],
        "seed": config.get("seed"),
        **{key.replace("_", " "): value for key, value in chosen.items()},
        **own,
        **{f"labels: {key.replace('_', ' ')}": value for key, value in noise.items()},
        **start,
        **{f"model: {key.replace('_', ' ')}": value for key, value in size.items()},
    }


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{value} {key}" for key, value in values.items() if value is not None)


def data(found: RunFolder) -> Html:
    """What there was to train on, what the labeller said of it, and in which modes it was trained on."""
    parts: list[Html] = []
    if counts := found.manifest.get("counts"):
        parts.append(_counts(counts))
        parts.append(pairs(_origin(found.manifest)))
    else:
        where = found.run.config.get("data", {}).get("path") or "DATA"
        parts.append(missing(f"The manifest of the data is not at {where}", f"sgtm data ... --out {where}"))
    if labels := found.about.get("rows"):
        parts += [tag("h3", "What the labeller said"), _labels(labels)]
    if modes := found.about.get("modes"):
        rows = [[mode, f"{number:,}"] for mode, number in modes.items()]
        parts += [tag("h3", "Modes that rows were trained in"), table(["mode", "rows"], rows)]
    return section("Data", *parts)


def _counts(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Html:
    rows = [
        [split, category, *(f"{number:,}" for number in (of["documents"], of["rows"], of["tokens"]))]
        for split, categories in counts.items()
        for category, of in categories.items()
    ]
    return table(["split", "category", "documents", "rows", "tokens"], rows, text_columns=2)


def _origin(manifest: Record) -> dict[str, object]:
    about = {**manifest.get("origin", {}), **manifest.get("settings", {})}
    shown = {key.replace("_", " "): value for key, value in without_secrets(about).items() if value not in (None, "")}
    return {**shown, "vocabulary": f"{manifest['vocab_size']:,} entries"} if "vocab_size" in manifest else shown


def _labels(rows: Mapping[str, int]) -> Html:
    """Rows by what they truly are, and what they were said to be."""
    cells = {tuple(key.split(" as ", 1)): number for key, number in rows.items() if " as " in key}
    truths, labels = dict.fromkeys(t for t, _ in cells), dict.fromkeys(label for _, label in cells)
    body = [[truth, *(f"{cells.get((truth, label), 0):,}" for label in labels)] for truth in truths]
    return table(["rows that are", *(f"labelled {label}" for label in labels)], body)


def partition(found: RunFolder) -> Html:
    """The units and parameters of every layer, and whose they are."""
    owners = found.about.get("parameters", {})
    if found.partition:
        return section("Partition", partition_figure(found.partition), _rule(found.partition), _owners(owners))
    if set(owners) == {"joint"}:
        what = f"Method {found.run.config['method']} sets no units apart"
        return section("Partition", paragraph(f"{what}: an ordinary model of {owners['joint']:,} parameters."))
    lack = missing("No record of the partition", f"sgtm evaluate {found.folder}")
    return section("Partition", lack, *([_owners(owners)] if owners else []))


def _owners(owners: Mapping[str, int]) -> Html:
    total = sum(owners.values())
    rows = [[owner, f"{number:,}", f"{number / total:.1%}"] for owner, number in owners.items()] if total else []
    return table(["owner", "parameters", "share"], [*rows, ["all", f"{total:,}", "100%"]])


def _rule(partition: Record) -> Html:
    """What a forget batch does, in words."""
    strategy = partition["strategy"]
    passing = {
        "keep": "retain units stay active",
        "detach": "retain units pass no gradient back",
        "zero": "retain units give zero",
    }
    frozen = (
        f"gradients of retain units are then zeroed at {', '.join(strategy['frozen'])}"
        if strategy["frozen"]
        else "no gradient is zeroed"
    )
    masked = [group["group"].replace("_", " ") for group in partition["joint"] if group["masked"]]
    joint = f"so are those of {', '.join(masked)}" if masked else "joint parameters learn from every batch"
    return paragraph(
        f"On a forget batch: {passing[strategy['activations']]}; {frozen}; {joint}. "
        "On a retain batch: forget units give zero."
    )


def losses(found: RunFolder) -> Html:
    """Final losses, and how they came about."""
    if not found.categories:
        return section("Losses", missing("No test loss was recorded", f"sgtm evaluate {found.folder}"))
    charts = [*(_curves(found, category) for category in found.categories), _training(found)]
    shown = [grid(*(chart for chart in charts if chart))]
    if not any(charts[:-1]):
        shown.append(missing("Test losses were recorded once, at the end", "sgtm train ... --evaluate.every STEPS"))
    return section("Losses", _final(found), *shown, *_topics(found), intro=_MEANINGS)


def _final(found: RunFolder) -> Html:
    rows = []
    for category in found.categories:
        values = [found.last(category, variant) for variant in VARIANTS]
        rows.append([category, *(_number(v, values[0] if i else None) for i, v in enumerate(values))])
    return table(["", *VARIANTS], rows, f"test loss at step {found.step:,}, nats per token (change)")


def _number(value: float | None, against: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if against is None else f"{value:.3f} ({signed(value - against)})"


def _curves(found: RunFolder, category: str) -> Html:
    lines = [
        Line(
            variant,
            [(float(x), y) for x, y in found.run.curve(category, variant)],
            VARIANT_COLORS[variant],
            _DASHES[variant],
        )
        for variant in VARIANTS
    ]
    if max(len(line.points) for line in lines) < 2:  # the table has it
        return Html("")
    return line_chart(f"Test loss, {category}", lines, "step", NATS)


def _training(found: RunFolder) -> Html:
    curve = [(float(r["step"]), r["loss"]) for r in found.run.records if r["split"] == "train"]
    return line_chart("Training loss, all text", [Line("training", curve, "#6b6b6b", marked=False)], "step", NATS)


def _topics(found: RunFolder) -> list[Html]:
    last = [r for r in found.run.records if r["split"] == "test" and r["step"] == found.step and "/" in r["category"]]
    names = dict.fromkeys(r["category"] for r in last)
    losses = {(r["category"], r["variant"]): r["loss"] for r in last}
    rows = [[name, *(_number(losses.get((name, v))) for v in VARIANTS)] for name in names]
    return [details("losses by topic", table(["nats per token", *VARIANTS], rows))] if rows else []


def tradeoff(found: RunFolder) -> Html:
    """Each domain's loss against the retain loss, with the way there."""
    charts = [chart for domain in found.run.domains if (chart := _tradeoff(found, domain))]
    if not charts:
        return section("Trade-off", missing("No losses of retain and forget text", f"sgtm evaluate {found.folder}"))
    intro = "Better is up and to the left: what is to be removed is lost, and nothing else. The line is the way there."
    return section("Trade-off", grid(*charts), intro=intro)


def _tradeoff(found: RunFolder, domain: str) -> Html:
    dots = []
    for variant in VARIANTS:
        kept, lost = dict(found.run.curve("retain", variant)), dict(found.run.curve(domain, variant))
        way = [(kept[step], lost[step]) for step in sorted(kept.keys() & lost.keys())]
        if way:
            dots.append(Dot(variant, *way[-1], VARIANT_COLORS[variant], way))
    name = "Removal" if domain == "forget" else f"Removal of {domain}"
    return scatter_chart(name, dots, "retain loss (nats per token)", f"{domain} loss (nats per token)")


def matrix(found: RunFolder) -> Html:
    """Losses of every category without each domain."""
    losses = {(tuple(r["without"]), r["category"]): r["loss"] for r in found.matrix} or _matrix_of_one_domain(found)
    command = f"sgtm evaluate {found.folder} --matrix"
    if not losses:
        return section("Ablation matrix", missing("No ablation matrix was recorded", command))
    removed, categories = dict.fromkeys(key for key, _ in losses), dict.fromkeys(c for _, c in losses)
    rows = [
        [
            ", ".join(names) or "nothing",
            *(_number(losses.get((names, c)), losses.get(((), c)) if names else None) for c in categories),
        ]
        for names in removed
    ]
    note = "Test loss of the model as trained, and without the units of each domain, not calibrated (and the change)."
    return section("Ablation matrix", table(["without", *categories], rows), intro=note)


def _matrix_of_one_domain(found: RunFolder) -> dict[tuple[tuple[str, ...], str], float]:
    """With one domain the recorded losses are the whole matrix."""
    if len(found.run.domains) > 1 or not found.partition:
        return {}
    variants = {(): "intact", found.run.domains: "ablated"}
    return {
        (names, category): loss
        for names, variant in variants.items()
        for category in found.categories
        if (loss := found.last(category, variant)) is not None
    }


def generations(found: RunFolder) -> Html:
    """What the model says before and after removal."""
    if not found.generations:
        command = f"sgtm evaluate {found.folder} --generations 2"
        return section("Generations", missing("No continuations were recorded", command))
    texts: dict[tuple[str, str], list[Record]] = {}
    for r in found.generations:
        texts.setdefault((r["category"], r["prompt"]), []).append(r)
    cards = [_speech(category, prompt, said) for (category, prompt), said in texts.items()]
    return section(
        "Generations", *cards, intro="Beginnings of test texts, continued greedily, before and after removal."
    )


def _speech(category: str, prompt: str, said: Sequence[Record]) -> Html:
    lines = [("the text itself", said[0]["truth"]), *((r["variant"], r["text"]) for r in said)]
    begun = tag("p", tag("span", f"{category}: ", class_="who"), tag("strong", prompt), " …")
    answers = (tag("div", tag("dt", who), tag("dd", text.strip() or "(nothing)")) for who, text in lines)
    return tag("div", begun, tag("dl", *answers), class_="speech")


def leakage(found: RunFolder) -> Html:
    """How much the run has learned of what nobody labelled, in data of ordinary models."""
    try:
        records = read_leakage([found.folder])
    except ConfigError:
        return section("Leakage", missing("No leakage was measured", f"sgtm leakage {found.folder}"))
    intro = (
        "What the run learned from undiscovered forget data, in forget tokens of ordinary models, and as a share of it."
    )
    return section("Leakage", rich_table(leakage_table(records)), intro=intro)


def relearning(found: RunFolder) -> Html:
    """How fast the removed comes back under fine-tuning."""
    if not found.relearnings:
        domains = found.run.domains
        which = f" --domain {domains[0]}" if len(domains) > 1 else ""
        command = f"sgtm relearn {found.folder} --target MODEL{which} --out {found.folder}-relearned"
        return section("Relearning", missing("No relearning was tried", command))
    charts = [chart for one in found.relearnings if (chart := _relearning(one))]
    intro = (
        "The model without its forget units, fine-tuned on forget text: the fewer steps it takes, the less was removed."
    )
    return section("Relearning", rich_table(relearning_table(found.relearnings)), grid(*charts), intro=intro)


def _relearning(one: Relearning) -> Html:
    domain, others = one.summary["domain"], cycle(PALETTE)
    lines = []
    for rate in dict.fromkeys(r["learning_rate"] for r in one.records):
        curve = [
            (float(r["step"]), r["loss"]) for r in one.records if r["learning_rate"] == rate and r["category"] == domain
        ]
        best = ", best" if rate == one.summary["best"] else ""
        lines.append(Line(f"learning rate {rate:g}{best}", curve, next(others)))
    target = one.summary["target"]
    targets = [] if target is None else [("target", target)]
    return line_chart(f"Relearning {domain} ({one.folder.name})", lines, "fine-tuning step", NATS, targets)


def throughput(found: RunFolder) -> Html:
    """Tokens per second over the course of training."""
    if not found.tokens_per_second:
        return section("Throughput", missing("No times were recorded (by an earlier version)", "sgtm train"))
    seconds = sum(r["seconds"] for r in found.throughput)
    numbers: dict[str, object] = {
        "tokens per second": f"{found.tokens_per_second:,.0f}",
        "training, without evaluations": _duration(seconds),
        "steps per second": f"{found.step / seconds:.3g}",
    }
    if found.num_parameters:
        numbers["FLOP/s (6 × parameters × tokens)"] = short(6 * found.num_parameters * found.tokens_per_second)
    numbers |= _of_devices(found.throughput)
    curve = [(float(r["step"]), r["tokens"] / r["seconds"]) for r in found.throughput if r["seconds"]]
    chart = line_chart("Speed", [Line("training", curve, marked=False)], "step", "tokens per second")
    return section("Throughput", pairs(numbers), chart)


def _of_devices(records: list[dict[str, Any]]) -> dict[str, object]:
    """Memory, MFU and the examples of each mode, where a run recorded them."""
    numbers: dict[str, object] = {}
    if memory := [r["memory_mb"] for r in records if "memory_mb" in r]:
        numbers["peak memory of a process"] = f"{max(memory):,.0f} MB"
    if rates := [(r["mfu"], r["seconds"]) for r in records if "mfu" in r]:
        mean = sum(mfu * seconds for mfu, seconds in rates) / sum(seconds for _, seconds in rates)
        numbers["MFU (6 × parameters × tokens)"] = f"{mean:.1%}"
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.get("examples", {}))
    return numbers | {f"trained in {mode} mode": f"{number:,}" for mode, number in counts.items()}


def _duration(seconds: float) -> str:
    unit, size = ("s", 1) if seconds < 120 else ("min", 60) if seconds < 7200 else ("h", 3600)
    return f"{seconds / size:.1f} {unit}"


def environment(found: RunFolder) -> Html:
    """The machine and the libraries."""
    if not (about := found.about.get("environment")):
        return section("Environment", missing("No run.json", "sgtm train"))
    return section("Environment", pairs({key.replace("_", " "): value for key, value in about.items()}))


SECTIONS: tuple[Callable[[RunFolder], Html], ...] = (
    losses,
    generations,
    tradeoff,
    matrix,
    partition,
    data,
    configuration,
    relearning,
    leakage,
    throughput,
    environment,
)
