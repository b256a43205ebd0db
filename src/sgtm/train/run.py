"""One run, from its configuration to a trained, evaluated model on disk."""

import json
import shutil
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.utils.logging import disable_progress_bar

from sgtm.config import Category, ConfigError, PartitionConfig, RunConfig, StoppedError, dump, load, read_json, write
from sgtm.data.conditional import GOOD, Control
from sgtm.data.mixture import PreparedData, Rows, Use, by_topic, count_modes, step_draw_chances, training_rows
from sgtm.data.stream import ModeStream, open_stream
from sgtm.data.tokenizer import load_tokenizer
from sgtm.environment import environment, tune_malloc
from sgtm.evaluate.calibrate import fit_bias
from sgtm.evaluate.generate import continuations
from sgtm.evaluate.loss import Loss, Variant, ablation_matrix, evaluate_categories, of_categories
from sgtm.evaluate.share import Share
from sgtm.model.attach import export_module
from sgtm.model.build import build_model, mask
from sgtm.model.card import Export
from sgtm.model.export import export
from sgtm.model.gpt_neo import GPTNeoForCausalLMSGTM
from sgtm.model.loading import context_of, load_checkpoint
from sgtm.model.masking import SGTM
from sgtm.model.sharding import whole_weights
from sgtm.model.strategies import STRATEGIES
from sgtm.records import PARTITION
from sgtm.train import gram
from sgtm.train.account import write_generations, write_matrix, write_partition
from sgtm.train.checkpoints import (
    SEAL,
    Keeper,
    Stopper,
    damage_of,
    is_first_process,
    keep_latest,
    last_sound,
    seal,
    told_how_to_go_on,
)
from sgtm.train.optimizer import muon
from sgtm.train.preflight import preflight
from sgtm.train.recorder import Recorder
from sgtm.train.sampler import ModeSampler, StepDrawSampler
from sgtm.train.states import differing
from sgtm.train.trackers import guard
from sgtm.train.trainer import SGTMTrainer

_WARMUP_START = 0.1  # of the learning rate
_SCHEDULE: dict[str, Any] = {
    "lr_scheduler_type": "cosine_warmup_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.0, "warmup_lr_rate": _WARMUP_START},
}
_CHECKPOINTS = 10  # in a run, by default
_OWN_ARGUMENTS = {  # of TrainingArguments: the configuration's own keys for them
    "output_dir": "--run-dir",
    "max_steps": "train.steps",
    "num_train_epochs": "train.steps",
    "per_device_train_batch_size": "train.batch_size and train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size and train.micro_batch_size",
    "save_strategy": "train.save_every",
    "save_steps": "train.save_every",
    "save_total_limit": "train.keep_checkpoints",
    "eval_strategy": "evaluate.every",
    "eval_steps": "evaluate.every",
    "seed": "seed",
}
# Renamed in transformers 5.23, where the old name warns.
_FIELDS = TrainingArguments.__dataclass_fields__
_CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _FIELDS else "gradient_checkpointing"


@dataclass(frozen=True)
class Method:
    """How a method uses the labels, and the strategy under which it masks.

    Args:
        joint: joint parameters that batches of a domain leave alone, besides those of ``partition.joint``.
        auxiliary_spread, core_robustness: see ``TrainConfig``, which has the last word.
    """

    use: Use
    strategy: str | None = None
    joint: tuple[str, ...] = ()
    auxiliary_spread: float = 0.0
    core_robustness: float = 0.0


METHODS = {
    "none": Method("everything"),
    "filter": Method("filter"),
    "strict_filter": Method("strict_filter"),  # what is adjacent goes too
    "token_masking": Method("mask"),  # SLUNG, arXiv:2505.03052: sgtm.data.token_loss
    "unlikelihood": Method("unlikelihood"),
    "conditional": Method("condition"),  # arXiv:2302.08582: sgtm.data.conditional
    "sgtm": Method("modes", "parameter_masking"),
    **{name: Method("modes", name) for name in STRATEGIES},
    # arXiv:2607.08077: sgtm.train.gram
    "gram": Method("modes", "parameter_masking", ("*",), gram.AUXILIARY_SPREAD, gram.CORE_ROBUSTNESS),
}


@dataclass(frozen=True)
class Run:
    """What a finished run leaves in memory."""

    model: PreTrainedModel
    sgtm: SGTM | None
    data: PreparedData
    losses: dict[tuple[Category, Variant], Loss]
    bias: Tensor


def train(config: RunConfig, folder: Path, resume: bool = False) -> Run:
    """Train, evaluate and save one model.

    Args:
        folder: the run's folder: config.yaml, run.json, partition.json, metrics.jsonl, throughput.jsonl, checkpoints/
            and, at the end, model/ and generations.jsonl.
        resume: go on from the last checkpoint in ``folder``.

    Raises:
        ConfigError: anything wrong with configuration, data or folder, before a step is taken.
    """
    method = method_of(config)
    checkpoint = _open_folder(config, folder, resume)
    _tune()
    data = data_of(config)
    rows, sampler, counts = labelled_rows(config, method, data.train, data.control)
    set_seed(config.seed)
    model, sgtm = new_model(config, data)
    check_context(model, data)
    if config.model.head_bias and is_first_process():
        print("model.head_bias: a stock checkpoint has no place for it, so this model can be attacked, not exported")
    evaluation = Evaluation(config, model, sgtm, data)
    t, arguments = config.train, training_arguments(config, folder)
    device = model.device if t.arguments.get("fsdp") else arguments.device  # one device may not hold what is sharded
    preflight(config, folder, model, sgtm, rows, evaluation.test, device)
    stream = stream_of(config, method, data, model)
    trainer = SGTMTrainer(
        model,
        arguments,
        sgtm,
        t.update,
        t.forget_lr_scale,
        t.hear_domains,
        _share(t.auxiliary_spread, method.auxiliary_spread),
        _share(t.core_robustness, method.core_robustness),
        t.one_pass,
        forget_lr_end=t.forget_lr_end,
        sampler=sampler,
        optimizer_cls_and_kwargs=muon(model, t.learning_rate, (t.beta1, t.beta2)) if t.optimizer == "muon" else None,
        train_dataset=rows if stream is None else stream,
        processing_class=data.tokenizer,
    )
    trainer.meter.peak_tflops = t.peak_tflops
    guard(trainer)
    recorder = Recorder(folder, evaluation, config.evaluate.every, trainer, report=bool(arguments.report_to))
    _start_folder(config, folder, counts, model, sgtm)
    stopper = Stopper()
    trainer.add_callback(stopper)  # first: what it asks to be saved is looked at too
    trainer.add_callback(Keeper(_id_of(folder), t.keep_checkpoints))  # then: what is not finite is not evaluated
    trainer.add_callback(recorder)
    use_cache = model.config.use_cache
    _run(trainer, stopper, folder, checkpoint)
    model.config.use_cache = use_cache  # Trainer turns it off
    weights = whole_weights(model)
    if trainer.is_world_process_zero():
        save_model(model, data.tokenizer, folder / "model", weights)
        keep_latest(folder / "checkpoints", t.keep_checkpoints)
        _leave_generations(trainer, folder, evaluation)
    assert evaluation.bias is not None
    return Run(model, sgtm, data, evaluation.losses, evaluation.bias)


def _tune() -> None:
    """Settings of the process that training on a CPU is faster with, and a line that says so."""
    if tune_malloc() and not torch.cuda.is_available() and is_first_process():
        print("malloc keeps freed memory (mallopt: M_MMAP_MAX 0, M_TRIM_THRESHOLD 2 GiB): fewer page faults a step")


def _run(trainer: SGTMTrainer, stopper: Stopper, folder: Path, checkpoint: str | None) -> None:
    """Train to the end, or to where a signal or an error ends it.

    Raises:
        RunError: a signal has ended it, the loss is no number, or the disk is full.
    """
    go_on = f"go on with `sgtm train {folder / 'config.yaml'} --run-dir {folder} --resume`"
    with stopper.listening(), told_how_to_go_on(folder / "checkpoints", go_on):
        trainer.train(resume_from_checkpoint=checkpoint)
    if stopper.stopped_at is not None and stopper.asked is not None:
        name = signal.Signals(stopper.asked).name
        raise StoppedError(f"stopped by {name} at step {stopper.stopped_at}, with a checkpoint; {go_on}", stopper.asked)


def _leave_generations(trainer: SGTMTrainer, folder: Path, evaluation: "Evaluation") -> None:
    """Let the finished model speak; the run is whole without it, so nothing that goes wrong here ends it."""
    number = evaluation.config.evaluate.generations
    if not number or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # one process has no whole model then
        return
    try:
        write_generations(folder, evaluation.continuations(number))
    except Exception as error:
        print(f"no generations: {error}; `sgtm evaluate {folder} --generations {number}` makes them")


def new_model(config: RunConfig, data: PreparedData | None) -> tuple[PreTrainedModel, SGTM | None]:
    """The run's model before its first step, and its masking; without data, with the family's own vocabulary."""
    strategy, partition = method_of(config).strategy, _partition_of_method(config)
    if data is None or data.control is None:
        return build_model(config.model, partition, strategy, data.tokenizer if data else None)
    return build_model(config.model, partition, strategy, data.tokenizer, new_tokens=2, positions=data.longest)


def load_run(folder: Path) -> tuple[RunConfig, PreTrainedModel, SGTM | None]:
    """A finished run's configuration, model and masking.

    Raises:
        ConfigError: no finished run there.
    """
    if not (folder / "model" / "config.json").is_file():
        raise ConfigError(f"{folder} holds no finished run (no model/ in it); train it to its end, or --resume it")
    config = load(folder / "config.yaml")
    return config, *load_model(config, folder / "model")


def load_model(config: RunConfig, path: Path) -> tuple[PreTrainedModel, SGTM | None]:
    """Model and masking of a run of ``config``, from a Hugging Face checkpoint at ``path``.

    Raises:
        ConfigError: it cannot be loaded.
    """
    if (path / SEAL).is_file() and (damage := damage_of(path, (".safetensors", ".json"))):
        raise ConfigError(f"{path} {damage}; restore it from a copy, or train the run anew")
    model = load_checkpoint(path, "train the run anew", config.model.attention)
    strategy = method_of(config).strategy
    if strategy is None:
        return model, None
    if isinstance(model, GPTNeoForCausalLMSGTM):
        return model, model.sgtm
    return model, mask(model, _partition_of_method(config), strategy)


def _load_on_device(folder: Path) -> tuple[RunConfig, PreTrainedModel, SGTM | None]:
    """The same, ready to compute."""
    config, model, sgtm = load_run(folder)
    tune_malloc()
    return config, model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu")), sgtm  # type: ignore[arg-type]


def evaluate_run(
    folder: Path, rows: int | None, batch_size: int, without: Sequence[str] = (), generations: int = 0
) -> dict[tuple[Category, Variant], Loss]:
    """Evaluate a finished run anew, calibration included.

    Args:
        without: the domains that the ablated and the calibrated model are without; all by default.
        generations: test texts of each category whose beginnings are continued, for generations.jsonl.

    Raises:
        ConfigError: no finished run, or an unknown domain.
    """
    config, model, sgtm = _load_on_device(folder)
    if without:
        _check_domains(folder, sgtm, without)
    config = replace(config, evaluate=replace(config.evaluate, rows=rows, batch_size=batch_size))
    evaluation = Evaluation(config, model, sgtm, data_of(config), without)
    losses = evaluation(config.train.steps)
    if not (folder / PARTITION).exists():  # a run of an earlier version
        write_partition(folder, sgtm)
    if generations:
        write_generations(folder, evaluation.continuations(generations))
    return losses


def ablation_matrix_of_run(
    folder: Path, rows: int | None, batch_size: int
) -> dict[tuple[str, ...], dict[Category, Loss]]:
    """The ablation matrix of a finished run on its test split; written to its matrix.jsonl as well."""
    config, model, sgtm = _load_on_device(folder)
    sgtm = _check_domains(folder, sgtm, ())
    config = replace(config, evaluate=replace(config.evaluate, rows=rows))
    test = evaluation_rows(config, data_of(config))
    with _autocast(config, model):
        matrix = ablation_matrix(sgtm, test, batch_size)
    write_matrix(folder, matrix)
    return matrix


def export_run(folder: Path, out: Path, without: Sequence[str] = (), verify: bool = False) -> Export:
    """Export a finished run's model without its forget units, or without those of some domains.

    Where the run's data is still there, the losses of the exported model are measured for its card.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; remove it or choose another --out")
    config, model, sgtm = load_run(folder)
    sgtm = _check_domains(folder, sgtm, without)
    losses = None
    try:
        data = PreparedData.load(config.data, config.partition.names)
    except ConfigError as error:
        print(f"no losses for the model card: {error}")
    else:
        losses = _card_losses(config, model, sgtm, data, without)
    return export(model, sgtm, out, load_tokenizer(str(folder / "model")), without, verify, losses)


def export_module_of_run(folder: Path, domain: str, out: Path) -> int:
    """Write the units of one domain of a finished run; returns the number of parameters."""
    _, model, sgtm = load_run(folder)
    return export_module(model, _check_domains(folder, sgtm, [domain]).partition, domain, out)


def _card_losses(
    config: RunConfig, model: PreTrainedModel, sgtm: SGTM, data: PreparedData, without: Sequence[str]
) -> dict[str, dict[str, float]]:
    losses: dict[str, dict[str, float]] = {}
    names = {"intact": "before removal", "ablated": "this checkpoint"}
    with _autocast(config, model):
        found = evaluate_categories(
            model, evaluation_rows(config, data), sgtm, None, config.evaluate.batch_size, without
        )
    for (category, variant), loss in found.items():
        losses.setdefault(category, {})[names[variant]] = loss.mean
    return losses


def _check_domains(folder: Path, sgtm: SGTM | None, without: Sequence[str]) -> SGTM:
    if sgtm is None:
        method = load(folder / "config.yaml").method
        asked = f"; begin each text with its token {GOOD}" if METHODS[method].use == "condition" else ""
        raise ConfigError(
            f"{folder} has no forget units to remove (method {method}); its model/ is stock already{asked}"
        )
    sgtm.partition.select_domains(without)
    return sgtm


class Evaluation:
    """Losses of the test split, and a calibration of the final model.

    The intact model of conditional training is given plain text, the ablated and the calibrated one text that is asked
    to be good. Their losses are means over the same tokens.
    """

    def __init__(
        self,
        config: RunConfig,
        model: PreTrainedModel,
        sgtm: SGTM | None,
        data: PreparedData,
        without: Sequence[str] = (),
    ) -> None:
        self.config, self.model, self.sgtm, self.without = config, model, sgtm, without
        self.data, self.test = data, evaluation_rows(config, data)
        self.groups = by_topic(self.test, config.evaluate.topics) if config.evaluate.topics else self.test
        train = {c: data.train.of(c, config.calibrate.rows, config.seed) for c in data.train.present}
        self.train = {c: data.for_removed(found) for c, found in train.items()}
        self.bias: Tensor | None = None
        self.losses: dict[tuple[Category, Variant], Loss] = {}

    def __call__(self, step: int) -> dict[tuple[Category, Variant], Loss]:
        """Losses by category and variant; calibrated at the last step, or at all of them if so configured."""
        c = self.config
        with _autocast(c, self.model):
            if step >= c.train.steps or c.calibrate.every_evaluation:
                self.bias = fit_bias(self.model, self.train, c.calibrate, self.sgtm, c.seed, self.without)
            size = c.evaluate.batch_size
            losses = evaluate_categories(
                self.model,
                self.groups,
                self.sgtm,
                self.bias,
                size,
                self.without,
                self.data.for_removed,
                Share.of_process(),
            )
        self.losses = losses if self.groups is self.test else of_categories(losses) | losses
        return self.losses

    def continuations(self, number: int) -> Iterator[dict[str, str]]:
        """Beginnings of ``number`` test texts of each category, continued before and after removal."""
        asked = GOOD if self.data.control else ""
        with _autocast(self.config, self.model):
            yield from continuations(self.model, self.data.tokenizer, self.test, self.sgtm, self.bias, number, asked)


def evaluation_rows(config: RunConfig, data: PreparedData) -> dict[Category, Rows]:
    """The test split's rows by category, as many of each as configured.

    Raises:
        ConfigError: it has fewer.
    """
    rows = config.evaluate.rows
    test = {c: data.test.of(c, rows, config.seed) for c in data.test.present}
    for category, found in test.items():
        if rows is not None and len(found) < rows:
            raise ConfigError(
                f"evaluate.rows={rows} is more than the {len(found)} test rows of category {category}; use fewer, "
                "or leave it out to use all"
            )
    return test


def _autocast(config: RunConfig, model: PreTrainedModel) -> torch.autocast:
    """The precision that the run was trained in."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=config.train.precision == "bf16")


def method_of(config: RunConfig) -> Method:
    """The row of ``METHODS`` that the configuration names.

    Raises:
        ConfigError: no such method (the nearest is named), or settings that contradict it.
    """
    if config.method not in METHODS:
        near = get_close_matches(config.method, METHODS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"method={config.method!r} is none of {sorted(METHODS)}{hint}")
    method = METHODS[config.method]
    if config.method == "gram":
        gram.check(config)
    for name in ("auxiliary_spread", "core_robustness"):
        if method.strategy is None and getattr(config.train, name):
            raise ConfigError(
                f"train.{name}={getattr(config.train, name)} is about forget units, and method={config.method} has "
                "none; leave it out"
            )
    return method


def _partition_of_method(config: RunConfig) -> PartitionConfig:
    """The partition, with what the method itself adds to it."""
    joint = [*config.partition.joint, *method_of(config).joint]
    return replace(config.partition, joint=joint)


def data_of(config: RunConfig) -> PreparedData:
    """The prepared data, with control tokens if the method has them."""
    data = PreparedData.load(config.data, config.partition.names)
    return data.with_control(config.seed) if method_of(config).use == "condition" else data


def _share(configured: float | None, of_method: float) -> float:
    return of_method if configured is None else configured


def training_arguments(config: RunConfig, folder: Path) -> TrainingArguments:
    """The configuration as ``transformers.TrainingArguments``; ``train.arguments`` has the last word."""
    t = config.train
    values: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "max_steps": t.steps,
        "learning_rate": t.learning_rate,
        **({} if "lr_scheduler_type" in t.arguments else _SCHEDULE),
        "warmup_steps": t.warmup_steps,
        "weight_decay": t.weight_decay,
        "adam_beta1": t.beta1,
        "adam_beta2": t.beta2,
        "max_grad_norm": t.max_grad_norm,
        "optim": _name_of(t.optimizer),
        "bf16": t.precision == "bf16",
        "use_cpu": not torch.accelerator.is_available(),
        _CHECKPOINTING: t.gradient_checkpointing,
        "logging_steps": t.log_every,
        "logging_nan_inf_filter": False,  # it would hide them from Keeper
        "save_strategy": "steps",
        "save_steps": t.save_every or max(1, t.steps // _CHECKPOINTS),
        "save_total_limit": None,  # Keeper removes those that are not kept, once the new one is sealed
        "dataloader_drop_last": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "accelerator_config": {"non_blocking": torch.cuda.is_available()},
        "remove_unused_columns": False,
        "seed": config.seed,
        "report_to": "none",
        **t.arguments,
    }
    for key in t.arguments.keys() & _OWN_ARGUMENTS:
        raise ConfigError(f"train.arguments.{key} is set by {_OWN_ARGUMENTS[key]}; use that")
    try:
        arguments = TrainingArguments(**values)
    except Exception as error:  # the library's own, of many kinds
        raise ConfigError(f"train: transformers.TrainingArguments refuses this: {error}") from error
    _check_loggers(arguments.report_to)
    return _with_batch_size(arguments, t.batch_size, t.micro_batch_size)


def _name_of(optimizer: str) -> str:
    """Trainer's name for it; Muon has none, and is given to it made. A GPU has a kernel for the whole of AdamW."""
    if optimizer == "muon":
        return "adamw_torch"
    return "adamw_torch_fused" if optimizer == "adamw_torch" and torch.cuda.is_available() else optimizer


def _check_loggers(report_to: str | list[str] | None) -> None:
    try:
        for callback in get_reporting_integration_callbacks(report_to):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:  # there is no such logger, or it is not installed
        raise ConfigError(f"train.arguments.report_to={report_to}: {error}; or leave it out") from error


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write model and tokenizer as a Hugging Face checkpoint; a kill leaves none of it at ``folder``.

    Args:
        weights: of a sharded model, which has its own in parts.
    """
    disable_progress_bar()  # of the shards being written; the training's own bar is enough
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, state_dict=weights)
    tokenizer.save_pretrained(partial)
    seal(partial, folder.parent.name)
    partial.rename(folder)


def check_context(model: PreTrainedModel, data: PreparedData) -> None:
    """Raise a ConfigError if ``data`` has rows that are longer than ``model`` has positions."""
    longest, context = data.longest, context_of(model, data.longest)
    if longest > context:
        tokens = "tokens" if data.control is None else "tokens, control tokens included,"
        raise ConfigError(
            f"the data has rows of {longest} {tokens} and the model only {context} positions; prepare the data with "
            f"--context {context}, or set model.config.max_position_embeddings"
        )


def _with_batch_size(arguments: TrainingArguments, batch_size: int, micro: int | None) -> TrainingArguments:
    share, rest = divmod(batch_size, arguments.world_size)
    micro = share if micro is None else micro
    if rest or share % micro:
        raise ConfigError(
            f"train.batch_size={batch_size} cannot be cut into micro-batches of {micro} on {arguments.world_size} "
            "processes; use a multiple of their product"
        )
    return replace(arguments, per_device_train_batch_size=micro, gradient_accumulation_steps=share // micro)


def labelled_rows(
    config: RunConfig, method: Method, rows: Rows, control: Control | None = None
) -> tuple[Rows, Sampler[Any] | None, dict[str, dict[str, int]]]:
    """Training rows, their order, and counts of labels and modes (none where each step draws its own).

    A stream, which takes the rows' place, has neither order nor counts.
    """
    if config.stream.source:
        return rows, None, {}
    t, rows = config.train, rows.labelled_by(config.labels)
    if t.mixing == "step_draw":
        chances = step_draw_chances(rows, config.labels, method.use)
        return rows, StepDrawSampler(rows.categories, chances, t.batch_size, config.seed), {}
    labelled, labels = training_rows(rows, config.labels, method.use, config.seed, control)
    assert labelled.modes is not None
    sampler = ModeSampler(labelled.modes, t.batch_size, t.mixing, config.seed)
    return labelled, sampler, {"rows": labels, "modes": count_modes(labelled)}


def stream_of(config: RunConfig, method: Method, data: PreparedData, model: PreTrainedModel) -> ModeStream | None:
    """The stream that takes the place of the prepared training rows, if there is one.

    Raises:
        ConfigError: settings that have no meaning for it, or whatever is wrong with its source.
    """
    if not config.stream.source:
        return None
    if config.labels.is_noisy:
        raise ConfigError(
            "a stream has labels of its own; set labels.undiscovered, tpr, fpr, precision, recall to null "
            "(--labels.undiscovered None)"
        )
    if config.train.mixing != "example":
        raise ConfigError(f"train.mixing={config.train.mixing} needs to know all rows; a stream mixes them by example")
    context = context_of(model)
    return open_stream(config.stream, config.partition.names, method.use, data.tokenizer, context, config.seed)


def _open_folder(config: RunConfig, folder: Path, resume: bool) -> str | None:
    """The checkpoint to go on from, if any."""
    written = folder / "config.yaml"
    if not resume:
        if written.exists() and is_first_process():
            raise ConfigError(f"{folder} holds a run already; go on with --resume, or choose another --run-dir")
        return None
    if not written.exists():
        raise ConfigError(f"{folder} holds no run to resume; start it without --resume")
    if changed := differing(asdict(load(written)), asdict(config)):
        raise ConfigError(f"{folder} was started with another {changed}; resume with its own config.yaml")
    if (folder / "model" / "config.json").is_file():
        raise ConfigError(f"{folder} is finished; evaluate it with `sgtm evaluate {folder}`, or start another run")
    checkpoint = last_sound(folder / "checkpoints", config.train.steps, _id_of(folder))
    print(f"resuming from {checkpoint or 'the beginning: there is no checkpoint yet'}")
    return str(checkpoint) if checkpoint else None


def _start_folder(
    config: RunConfig, folder: Path, counts: dict[str, dict[str, int]], model: PreTrainedModel, sgtm: SGTM | None
) -> None:
    if not is_first_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    dump(config, folder / "config.yaml")
    owners = {"joint": model.num_parameters()} if sgtm is None else sgtm.partition.num_parameters()
    about = {
        "id": _id_of(folder) or uuid.uuid4().hex,
        **counts,
        "parameters": owners,
        "environment": environment(),
        "started": time.strftime("%FT%TZ", time.gmtime()),
    }
    write(folder / "run.json", json.dumps(about, indent=1))
    write_partition(folder, sgtm)


def _id_of(folder: Path) -> str:
    """What tells the run in ``folder`` from all others; nothing if it has not begun."""
    about = folder / "run.json"
    return str(read_json(about, "remove it").get("id", "")) if about.is_file() else ""
