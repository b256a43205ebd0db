"""``transformers.Trainer`` that trains each example in its mode. Everything else stays the library's."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import OptimizerNames

from sgtm.config import MODES, ConfigError, Mode
from sgtm.data.mixture import Rows, collate
from sgtm.model.masking import SGTM
from sgtm.train.optimizer import BlockParameters
from sgtm.train.sampler import ModeSampler

# A step runs its forget examples first: nothing has to be set aside then, and under DDP the part that synchronises
# the gradients is never one that has still to be masked.
_ORDER: tuple[Mode, ...] = ("forget", "retain", "default")
# Written in torch operations, which know strides; kernels on raw pointers write to wrong elements of a view.
_OPTIMIZERS_OF_VIEWS = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}


class SGTMTrainer(Trainer):
    """A Trainer whose batches may mix modes: ``mode`` (batch,), indices into ``sgtm.config.MODES``.

    Every example is trained exactly as ``SGTM.batch(mode)`` would train it; the loss is the mean over the tokens of
    the whole optimizer step.

    Args:
        sgtm: the masking of ``model``; None trains everything in default mode.
        update: ``gradient`` zeroes masked gradients, and AdamW may still move masked weights by momentum and decay;
            ``strict`` leaves alone, bit for bit, what no example of a step may update.
        forget_lr_scale: learning rate of the forget units, as a multiple of ``args.learning_rate``.
        sampler: order of the training rows; by default modes are mixed within every step.
        (all other arguments): as in ``transformers.Trainer``.

    Raises:
        ConfigError: settings that cannot be exact (sharded parameters, a loss that is not summed over tokens).
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        sgtm: SGTM | None = None,
        update: Literal["gradient", "strict"] = "gradient",
        forget_lr_scale: float = 1.0,
        sampler: Sampler[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.sgtm, self.update, self.forget_lr_scale, self.sampler = sgtm, update, forget_lr_scale, sampler
        self.blocks: BlockParameters | None = None
        self._step_modes: set[str] = set()
        args.remove_unused_columns = False  # "mode" is no argument of the model
        args.dataloader_drop_last = True
        kwargs.setdefault("data_collator", collate)
        super().__init__(model, args, **kwargs)
        if self.args.n_gpu > 1:
            raise ConfigError(
                f"{self.args.n_gpu} GPUs in one process would multiply the batch; start one process a GPU with "
                "torchrun, or set CUDA_VISIBLE_DEVICES"
            )
        if sgtm is not None:
            self._check(model, sgtm)
        self.add_callback(_SetEpoch(self))

    def _check(self, model: nn.Module, sgtm: SGTM) -> None:
        if sgtm.partition.model is not model:
            raise ConfigError("sgtm belongs to another model; make it with SGTM(Partition.of(model, ...))")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError("masks are not exact on sharded parameters yet; train without FSDP and DeepSpeed")
        if not self.model_accepts_loss_kwargs:
            raise ConfigError(
                f"{type(model).__name__}.forward takes no num_items_in_batch, so parts of a batch cannot be weighted "
                "by their tokens; use a causal language model of transformers >= 5.15"
            )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        if self.sampler is None and self.sgtm is not None:
            step_size = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
            dataset: Any = self.train_dataset if train_dataset is None else train_dataset
            modes = dataset.modes if isinstance(dataset, Rows) else [row["mode"] for row in dataset]
            self.sampler = ModeSampler(np.asarray(modes, np.int8), step_size, seed=self.args.seed)
        return self.sampler or super()._get_train_sampler(train_dataset)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.sgtm is None or (self.update == "gradient" and self.forget_lr_scale == 1.0) or self.optimizer:
            return super().create_optimizer(model)
        name = OptimizerNames(self.args.optim).value
        if name not in _OPTIMIZERS_OF_VIEWS:
            raise ConfigError(
                f"optim={name} is not known to be exact on the views that update=strict and "
                f"forget_lr_scale need; use one of {sorted(_OPTIMIZERS_OF_VIEWS)}"
            )
        self.blocks = BlockParameters(self.sgtm)
        masked = self.sgtm.partition.model
        decayed = self.get_decay_parameter_names(masked)
        groups = self.blocks.groups(self.args.learning_rate, self.args.weight_decay, decayed, self.forget_lr_scale)
        optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, masked)
        if kwargs.pop("fused", False):
            kwargs["foreach"] = None  # torch's choice
        self.optimizer = optimizer_class(groups, **kwargs)
        blocks = self.blocks
        self.optimizer.register_step_post_hook(lambda *_: blocks.clear_gradients())
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        mode = inputs.pop("mode", None)
        self._count_tokens(num_items_in_batch)
        if self.sgtm is None:
            if mode is not None and bool((mode != MODES.index("default")).any()):
                raise ConfigError("the data has modes but the trainer has no sgtm; give SGTMTrainer(sgtm=...)")
            return super().training_step(model, inputs, num_items_in_batch)
        loss = torch.zeros((), device=self.args.device)
        parts = list(self._parts(inputs, mode))
        self._step_modes.update(name for name, _ in parts)
        if self.args.world_size > 1 and parts[-1][0] == "forget":
            parts.append(("default", _nothing(inputs)))  # other processes wait for this one's gradients
        for i, (name, part) in enumerate(parts):
            synchronise = nullcontext() if i == len(parts) - 1 else self.accelerator.no_sync(model)
            with synchronise, self.sgtm.batch(name):
                loss += super().training_step(model, part, num_items_in_batch)
        if self.blocks is not None and self.accelerator.sync_gradients:
            self.blocks.set_gradients(self._modes_of_step() if self.update == "strict" else None)
        if self.accelerator.sync_gradients:
            self._step_modes = set()
        return loss

    def _parts(self, inputs: dict[str, Any], mode: Tensor | None) -> Iterator[tuple[Mode, dict[str, Any]]]:
        """The batch cut by mode, in an order that needs no gradient to be set aside."""
        if mode is None:
            raise ConfigError("the data has no modes; its rows need a `mode`, an index into sgtm.config.MODES")
        present = [name for name in _ORDER if bool((mode == MODES.index(name)).any())]
        for name in present:
            chosen = mode == MODES.index(name)
            yield name, {key: value[chosen] for key, value in inputs.items()}

    def _count_tokens(self, num_items_in_batch: Tensor | int | None) -> None:
        """Predicted tokens of the whole optimizer step, on all processes, counted once."""
        if self.accelerator.sync_gradients and num_items_in_batch is not None:
            self.state.num_input_tokens_seen += int(num_items_in_batch)

    def _modes_of_step(self) -> set[str]:
        """The modes of this optimizer step on all processes."""
        here = torch.tensor([name in self._step_modes for name in MODES], device=self.args.device)
        if self.args.world_size > 1:
            here = self.accelerator.reduce(here.int(), "sum").bool()
        return {name for name, present in zip(MODES, here.tolist(), strict=True) if present}


def _nothing(inputs: dict[str, Any]) -> dict[str, Any]:
    """Two tokens of a batch without a label: a backward pass that adds nothing."""
    nothing = {key: value[:1, :2].clone() for key, value in inputs.items()}
    nothing["labels"].fill_(-100)
    return nothing


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
