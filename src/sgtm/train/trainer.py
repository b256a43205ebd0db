"""``transformers.Trainer`` that trains each example in its mode. Everything else stays the library's."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate.utils import save_fsdp_model
from datasets import IterableDataset
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.training_args import OptimizerNames

from sgtm.config import MODES, ConfigError, Stream
from sgtm.data.mixture import Rows, collate
from sgtm.data.stream import ModeStream
from sgtm.model.chunked_loss import can_chunk, chunked, is_large
from sgtm.model.masking import SGTM
from sgtm.train.meter import Meter, Reading
from sgtm.train.optimizer import BlockParameters, scale_to_the_end
from sgtm.train.sampler import ModeSampler
from sgtm.train.stream_loader import StreamLoader
from sgtm.train.unlikelihood import selective_loss

Update = Literal["gradient", "strict", "per_block"]
# Written in torch operations, which know strides; all others get contiguous parts.
_KNOW_STRIDES = {"adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop"}
# They compute each element by itself, so they can be given shards of parameters.
_BY_ELEMENT = {"adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop"}
# They choose their own parameters, step during the backward pass, or rebuild a model's gradients.
_NOT_BY_PARTS = ("galore", "apollo", "lomo", "adalomo")


class SGTMTrainer(Trainer):
    """A Trainer whose batches may mix modes: ``mode``, codes (indices into ``sgtm.partition.modes``).

    ``mode`` (batch,) is one for each example: each is trained exactly as ``SGTM.batch(mode)`` would train it. ``mode``
    (batch, seq) is one for each position, all in one pass (see ``sgtm.model.positions``). The loss is the mean over
    the tokens of the whole optimizer step. ``state.num_input_tokens_seen``, predicted tokens, is up to date whenever
    something is logged or saved (``meter.tell``).

    Args:
        sgtm: the masking of ``model``; None trains everything in default mode.
        update: ``gradient`` zeroes masked gradients, and AdamW may still move masked weights by momentum and decay;
            ``strict`` leaves alone, bit for bit, what no example of a step may update; ``per_block`` does so too, and
            makes each block (joint, retain, each domain) an optimizer group of its own, whose gradient is clipped by
            its own norm.
        forget_lr_scale: learning rate of the forget units, as a multiple of ``args.learning_rate``.
        hear_domains: with several domains, the share of steps in which a random part of them takes part in retain
            examples and in those of other domains, without being updated by them (``SGTM.hearing``), so that the
            model can do with and without any of them.
        auxiliary_spread: the share of steps in which batches of a domain update all that retain batches may as well.
        core_robustness: the share of steps in which what is in default mode is trained in retain mode (both: GRAM,
            see ``sgtm.train.gram``).
        one_pass: train a batch of examples of several modes in one pass instead of a pass for each mode: the same
            gradients. For a GPU that small passes leave idle; on a CPU it is a little slower. Always where the model
            adds a loss of its experts' balance: each pass would add one.
        forget_lr_end: what ``forget_lr_scale`` has become by the last step, linearly; by default it stays.
        sampler: order of the training rows; by default modes are mixed within every step.
        train_dataset: rows with ``input_ids`` and ``mode``; or a streaming data set (of ``datasets``) or a
            ``ModeStream`` of such rows, which each process reads its own shards of.
        (all other arguments): as in ``transformers.Trainer``.

    Raises:
        ConfigError: settings that cannot be exact (FSDP1 or DeepSpeed, a loss that is not summed over tokens, an
            optimizer that does not take parameters by parts).
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        sgtm: SGTM | None = None,
        update: Update = "gradient",
        forget_lr_scale: float = 1.0,
        hear_domains: float = 0.5,
        auxiliary_spread: float = 0.0,
        core_robustness: float = 0.0,
        one_pass: bool = False,
        forget_lr_end: float | None = None,
        sampler: Sampler[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.sgtm, self.update, self.forget_lr_scale, self.sampler = sgtm, update, forget_lr_scale, sampler
        self.hear_domains, self.auxiliary_spread, self.core_robustness = hear_domains, auxiliary_spread, core_robustness
        self.one_pass = one_pass or _balances_experts(model)
        self.forget_lr_end = forget_lr_scale if forget_lr_end is None else forget_lr_end
        self.blocks: BlockParameters | None = None
        self._step_modes: set[str] = set()
        self._block_norm = torch.zeros(())
        self._can_chunk: bool | None = None  # found out at the first large batch
        args.remove_unused_columns = False  # "mode" is no argument of the model
        args.dataloader_drop_last = True
        kwargs.setdefault("data_collator", collate)
        if isinstance(kwargs.get("train_dataset"), IterableDataset):
            kwargs["train_dataset"] = ModeStream(kwargs["train_dataset"], seed=args.seed)
        super().__init__(model, args, **kwargs)
        if self.label_smoother is not None:  # Trainer shifts the labels of the classes that it knows alone
            self.label_smoother: Any = partial(self.label_smoother, shift_labels=True)
        self.stream = StreamLoader.of(self.train_dataset, self.args, ModesOnHost(self.data_collator))
        if self.args.n_gpu > 1:
            raise ConfigError(
                f"{self.args.n_gpu} GPUs in one process would multiply the batch; start one process a GPU with "
                "torchrun, or set CUDA_VISIBLE_DEVICES"
            )
        if update not in get_args(Update):
            raise ConfigError(f"update={update!r} is none of {list(get_args(Update))}")
        for name in ("hear_domains", "auxiliary_spread", "core_robustness"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is no fraction; use 0 to 1")
        if sgtm is not None:
            self._check(model, sgtm)
        self.add_callback(_SetEpoch(self) if self.stream is None else self.stream)
        self.reading: Reading | None = None  # of the steps that were logged last
        self.meter = Meter(model, self.modes, self._total, self.args.world_size)
        self.add_callback(self.meter)

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the modes; the data's codes are indices into them."""
        return MODES if self.sgtm is None else self.sgtm.partition.modes

    def _check(self, model: nn.Module, sgtm: SGTM) -> None:
        if sgtm.partition.model is not model:
            raise ConfigError("sgtm belongs to another model; make it with SGTM(Partition.of(model, ...))")
        self._check_sharding()
        if not self.model_accepts_loss_kwargs:
            raise ConfigError(
                f"{type(model).__name__}.forward takes no num_items_in_batch, so parts of a batch cannot be weighted "
                "by their tokens; use a causal language model of transformers >= 5.15"
            )
        if self._by_parts and self.optimizer is not None:
            raise ConfigError(
                f"update={self.update} and forget_lr_scale={self.forget_lr_scale} need an optimizer made of the "
                "model's parts; name it in args.optim or optimizer_cls_and_kwargs instead of giving one"
            )
        if self.update == "per_block" and self.args.fp16:
            raise ConfigError("update=per_block clips gradients before fp16's scale is taken off; use bf16 or fp32")

    def _check_sharding(self) -> None:
        if self.is_deepspeed_enabled:
            raise ConfigError("DeepSpeed keeps gradients where they cannot be masked; use FSDP2 (args.fsdp=True)")
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise ConfigError(
                "FSDP1 flattens parameters, so none can be masked; use FSDP2: args.fsdp_config={'version': 2}"
            )
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise ConfigError(
                f"args.fsdp is set, but accelerate shards on accelerators only and this process has "
                f"{self.args.device.type}; leave it out, and torchrun will train with DDP"
            )
        if self.is_fsdp_enabled and self._by_parts:
            if self.optimizer_cls_and_kwargs is not None or OptimizerNames(self.args.optim).value not in _BY_ELEMENT:
                raise ConfigError(
                    f"update={self.update} and forget_lr_scale={self.forget_lr_scale} on sharded parameters need an "
                    f"optimizer that computes each element by itself; set args.optim to one of {sorted(_BY_ELEMENT)}"
                )
            if self.args.fp16:
                raise ConfigError("fp16's scale would be taken off each process's shards by itself; use bf16 or fp32")

    @property
    def _by_parts(self) -> bool:
        """Whether the optimizer is given the parameters' parts instead of whole ones."""
        return self.update != "gradient" or not self.forget_lr_scale == self.forget_lr_end == 1.0

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.stream is not None:
            return self.stream.loader  # type: ignore[no-any-return]
        own = self.data_collator
        if not self._dispatches:  # then one process cuts up what all others get, which it can do with tensors alone
            self.data_collator = ModesOnHost(own)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = own

    @property
    def _dispatches(self) -> bool:
        """Whether accelerate reads all batches in one process."""
        asked = self.accelerator.dispatch_batches
        return isinstance(self.train_dataset, TorchIterableDataset) if asked is None else bool(asked)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        if self.sampler is None and self.sgtm is not None:
            step_size = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
            dataset: Any = self.train_dataset if train_dataset is None else train_dataset
            modes = dataset.modes if isinstance(dataset, Rows) else [_mode_of(i, row) for i, row in enumerate(dataset)]
            self.sampler = ModeSampler(_of_examples(modes), step_size, seed=self.args.seed)
        return self.sampler or super()._get_train_sampler(train_dataset)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.sgtm is None or not self._by_parts or self.optimizer:
            return super().create_optimizer(model)
        masked = self.sgtm.partition.model
        optimizer_class, kwargs = self._optimizer(masked)
        self._decayed = self.get_decay_parameter_names(masked)
        if self.is_fsdp_enabled:  # which takes whole parameters and puts shards in their place: see create_scheduler
            self.optimizer = optimizer_class(masked.parameters(), **kwargs)
            return self.optimizer
        self.optimizer = optimizer_class(self._groups(), **kwargs)
        self.blocks.attach(self.optimizer)  # type: ignore[union-attr]
        return self.optimizer

    def _groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups of parts, which ``self.blocks`` holds."""
        assert self.sgtm is not None
        known = self.optimizer_cls_and_kwargs is None and self.args.optim in _KNOW_STRIDES
        self.blocks = BlockParameters(self.sgtm, contiguous=not known)
        rates = (self.args.learning_rate, self.args.weight_decay)
        by_owner = self.update == "per_block"
        groups = self.blocks.groups(*rates, self._decayed, self.forget_lr_scale, by_owner)
        return [group for group in groups if group["params"]]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The parameters are sharded by now: an optimizer of parts gets those of the shards before its schedule."""
        if self.sgtm is not None and self.is_fsdp_enabled and self._by_parts and self.blocks is None:
            wrapper: Any = self.optimizer
            inner = wrapper.optimizer  # accelerate's wrapper stays
            inner.param_groups.clear()
            for group in self._groups():
                inner.add_param_group(group)
            self.blocks.attach(inner)  # type: ignore[attr-defined]
        schedule = super().create_scheduler(num_training_steps, optimizer)
        if self.sgtm is not None and self.forget_lr_end != self.forget_lr_scale:
            scale_to_the_end(schedule, self.forget_lr_end / self.forget_lr_scale, num_training_steps)
        return schedule

    def _optimizer(self, model: PreTrainedModel) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        if self.optimizer_cls_and_kwargs is not None:
            if is_optimizer_factory(self.optimizer_cls_and_kwargs[0]):
                raise ConfigError(
                    f"{self.optimizer_cls_and_kwargs[0]} makes an optimizer of the whole model, so "
                    f"update={self.update} and forget_lr_scale cannot be exact; give an optimizer's class instead"
                )
            return self.optimizer_cls_and_kwargs
        name = OptimizerNames(self.args.optim).value
        if name.startswith(_NOT_BY_PARTS):
            raise ConfigError(
                f"optim={name} chooses parameters or steps by itself, so update={self.update} and forget_lr_scale "
                "cannot be exact with it; use adamw_torch, adamw_torch_fused, adafactor, sgd, lion_32bit, ..."
            )
        optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
        return optimizer_class, dict(kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        mode = _codes(inputs.pop("mode", None))
        self._find_out(inputs)
        if self.accelerator.sync_gradients and num_items_in_batch is not None:
            self.meter.count_tokens(num_items_in_batch)  # of the whole optimizer step, on all processes: counted once
        if self.sgtm is None:
            if mode is not None and mode.any():
                raise ConfigError("the data has modes but the trainer has no sgtm; give SGTMTrainer(sgtm=...)")
            if mode is not None:
                self.meter.count(mode)
            return super().training_step(model, inputs, num_items_in_batch)
        if mode is None:
            raise ConfigError("the data has no modes; its rows need a `mode`, an index into sgtm.partition.modes")
        # Shards are gathered for every pass, by all processes together, and only sums of gradients are ever seen.
        in_one_pass = mode.ndim > 1 or self.is_fsdp_enabled or (self.one_pass and self._is_mixed(mode))
        train = self._train_positions if in_one_pass else self._train_examples
        if self._is_drawn(self.core_robustness, Stream.ROBUST):
            mode = np.where(mode == MODES.index("default"), MODES.index("retain"), mode)
        self.meter.count(mode)
        if self._is_drawn(self.auxiliary_spread, Stream.SPREAD):
            if (mode > MODES.index("retain")).any():
                self._step_modes.add("retain")  # these batches may update what a retain batch may
            with self.sgtm.spreading():
                loss = train(model, inputs, mode, num_items_in_batch)
        else:
            loss = train(model, inputs, mode, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._finish_gradients()
        return loss

    def _is_mixed(self, mode: NDArray[np.int64]) -> bool:
        """Whether a batch has several modes, or that of another process may have others."""
        return self.args.world_size > 1 or len(np.unique(mode)) > 1

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's own loss, a large one in chunks; in a batch with ``unlikely`` (batch, seq) ``selective_loss``."""
        unlikely = inputs.pop("unlikely", None)
        if unlikely is None:
            with self._in_chunks(inputs):
                return super().compute_loss(model, inputs, *args, **kwargs)
        if self.compute_loss_func is not None:
            raise ConfigError("a batch with `unlikely` tokens has a loss of its own; leave out compute_loss_func")
        self.compute_loss_func = partial(selective_loss, unlikely=unlikely)
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self.compute_loss_func = None

    def _in_chunks(self, inputs: dict[str, Any]) -> AbstractContextManager[None]:
        """Meanwhile the model's loss makes no more than some logits at a time, where it can and where that is faster.

        Compiled graphs and shards must not change under way, and whoever brings a loss wants the logits.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        wanted = model.training and self.compute_loss_func is None and self.label_smoother is None
        return chunked(model) if wanted and self._can_chunk and self._is_large(model, inputs) else nullcontext()

    def _is_large(self, model: Any, inputs: dict[str, Any]) -> bool:
        return isinstance(model, PreTrainedModel) and is_large(inputs, model, self.args.bf16 or self.args.fp16)

    def _find_out(self, inputs: dict[str, Any]) -> None:
        """At the first large batch, and in no mode: whether the model's loss can be made in chunks."""
        model: Any = self.accelerator.unwrap_model(self.model)
        own_loss = self.compute_loss_func is not None or self.label_smoother is not None
        if self._can_chunk is None and not own_loss and self._is_large(model, inputs):
            self._can_chunk = not (self.args.torch_compile or self.is_fsdp_enabled) and can_chunk(model)

    def _is_drawn(self, share: float, stream: int) -> bool:
        """Whether this step is one of a ``share`` of all, by seed and step alone."""
        return share > 0 and np.random.default_rng((self.args.seed, stream, self.state.global_step)).random() < share

    def _train_positions(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        mode: NDArray[np.int64],
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor:
        """One pass over a batch in which each example or position has a mode."""
        assert self.sgtm is not None
        self._check_codes(mode)
        self._step_modes.update(self.modes[code] for code in np.unique(mode))
        with self.sgtm.hearing(*self._heard_domains()), self.sgtm.batch(torch.from_numpy(mode)):
            return super().training_step(model, inputs, num_items_in_batch)

    def _train_examples(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        mode: NDArray[np.int64],
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor:
        """A pass for each mode of the batch."""
        assert self.sgtm is not None
        loss = torch.zeros((), device=self.args.device)
        parts = list(self._parts(inputs, mode))
        self._step_modes.update(name for name, _ in parts)
        heard = self._heard_domains()
        is_masked = parts[-1][0] in self.sgtm.partition.domains or (parts[-1][0] == "retain" and heard)
        if self.args.world_size > 1 and is_masked:
            # Other processes wait for this one's gradients, so the part that synchronises them must not be one that is
            # still to be masked.
            parts.append(("default", _nothing(inputs)))
        for i, (name, part) in enumerate(parts):
            synchronise = nullcontext() if i == len(parts) - 1 else self.accelerator.no_sync(model)
            with synchronise, self.sgtm.hearing(*heard), self.sgtm.batch_before_reduction(name):
                loss += super().training_step(model, part, num_items_in_batch)
        return loss

    def _heard_domains(self) -> tuple[str, ...]:
        """The domains that take part in other parts of this step, by seed and step alone."""
        assert self.sgtm is not None
        domains = tuple(self.sgtm.partition.domains)
        rng = np.random.default_rng((self.args.seed, Stream.HEARD, self.state.global_step))
        if len(domains) == 1 or rng.random() >= self.hear_domains:
            return ()
        chosen = int(rng.integers(1, 2 ** len(domains)))
        return tuple(domain for i, domain in enumerate(domains) if chosen >> i & 1)

    def _parts(self, inputs: dict[str, Any], mode: NDArray[np.int64]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The batch cut by mode, forget examples first: then no gradient has to be set aside."""
        self._check_codes(mode)
        turns = _turns(mode)
        for turn in np.unique(turns):
            (rows,) = np.nonzero(turns == turn)
            first, stop = rows[0], rows[-1] + 1
            here = slice(first, stop) if stop - first == len(rows) else torch.from_numpy(rows)  # ModesOnHost sorts them
            yield (
                self.modes[mode[first]],
                {key: value[here] if _has_rows(value, len(mode)) else value for key, value in inputs.items()},
            )

    def _check_codes(self, mode: NDArray[np.int64]) -> None:
        low, high = mode.min(), mode.max()
        if low < 0 or high >= len(self.modes):
            raise ConfigError(f"mode has codes from {low} to {high}; 0 to {len(self.modes) - 1} stand for {self.modes}")

    def _finish_gradients(self) -> None:
        """Hand the step's gradients over to the optimizer."""
        if self.blocks is not None:
            self.blocks.set_gradients(None if self.update == "gradient" else self._modes_of_step())
        if self.update == "per_block" and self.blocks is not None:
            self._block_norm = self.blocks.clip(self.args.max_grad_norm or 0.0)
        self._step_modes = set()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.meter.tell(self.state)
        super()._save_checkpoint(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.blocks is None or not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        save_fsdp_model(self.accelerator.state.fsdp_plugin, self.accelerator, self.model, output_dir)
        torch.save(self.optimizer.state_dict(), Path(output_dir) / self._name_of_shard())
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.stream is not None and checkpoint is not None:
            self.stream.go_on_from(Path(checkpoint))
        if self.blocks is None or not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        path = Path(checkpoint) / self._name_of_shard()
        if not path.is_file():
            raise ConfigError(f"{checkpoint} has no {path.name}; go on with as many processes as wrote it")
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        self.optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _name_of_shard(self) -> str:
        """The file of this process's share of an optimizer of parts."""
        return f"optimizer-{self.args.process_index}-of-{self.args.world_size}.pt"

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.update == "per_block" and self.blocks is not None:
            return self._block_norm  # clipped already, each block by itself
        return super()._clip_grad_norm(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, which all processes call together; its record of training also has speed, MFU, memory and the
        examples of each mode."""
        tokens = self.meter.tell(self.state)
        if "loss" in logs and "learning_rate" in logs:
            self.reading = self.meter.read(tokens)
            logs = logs | self.reading.as_logs()
        super().log(logs, start_time)

    def _total(self, counts: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.args.world_size == 1:
            return counts
        summed: Tensor = self.accelerator.reduce(counts.to(self.args.device), "sum")
        return summed

    def _modes_of_step(self) -> set[str]:
        """The modes of this optimizer step on all processes."""
        if self.args.world_size == 1:
            return self._step_modes
        here = torch.tensor([name in self._step_modes for name in self.modes], device=self.args.device)
        everywhere = self.accelerator.reduce(here.int(), "sum").tolist()
        return {name for name, present in zip(self.modes, everywhere, strict=True) if present}


def _mode_of(number: int, row: dict[str, Any]) -> Any:
    mode = _codes(row.get("mode"), f"row {number}: ")
    if mode is None:
        raise ConfigError("the data has no modes; its rows need a `mode`, an index into sgtm.partition.modes")
    if mode.ndim and len(mode) != len(row["input_ids"]):
        raise ConfigError(f"row {number} has {len(mode)} modes for {len(row['input_ids'])} tokens; give one for each")
    return mode


def _of_examples(modes: Any) -> Any:
    """(rows,) mode codes; the highest of a row's, where each position has one (as ``Rows.modes``)."""
    return np.asarray([np.max(m) for m in modes], np.int8)


def _balances_experts(model: nn.Module) -> bool:
    """Whether the model's loss has a part that is no sum over tokens."""
    config = getattr(model, "config", None)
    return config is not None and bool(getattr(config.get_text_config(), "output_router_logits", False))


def _nothing(inputs: dict[str, Any]) -> dict[str, Any]:
    """Two tokens of a batch without a label: a backward pass that adds nothing."""
    nothing = {key: value[:1, :2].clone() for key, value in inputs.items() if value.ndim == 2}
    nothing["labels"].fill_(-100)
    return nothing


class ModesOnHost:
    """A collator whose ``mode`` is an array, which Trainer leaves in the host's memory, so that no step has to wait for
    a device to know what it is to do. Examples stand in the order in which a step trains them, by mode.

    Args:
        collator: makes a batch of tensors, ``mode`` among them, out of examples.
    """

    def __init__(self, collator: Callable[[list[Any]], Any]) -> None:
        self.collator = collator

    def __call__(self, examples: list[Any]) -> Any:
        batch = self.collator(examples)
        if not isinstance(batch, Mapping) or "mode" not in batch:
            return batch
        mode = _codes(batch["mode"])
        batch = {key: value for key, value in batch.items() if key != "mode"}
        order = np.argsort(_turns(mode), kind="stable") if mode.ndim == 1 else np.arange(len(mode))
        if (np.diff(order) != 1).any():
            mode, rows = mode[order], torch.from_numpy(order)
            batch = {key: value[rows] if _has_rows(value, len(order)) else value for key, value in batch.items()}
        return batch | {"mode": mode}


def _has_rows(value: Any, number: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == number


def _codes(mode: Any, where: str = "") -> Any:
    """Modes as an array in the host's memory."""
    if mode is None:
        return None
    codes = mode.cpu().numpy() if isinstance(mode, Tensor) else np.asarray(mode)
    if not np.issubdtype(codes.dtype, np.integer):
        raise ConfigError(
            f"{where}mode has values such as {codes.flat[0]!r}; it is an index into the partition's modes: "
            "sgtm.partition.modes.index(NAME)"
        )
    return codes


def _turns(mode: NDArray[np.int64]) -> NDArray[np.int64]:
    """When each code has its turn: domains, then retain, then default."""
    mode = mode.astype(np.int64)
    return np.where(mode > MODES.index("retain"), mode, np.iinfo(np.int32).max - mode)


class _SetEpoch(TrainerCallback):
    """Tells the sampler the epoch; a loader that skips batches after resuming does not pass it on."""

    def __init__(self, trainer: SGTMTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        sampler = self.trainer.sampler
        if sampler is not None and callable(getattr(sampler, "set_epoch", None)):
            sampler.set_epoch(int(state.epoch or 0))  # type: ignore[attr-defined]
