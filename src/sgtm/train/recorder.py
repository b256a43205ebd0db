"""``metrics.jsonl``: one object a line, written as the run goes on."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sgtm.config import Category
from sgtm.evaluate.loss import Loss, Variant
from sgtm.records import METRICS, read_records
from sgtm.train.trackers import names_of

Evaluation = Callable[[int], dict[tuple[Category, Variant], Loss]]


class Recorder(TrainerCallback):
    """Writes training losses as Trainer logs them, and evaluates every ``every`` steps and at the end.

    A record has: step, tokens (trained on so far, each predicted token once), flops (6 x parameters x tokens), split,
    category, variant, loss (nats per token), num_tokens (that the loss is a mean over).

    Args:
        evaluate: given the step, the losses of the test split.
        flops_per_token: 6 x the number of parameters.
        log: tells test losses to the loggers that the run reports to (``Trainer.log``).
    """

    def __init__(
        self,
        folder: Path,
        evaluate: Evaluation,
        every: int | None,
        flops_per_token: int,
        log: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.path, self.evaluate, self.every, self.flops_per_token = folder / METRICS, evaluate, every, flops_per_token
        self.log = log
        self.evaluated_at = -1
        self.tokens_at_log = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A resumed run repeats the steps since its checkpoint: forget what was written of them."""
        self.started, self.first_step = time.monotonic(), state.global_step
        self.tokens_at_log = state.num_input_tokens_seen
        kept = [r for r in read_records(self.path) if r["step"] <= state.global_step] if state.global_step else []
        if state.is_world_process_zero:
            self.path.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" not in logs:
            return
        tokens, self.tokens_at_log = state.num_input_tokens_seen - self.tokens_at_log, state.num_input_tokens_seen
        extra = {k: logs[k] for k in ("learning_rate", "grad_norm") if k in logs}
        self._write(state, "train", "all", "intact", Loss(logs["loss"], tokens), **extra)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        if (last or (self.every and state.global_step % self.every == 0)) and self.evaluated_at != state.global_step:
            self.evaluated_at = state.global_step
            losses = self.evaluate(state.global_step)
            for (category, variant), loss in losses.items():
                self._write(state, "test", category, variant, loss)
            if self.log is not None:
                is_due = control.should_log
                self.log(names_of(losses))
                control.should_log = (
                    is_due  # Trainer takes it back; the training loss of this step is still to be logged
                )

    def _write(self, state: TrainerState, split: str, category: str, variant: str, loss: Loss, **extra: float) -> None:
        if not state.is_world_process_zero:
            return
        tokens = state.num_input_tokens_seen
        record = {
            "step": state.global_step,
            "tokens": tokens,
            "flops": tokens * self.flops_per_token,
            "split": split,
            "category": category,
            "variant": variant,
            "loss": loss.mean,
            "num_tokens": loss.num_tokens,
            **extra,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
