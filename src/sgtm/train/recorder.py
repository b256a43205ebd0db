"""``metrics.jsonl``: one object a line, written as the run goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sgtm.config import Category
from sgtm.evaluate.loss import Loss, Variant
from sgtm.records import METRICS, THROUGHPUT, read_records, write_records
from sgtm.train.trackers import names_of
from sgtm.train.trainer import SGTMTrainer

Evaluation = Callable[[int], dict[tuple[Category, Variant], Loss]]


class Recorder(TrainerCallback):
    """Writes training losses as Trainer logs them, and evaluates every ``every`` steps and at the end.

    A record has: step, tokens (trained on so far, each predicted token once), flops (6 x parameters x tokens), split,
    category, variant, loss (nats per token), num_tokens (that the loss is a mean over). ``throughput.jsonl`` has, by
    step, what ``SGTMTrainer.reading`` says of the steps since the record before.

    Args:
        evaluate: given the step, the losses of the test split.
        trainer: whose run it is.
        report: tell the loggers that the run reports to the test losses too.
    """

    def __init__(
        self,
        folder: Path,
        evaluate: Evaluation,
        every: int | None,
        trainer: SGTMTrainer,
        report: bool = False,
    ) -> None:
        self.path, self.evaluate, self.every = folder / METRICS, evaluate, every
        self.trainer, self.report = trainer, report
        self.evaluated_at = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A resumed run repeats the steps since its checkpoint: forget what was written of them."""
        if state.is_world_process_zero:
            for path in (self.path, self.path.with_name(THROUGHPUT)):
                found = read_records(path) if state.global_step else []
                write_records(path, (r for r in found if r["step"] <= state.global_step))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs, reading = kwargs["logs"], self.trainer.reading
        if reading is None or "tokens_per_second" not in logs:  # no record of training
            return
        extra = {k: logs[k] for k in ("learning_rate", "grad_norm") if k in logs}
        self._write(state, "train", "all", "intact", Loss(logs["loss"], reading.tokens), **extra)
        self._append(state, THROUGHPUT, {"step": state.global_step, **reading.as_record()})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_save:  # so that what is logged next begins where a resumed run does
            control.should_log = True
        last = state.global_step >= state.max_steps
        if (last or (self.every and state.global_step % self.every == 0)) and self.evaluated_at != state.global_step:
            self.evaluated_at = state.global_step
            self.trainer.meter.tell(state)  # waits for the device, whose work until here is training
            with self.trainer.meter.paused():
                losses = self.evaluate(state.global_step)
                for (category, variant), loss in losses.items():
                    self._write(state, "test", category, variant, loss)
                if self.report:
                    wanted = control.should_log
                    self.trainer.log(names_of(losses))
                    control.should_log = wanted  # Trainer takes any log for the step's own

    def _write(self, state: TrainerState, split: str, category: str, variant: str, loss: Loss, **extra: float) -> None:
        tokens = state.num_input_tokens_seen
        record = {
            "step": state.global_step,
            "tokens": tokens,
            "flops": tokens * self.trainer.meter.flops_per_token,
            "split": split,
            "category": category,
            "variant": variant,
            "loss": loss.mean,
            "num_tokens": loss.num_tokens,
            **extra,
        }
        self._append(state, METRICS, record)

    def _append(self, state: TrainerState, name: str, record: dict[str, Any]) -> None:
        if state.is_world_process_zero:
            with self.path.with_name(name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
