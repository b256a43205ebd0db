"""The words that all rooms share, and a run's configuration: frozen dataclasses <- YAML <- command line.

An unknown key is an error that names the nearest known one. The resolved configuration is written beside the run, so
that ``sgtm train RUN/config.yaml`` repeats it.
"""

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

Category = str  # what a document truly is: a domain (`forget` where there is one), adjacent, retain
Label = str  # what the labeller says: a domain, retain, unlabeled
Mode = str  # how a batch is trained on: default, retain, or for a domain
DOMAINS = ("forget",)  # the one domain of a run that names none


def categories(domains: Iterable[str]) -> tuple[Category, ...]:
    """The categories of data with these ``domains``; a category's code is its index."""
    return (*domains, "adjacent", "retain")


def labels(domains: Iterable[str]) -> tuple[Label, ...]:
    """The labels of data with these ``domains``; a label's code is its index."""
    return (*domains, "retain", "unlabeled")


def modes(domains: Iterable[str]) -> tuple[Mode, ...]:
    """The modes of a model with these ``domains``; a mode's code is its index."""
    return ("default", "retain", *domains)


_MEANT = ("default", "retain", "joint", "adjacent", "unlabeled")  # names with a meaning of their own
CATEGORIES, LABELS, MODES = categories(DOMAINS), labels(DOMAINS), modes(DOMAINS)

T = TypeVar("T")


def nearest(word: object, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known word nearest to ``word``, or nothing if none is near."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_domain_name(name: str) -> None:
    """Raise a ConfigError if ``name`` cannot name a domain."""
    if name in _MEANT or not str(name).isidentifier():
        raise ConfigError(
            f"{name!r} cannot name a domain; use a word of letters, digits and _ other than {', '.join(_MEANT)}"
        )


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says value, rule and remedy."""


@dataclass(frozen=True)
class DataConfig:
    """Prepared data (`sgtm data ...`)."""

    path: str = ""
    """Folder with the splits train and test and, beside them, manifest.json and the tokenizer."""
    parts: dict[str, str] = field(default_factory=dict)
    """Instead of path: folders prepared by the paper's code, by category ({retain: .../en, forget: .../es})."""
    tokenizer: str = "gpt2"
    """The tokenizer of `parts`."""


@dataclass(frozen=True)
class LabelConfig:
    """How well the labeller works: `undiscovered`, or tpr and fpr, or precision and recall."""

    undiscovered: float | None = None
    """Share of forget documents left unlabeled (= 1 - tpr), without false positives."""
    tpr: float | None = None
    """Share of forget documents labelled forget."""
    fpr: float | None = None
    """Share of all other documents labelled forget by mistake."""
    precision: float | None = None
    """Share of documents labelled forget that are."""
    recall: float | None = None
    """The same as tpr."""
    retain_fraction: float = 0.25
    """Share of non-forget documents labelled retain."""

    @property
    def is_noisy(self) -> bool:
        """Whether a rate of errors is set."""
        rates = (self.undiscovered, self.tpr, self.fpr, self.precision, self.recall)
        return any(rate is not None for rate in rates)

    def __post_init__(self) -> None:
        for name in ("undiscovered", "tpr", "fpr", "precision", "recall", "retain_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"labels.{name}={value} is no fraction; use 0 to 1")
        given = {n for n in ("undiscovered", "tpr", "fpr", "precision", "recall") if getattr(self, n) is not None}
        if given not in ({"undiscovered"}, {"tpr"}, {"tpr", "fpr"}, {"precision", "recall"}, set()):
            raise ConfigError(
                f"labels has {sorted(given)}; use undiscovered, or tpr (and fpr), or precision and recall"
            )
        if self.precision == 0:
            raise ConfigError("labels.precision=0 would label no forget document; use tpr=0 and fpr instead")


@dataclass(frozen=True)
class ModelConfig:
    """A new model from a Hugging Face configuration, or a trained one to go on from."""

    config: dict[str, Any] = field(default_factory=dict)
    """The fields of the family's configuration, `model_type` among them; vocab_size comes from the data."""
    from_pretrained: str | None = None
    """Instead of config: start from this checkpoint (a folder or a name on the Hub)."""
    expand: bool = False
    """Add the forget units to the model instead of taking them from its own (Expand, Route, Ablate)."""
    expand_init: Literal["normal", "copy"] = "normal"
    """How the input side of added units starts; their output side is zero."""
    head_bias: bool = False
    """Add a zero-initialised bias to the head, as the paper's models have (GPT-Neo only; cannot be exported)."""
    init: Literal["hf", "paper"] = "hf"
    """`paper` starts split layers as the paper's code did (GPT-Neo only)."""


@dataclass(frozen=True)
class PartitionConfig:
    """Which units are to be removed."""

    heads: int = 1
    """Forget heads of each layer (h_forget)."""
    neurons: int = 64
    """Forget neurons of each layer (d_forget)."""
    domains: dict[str, Any] = field(default_factory=dict)
    """Instead of heads and neurons, where there are several domains: {biology: {heads: 1, neurons: 64}, cyber: ...}."""
    layers: list[int] | None = None
    """Layers with forget units; all by default."""
    joint: list[str] = field(default_factory=list)
    """Joint parameters that forget batches leave alone: embeddings, norms, final_norm, head, or globs of names."""

    def __post_init__(self) -> None:
        for name, units in self.domains.items():
            check_domain_name(name)
            whole = isinstance(units, dict) and all(type(n) is int and n >= 0 for n in units.values())
            if not whole or units.keys() - {"heads", "neurons"}:
                raise ConfigError(f"partition.domains.{name}={units!r}: give {{heads: ..., neurons: ...}}")
            if not any(units.values()):
                raise ConfigError(f"partition.domains.{name}={units}: heads=0 and neurons=0 leave no forget units")

    @property
    def names(self) -> tuple[str, ...]:
        """The domains."""
        return tuple(self.domains) or DOMAINS


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation. AdamW; linear warm-up from 0.1 x learning_rate, then cosine to 0."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 128
    """Examples of one optimizer step, over all devices and accumulated micro-batches."""
    micro_batch_size: int | None = None
    """Examples that one device holds at a time; by default its whole share of the batch."""
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    """Clip the norm of the (masked) gradient; 0 = never."""
    optimizer: str = "adamw_torch"
    """Any of Trainer's names."""
    update: Literal["gradient", "strict", "per_block"] = "gradient"
    """`gradient` zeroes masked gradients (the paper); `strict` does not move masked parameters at all; `per_block` in
    addition clips and counts each block (joint, retain, each domain) by itself."""
    forget_lr_scale: float = 1.0
    """Learning rate of the forget units, as a multiple of learning_rate."""
    hear_domains: float = 0.5
    """With several domains, share of the steps in which a random part of them takes part in examples of other modes,
    without being updated, so that the model can do with and without any of them."""
    mixing: Literal["example", "step", "step_draw"] = "example"
    """`example` mixes modes within every step; `step` gives each step one mode; `step_draw` gives each step one
    category and draws its label for the whole step (the paper's code)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    log_every: int = 50
    save_every: int | None = None
    """Steps between checkpoints, from which --resume goes on; by default a tenth of the run."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Any other field of transformers.TrainingArguments (report_to, torch_compile, ...)."""

    def __post_init__(self) -> None:
        _check_counts(self, "train", "steps", "batch_size", "micro_batch_size", "log_every", "save_every")
        if not 0 <= self.warmup_steps < self.steps:
            raise ConfigError(f"train.warmup_steps={self.warmup_steps} must be less than train.steps={self.steps}")
        if not 0 <= self.hear_domains <= 1:
            raise ConfigError(f"train.hear_domains={self.hear_domains} is no fraction; use 0 to 1")
        for name in ("learning_rate", "forget_lr_scale"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"train.{name}={getattr(self, name)} must be positive")


@dataclass(frozen=True)
class EvaluateConfig:
    """Losses on the test split."""

    every: int | None = None
    """Steps between evaluations during training; by default only at the end."""
    rows: int | None = None
    """Test rows of each category; all by default."""
    batch_size: int = 64
    """Rows of one forward pass."""

    def __post_init__(self) -> None:
        _check_counts(self, "evaluate", "every", "rows", "batch_size")


@dataclass(frozen=True)
class CalibrateConfig:
    """One bias per vocabulary entry, fitted on the frozen model: takes superficial spikes away."""

    steps: int = 200
    learning_rate: float = 1e-2
    """Falls linearly to 0.1 x."""
    retain_weight: float = 100.0
    """loss = forget + retain_weight x retain (+ retain_weight x adjacent)."""
    rows: int = 256
    """Training rows of each category to fit on."""
    tokens: int = 2048
    """Tokens of each category in one step."""
    every_evaluation: bool = False
    """Calibrate at every evaluation, not only at the end (the trade-off curves)."""

    def __post_init__(self) -> None:
        _check_counts(self, "calibrate", "steps", "rows", "tokens")
        if self.learning_rate <= 0 or self.retain_weight < 0:
            raise ConfigError(
                f"calibrate.learning_rate={self.learning_rate} must be positive and "
                f"retain_weight={self.retain_weight} not negative"
            )


def _check_counts(config: Any, section: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{section}.{name}={value} must be at least 1")


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: str = "sgtm"
    """none, filter, sgtm (= parameter_masking), gradient_routing, activation_masking, or a parameter_masking_no_*."""
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    seed: int = 0
    """Initial weights, labels, order of the data, calibration."""


@dataclass(frozen=True)
class PrepareConfig:
    """How a source of documents becomes rows of tokens."""

    out: Path
    """Folder to write; it must not exist yet."""
    tokenizer: str = "gpt2"
    """A name on the Hub, a folder or tokenizer.json, or train:VOCAB for a new byte-level BPE."""
    context: int = 512
    """Tokens of a row, at most."""
    pack: bool = False
    """Fill rows with several documents of one category; by default each document has rows of its own."""
    test_fraction: float = 0.01
    """Share of the documents kept for the test split, where the source has none of its own."""
    seed: int = 0
    """Chooses the test documents."""

    def check(self) -> None:
        """Raise a ConfigError for settings that make no sense, before anything is read or written."""
        if self.out.exists():
            raise ConfigError(f"{self.out} exists already; remove it or choose another --out")
        if self.context < 2:
            raise ConfigError(f"context={self.context} leaves no token to predict; use at least 2")
        if not 0 < self.test_fraction < 1:
            raise ConfigError(
                f"test_fraction={self.test_fraction}: the test split must be smaller than the data and not empty; "
                "use more than 0 and less than 1"
            )


@dataclass(frozen=True)
class WikipediaConfig:
    """Which articles of Wikipedia are to be removed, by the topics that ORES gave them."""

    topics: Path
    """Rows of wikidata_id,page_id,title,source,topic,score, with or without a header; plain, gzip or zstd."""
    source: str = "wikimedia/wikipedia:20231101.en"
    """Articles with columns id and text: a parquet file, a folder of them, or NAME:CONFIGURATION on the Hub."""
    wiki: str = "enwiki"
    """The `source` of the topics' rows that belong to these articles; page ids of other wikis collide with them."""
    forget: str = "STEM.Biology"
    """Topics to be removed, with commas between. Several domains: biology=STEM.Biology,chemistry=STEM.Chemistry."""
    adjacent: str = "STEM.Earth_and_environment,STEM.Chemistry,STEM.Medicine_&_Health"
    """Topics near to them. A name stands for all topics below it too (Culture.Media for Culture.Media.Films)."""
    test_documents: int = 5000
    """Test documents of each category, at most; nor more than the share test_fraction of the category."""
    shard: int = 20_000
    """Documents after which a run that is killed can go on."""
    processes: int | None = None
    """Processes that tokenise; by default one for each core. What is written does not depend on it."""

    def __post_init__(self) -> None:
        _check_counts(self, "wikipedia", "test_documents", "shard", "processes")


def load(path: str | Path, **changes: Any) -> RunConfig:
    """Read a run's configuration from a YAML file.

    Raises:
        ConfigError: no such file, no mapping, an unknown key (the nearest is named), or a value of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} is no file; give the path of a run's YAML configuration (examples in configs/)")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    return dataclasses.replace(build(RunConfig, values, str(path)), **changes)


def dump(config: Any, path: str | Path) -> None:
    """Write ``config`` as YAML that ``load`` reads back to an equal configuration."""
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")


def build(cls: type[T], values: Any, where: str) -> T:
    """An instance of the dataclass ``cls`` from plain ``values``; ``where`` begins the error messages."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: {values!r} is no mapping of keys to values")
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, hints)} (known: {', '.join(hints)})")
    return cls(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint``. YAML reads 6e-4 as text and 1 as an integer: numbers are converted."""
    if dataclasses.is_dataclass(hint):
        return build(hint, {} if value is None else value, where)  # type: ignore[arg-type]
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}={value!r} is none of {list(args)}")
        return value
    if origin is list and isinstance(value, list):
        return [_value(args[0], v, where) for v in value]
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, origin or hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}={value!r} must be of type {getattr(hint, '__name__', hint)}")
