"""Labels for texts that have none: a classifier from a few hundred examples, two thresholds, every row labelled.

Writes the rows of any source with two more columns, ``label`` (a domain, retain, unlabeled) and ``score``, as parquet
files of ``shard_rows`` rows, with the classifier and a manifest. Rows are streamed; an interrupted run goes on.
"""

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm.auto import tqdm

from sgtm.config import ClassifyConfig, ConfigError, nearest
from sgtm.data.classify import NO_DOMAIN, Classifier, fit, shift
from sgtm.data.examples import NOT_SHOWN, Examples, codes_of, from_column, from_file, strings, tables
from sgtm.data.thresholds import (
    Scored,
    Targets,
    Thresholds,
    assign,
    check,
    choose,
    confusion,
    estimate_prevalence,
)
from sgtm.data.tinystories import open_columns
from sgtm.data.tokenize import MANIFEST, UNLABELED

CLASSIFIER = "classifier.safetensors"
_BINS = 1000  # of scores, to estimate how frequent a domain is
_OFF = 2.0  # so many times as frequent as in the examples is worth a warning
_MOST_OTHERS, _SHOWN = 20, 6  # labels of no domain that the manifest keeps, that are told
_SHARD = "part-{:05}.parquet"


def label_texts(
    source: str,
    config: ClassifyConfig,
    examples: str | None = None,
    column: str | None = None,
    split: str = "train",
    resume: bool = False,
) -> dict[str, Any]:
    """Label all rows of ``source`` and return the manifest.

    Rows that were labelled by hand keep that label: those with a value in ``column``, and those whose text stands among
    the ``examples``.

    Args:
        source: a parquet, json, jsonl or arrow file, a folder of such files, or a name on the Hub (streamed).
        examples: a file with the text column and ``category`` or ``label``.
        column: instead, a column of the source itself that has labels in some rows.
        resume: go on with an interrupted run of the same settings.

    Raises:
        ConfigError: no such data, column or domain; too few examples; targets that are not reached (with what is
            reachable); or labels of other settings in ``config.out``.
    """
    if (examples is None) == (column is None):
        raise ConfigError("give labels to learn from: --examples FILE, or --column NAME of the data itself (not both)")
    settings = _settings(source, split, config, examples, column)
    out = config.out
    manifest = _open(out, settings, resume)
    rows, columns = open_columns(source, split, streaming=True)
    _check_columns(columns, config, column, source)
    if not len(next(tables(rows), ())):
        raise ConfigError(f"{source} has no rows")
    shown = from_file(examples, config) if examples is not None else from_column(rows, column, config)
    if manifest is None:
        classifier, manifest = _learn(shown, config, settings)
        out.mkdir(parents=True, exist_ok=True)
        classifier.save(out / CLASSIFIER)
        _write_manifest(out, manifest)
    elif manifest["examples"]["sha256"] != shown.hash:
        raise ConfigError(f"the examples are others than those that {out} was begun with; choose another --out")
    labeller = _Labeller(Classifier.load(out / CLASSIFIER), manifest, shown, column, config)
    _write_shards(rows, labeller, config)
    return _finish(out, manifest, config, columns)


class _Labeller:
    """Rows -> the same rows with label and scores."""

    def __init__(
        self,
        classifier: Classifier,
        manifest: dict[str, Any],
        shown: Examples,
        column: str | None,
        config: ClassifyConfig,
    ) -> None:
        self.classifier, self.column, self.config = classifier, column, config
        self.thresholds = [Thresholds(**manifest["thresholds"][name]) for name in config.values]
        self.by_hand = shown.by_hand
        self.names = pa.array([*config.values, "retain", UNLABELED])

    def __call__(self, table: pa.Table) -> pa.Table:
        column, config = self.column, self.config
        texts = strings(table, config.text_column)
        scores = self.classifier.scores(texts)
        codes = assign(scores, self.thresholds)
        by_hand = np.array([self.by_hand.get(text, NOT_SHOWN) for text in texts], np.int64)
        if column is not None:
            by_hand = codes_of(strings(table, column), config)
            if column == "label":
                table = table.drop_columns(["label"])
        retain = len(config.values)
        codes = np.where(by_hand == NOT_SHOWN, codes, np.where(by_hand == NO_DOMAIN, retain, by_hand))
        is_empty = np.array([not text.strip() for text in texts], bool)  # nothing that a classifier could tell by
        codes = np.where(is_empty & (by_hand == NOT_SHOWN), retain + 1, codes)
        table = table.append_column("label", self.names.take(pa.array(codes)))
        for name, of_domain in zip(_score_columns(config), scores.T, strict=True):
            table = table.append_column(name, pa.array(of_domain, pa.float32()))
        return table


def _learn(shown: Examples, config: ClassifyConfig, settings: dict[str, Any]) -> tuple[Classifier, dict[str, Any]]:
    """The classifier, and the manifest with its thresholds and what was measured.

    Classifier, calibration and thresholds come from one part of the examples (by cross-validation), the measured errors
    from the held-out part, which none of them has seen.
    """
    domains = tuple(config.values)
    held = _held_out(shown.codes, config)
    classifier, scores = fit(shown.of(~held), shown.codes[~held], domains, config.features, config.seed)
    weights = np.ones((len(shown.codes), len(domains)))
    if config.prevalences:
        is_domain, prevalences = shown.codes[:, None] == np.arange(len(domains)), np.array(config.prevalences)
        shares = is_domain.mean(0)
        classifier, scores = classifier.shifted(shares, prevalences), shift(scores, shares, prevalences)
        weights = np.where(is_domain, prevalences / shares, (1 - prevalences) / (1 - shares))
    thresholds = _thresholds(scores, shown.codes[~held], weights[~held], config)
    drawn = assign(classifier.scores(shown.of(held)), list(thresholds.values()))
    counts = {name: int((shown.codes == d).sum()) for d, name in (*enumerate(domains), (NO_DOMAIN, "others"))}
    return classifier, {
        "settings": settings,
        "examples": {**counts, "held_out": int(held.sum()), "sha256": shown.hash},
        "other_labels": dict(islice(shown.others.items(), _MOST_OTHERS)),
        "thresholds": {domain: asdict(found) for domain, found in thresholds.items()},
        "held_out": confusion(drawn, shown.codes[held], weights[held], domains),
    }


def _thresholds(
    scores: NDArray[np.float64], codes: NDArray[np.int64], weights: NDArray[np.float64], config: ClassifyConfig
) -> dict[str, Thresholds]:
    """Those of each domain, by cross-validated ``scores`` (examples, domains)."""
    targets, found = Targets(config.target_precision, config.target_recall), {}
    for d, domain in enumerate(config.values):
        known = Scored(scores[:, d], codes == d, weights[:, d])
        found[domain] = choose(known, targets)
        check(found[domain], domain, known, targets)
    return found


def _held_out(codes: NDArray[np.int64], config: ClassifyConfig) -> NDArray[np.bool_]:
    """(examples,) which are held out: the same share of each domain and of the others."""
    rng, held = np.random.default_rng(config.seed), np.zeros(len(codes), bool)
    for code in np.unique(codes):
        of_code = rng.permutation(np.flatnonzero(codes == code))
        held[of_code[: round(config.held_out * len(of_code))]] = True
    return held


def _score_columns(config: ClassifyConfig) -> list[str]:
    return ["score"] if len(config.values) == 1 else [f"score_{name}" for name in config.values]


def _check_columns(columns: list[str], config: ClassifyConfig, column: str | None, source: str) -> None:
    needed = [config.text_column, *([column] if column is not None else [])]
    for name in needed:
        if name not in columns:
            raise ConfigError(f"{source} has no column {name!r}{nearest(name, columns)}; it has {columns}")
    for name in ("label", *_score_columns(config)):
        if name in columns and name != column:
            raise ConfigError(
                f"{source} has a column {name!r} already; rename it, or complete a column of labels with --column label"
            )


def _settings(
    source: str, split: str, config: ClassifyConfig, examples: str | None, column: str | None
) -> dict[str, Any]:
    path = Path(source)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
    if path.is_dir() and path.resolve() in (config.out.resolve(), *config.out.resolve().parents):
        raise ConfigError(f"--out {config.out} lies in {source}, which is read; choose another folder")
    sizes = {str(p.relative_to(path) if path.is_dir() else p.name): p.stat().st_size for p in files}
    given = {key: value for key, value in asdict(config).items() if key != "out"}
    return {"source": source, "split": split, "bytes": sizes, "examples": examples, "column": column, **given}


def _open(out: Path, settings: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """The manifest of an interrupted run, if there is one."""
    if not out.exists():
        if resume:
            raise ConfigError(f"{out} holds nothing to resume; start without --resume")
        return None
    file = out / MANIFEST
    manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "thresholds" not in manifest or "shards" in manifest or not resume:
        hint = "go on with --resume, or " if "thresholds" in manifest and "shards" not in manifest else ""
        raise ConfigError(f"{out} exists already; {hint}remove it, or choose another --out")
    before, now = manifest["settings"], json.loads(json.dumps(settings))
    if changed := [key for key in now if before.get(key) != now[key]]:
        raise ConfigError(
            f"{out} was begun with another {', '.join(changed)}; resume with the same, or choose another --out"
        )
    return manifest


def _write_manifest(out: Path, manifest: dict[str, Any]) -> None:
    partial = out / f"{MANIFEST}.partial"
    partial.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    partial.rename(out / MANIFEST)


def _write_shards(rows: Any, labeller: _Labeller, config: ClassifyConfig) -> None:
    """Write what is not written yet; a file has its name only when it is whole."""
    done = _shards(config.out)
    written = sum(pq.read_metadata(file).num_rows for file in done)
    schema = pq.read_schema(done[0]) if done else None
    number, room, writer = len(done), config.shard_rows, None
    progress = tqdm(desc="rows", initial=written, unit="", unit_scale=True, leave=False)
    for table in map(labeller, tables(rows, written)):
        schema = schema or _schema(table)
        table = _cast(table, schema)
        progress.update(len(table))
        while len(table):
            writer = writer or pq.ParquetWriter(_partial(config.out, number), schema)
            writer.write_table(table.slice(0, room))
            room, table = room - min(room, len(table)), table.slice(min(room, len(table)))
            if not room:
                _close(writer, config.out, number)
                number, room, writer = number + 1, config.shard_rows, None
    progress.close()
    if writer is not None:
        _close(writer, config.out, number)


def _schema(table: pa.Table) -> pa.Schema:
    """The types of the first rows; a column that is empty there can only be text."""
    fields = [pa.field(f.name, pa.string()) if pa.types.is_null(f.type) else f for f in table.schema]
    return pa.schema(fields)


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError, ValueError) as error:
        raise ConfigError(f"the rows do not all have the same columns and types: {error}") from error


def _close(writer: pq.ParquetWriter, out: Path, number: int) -> None:
    writer.close()
    _partial(out, number).rename(out / _SHARD.format(number))


def _partial(out: Path, number: int) -> Path:
    return out / f"{_SHARD.format(number)}.partial"


def _shards(out: Path) -> list[Path]:
    return sorted(out.glob("part-*.parquet"))


def _finish(out: Path, manifest: dict[str, Any], config: ClassifyConfig, columns: list[str]) -> dict[str, Any]:
    """Count what was written; the manifest is complete when it has its shards."""
    labels: Counter[str] = Counter()
    truths: Counter[str] = Counter()
    bins = np.zeros((len(config.values), _BINS))
    files = _shards(out)
    for file in files:
        with pq.ParquetFile(file) as opened:
            wanted = ["label", *_score_columns(config), *(["category"] if "category" in columns else [])]
            for batch in opened.iter_batches(columns=wanted):
                _count(batch, labels, truths, bins, config)
    done = manifest | {
        "rows": sum(labels.values()),
        "labels": dict(sorted(labels.items())),
        **({"truth": dict(sorted(truths.items()))} if truths else {}),
        "prevalence": _prevalence(manifest, bins, config),
        "shards": {file.name: _sha256(file) for file in files},
        "versions": {name: version(name) for name in ("sgtm", "scikit-learn")},
    }
    _write_manifest(out, done)
    return done


def _count(
    batch: pa.RecordBatch, labels: Counter[str], truths: Counter[str], bins: NDArray[Any], config: ClassifyConfig
) -> None:
    said = batch["label"].to_pylist()
    labels.update(said)
    if "category" in batch.schema.names:
        truths.update(f"{truth} as {label}" for truth, label in zip(batch["category"].to_pylist(), said, strict=True))
    for counts, name in zip(bins, _score_columns(config), strict=True):
        counts += np.histogram(batch[name].to_numpy(), _BINS, (0, 1))[0]


def _prevalence(manifest: dict[str, Any], bins: NDArray[Any], config: ClassifyConfig) -> dict[str, dict[str, float]]:
    """How frequent each domain is where the errors were measured, and, as the scores say, in the data."""
    known = manifest["examples"]
    total = sum(known[name] for name in (*config.values, "others"))
    measured = config.prevalences or tuple(known[name] / total for name in config.values)
    centres = (np.arange(_BINS) + 0.5) / _BINS
    return {
        name: {"measured_at": share, "estimated": estimate_prevalence(centres, counts, share)}
        for name, share, counts in zip(config.values, measured, bins, strict=True)
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def summary(manifest: dict[str, Any]) -> str:
    """What a person wants to know of the labels."""
    total = manifest["rows"]
    labels = ", ".join(f"{name} {n:,} ({n / total:.1%})" for name, n in manifest["labels"].items())
    lines = [f"{total:,} rows: {labels}"]
    others = manifest.get("other_labels", {})  # labels that were written before they were counted have none
    if others:
        said = ", ".join(f"{value!r} ({n:,})" for value, n in islice(others.items(), _SHOWN))
        more = ", ..." if len(others) > _SHOWN else ""
        lines.append(f"examples of no domain were labelled {said}{more}")
    for value in others:
        if near := nearest(value, manifest["thresholds"]):
            lines.append(f"caution: examples labelled {value!r} were taken as examples of no domain{near}")
    for domain, of_domain in manifest["held_out"]["measured"].items():
        shares = "; ".join(
            f"{what} {_interval(of_domain[key])}"
            for what, key in (
                (f"labelled {domain} that are", "precision"),
                (f"of all {domain} labelled so", "recall"),
                ("labelled retain", "labelled_retain"),
            )
        )
        lines.append(f"on {manifest['examples']['held_out']} held-out examples: {shares}")
    for domain, found in manifest["prevalence"].items():
        ratio = found["estimated"] / found["measured_at"]
        if not 1 / _OFF <= ratio <= _OFF:
            lines.append(
                f"caution: {domain} seems to be {found['estimated']:.1%} of the data, but errors were measured where "
                f"it is {found['measured_at']:.1%}; with its true share as --prevalence they are measured for this data"
            )
    return "\n".join(lines)


def _interval(share: dict[str, float | None]) -> str:
    if share["share"] is None:
        return "none"
    return f"{share['share']:.1%} (95 % interval {share['low']:.1%} to {share['high']:.1%})"
