"""Loggers that a run reports to (``train.arguments.report_to``): wandb, trackio, tensorboard, ...; none is needed.

They show what ``metrics.jsonl`` holds: ``train/loss`` (there: train, all, intact) and, for each category and variant,
``test/CATEGORY/VARIANT``: ``test/forget/ablated`` in nats per token, over optimizer steps.
"""

import sys
from collections.abc import Mapping
from typing import Any

from transformers import Trainer
from transformers.integrations import integration_utils

from sgtm.config import Category, redacted
from sgtm.evaluate.loss import Loss, Variant


def names_of(losses: Mapping[tuple[Category, Variant], Loss]) -> dict[str, float]:
    """Test losses as ``Trainer.log`` takes them: it hands ``test_...`` on to loggers as ``test/...``."""
    return {f"test_{category}/{variant}": loss.mean for (category, variant), loss in losses.items()}


def guard(trainer: Trainer) -> None:
    """Let a logger that fails (no network, no account, a full disk) go silent instead of ending the run."""
    loggers = tuple(integration_utils.INTEGRATION_TO_CALLBACK.values())
    callbacks = trainer.callback_handler.callbacks
    callbacks[:] = [Guarded(c) if isinstance(c, loggers) else c for c in callbacks]


class Guarded:
    """A callback of Trainer's whose first error is its last word."""

    def __init__(self, logger: Any) -> None:
        self.logger, self.has_failed = logger, False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.logger, name)
        if not name.startswith("on_"):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.has_failed:
                return None
            try:
                return found(*args, **kwargs)
            except Exception as error:  # the logger's own, of many kinds
                self.has_failed = True
                reason = redacted(" ".join(str(error).split()) or type(error).__name__)
                print(f"{type(self.logger).__name__} has failed and is left out: {reason[:300]}", file=sys.stderr)
                return None

        return call
