"""Checkpoints that can be trusted, whatever ended the run that wrote them.

A checkpoint is *sealed* when all its files are on the disk: only then do older ones go, and runs go on from sealed ones
alone. The seal, ``sealed.json``, says which run it belongs to, how long each file is, and what is in it (SHA-256).
"""

import hashlib
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sgtm.config import ConfigError, RunError, check_shape, read_json, write
from sgtm.model.sharding import local

SEAL = "sealed.json"
_NAME = "checkpoint-"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """Step -> checkpoint, in order, of those in ``folder`` that are sealed."""
    return dict(sorted((_step(p.parent), p.parent) for p in folder.glob(f"{_NAME}*/{SEAL}")))


def seal(checkpoint: Path, run: str) -> None:
    """Say that ``checkpoint`` is whole and belongs to ``run``, once all that is in it has reached the disk."""
    files = [p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.name != SEAL]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    names = {path.relative_to(checkpoint).as_posix(): path for path in files}
    sizes = {name: path.stat().st_size for name, path in names.items()}
    digests = {name: _sha256(path) for name, path in names.items()}
    write(checkpoint / SEAL, json.dumps({"run": run, "files": sizes, "sha256": digests}, indent=1))


def fault_of(checkpoint: Path, run: str) -> str | None:
    """Why ``run`` cannot go on from ``checkpoint``; None if it can."""
    if not (checkpoint / SEAL).is_file():
        return "was not written to its end"
    found = _read_seal(checkpoint)
    if found is not None and found["run"] != run:
        return "belongs to another run"
    return damage_of(checkpoint)


def damage_of(folder: Path, ends: tuple[str, ...] = ("",)) -> str | None:
    """How the files of a sealed ``folder`` whose names end so differ from what was written; None if they do not."""
    found = _read_seal(folder)
    if found is None:
        return f"has a {SEAL} that cannot be read"
    sizes = {name: size for name, size in found["files"].items() if name.endswith(ends)}
    for name, size in sizes.items():
        path = folder / name
        there = path.stat().st_size if os.path.isfile(path) else None  # Path's own raises for names that none can have
        if there != size:
            return f"lacks {name[:80]}" if there is None else f"has a {name} of {there:,} bytes, not {size:,}"
    digests = found.get("sha256", {})  # seals once had none
    changed = (name for name in sizes if name in digests and _sha256(folder / name) != digests[name])
    return next((f"has a {name} whose content has changed" for name in changed), None)


def _read_seal(folder: Path) -> dict[str, Any] | None:
    """What the seal says; None if it cannot be read."""
    try:
        found = read_json(folder / SEAL, "", {"run": str, "files": dict})
        check_shape([found.get("sha256", {}), list(found["files"].values())], [dict, [int]], SEAL, "")
    except ConfigError:
        return None
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_first_process() -> bool:
    """The one that writes, under torchrun; asked before any process group exists."""
    return os.environ.get("RANK", "0") == "0"


def last_sound(folder: Path, steps: int, run: str) -> Path | None:
    """The last checkpoint in ``folder`` that ``run`` can go on from and that leaves one of ``steps`` to do.

    Those that it cannot go on from are named, with the reason, and removed if they are only half written: by the first
    process, where several start together.
    """
    for checkpoint in sorted(folder.glob(f"{_NAME}*"), key=_step, reverse=True):
        fault = fault_of(checkpoint, run)
        if fault is not None:
            if is_first_process():
                print(f"{checkpoint} {fault}; it is left out")
                if not (checkpoint / SEAL).exists():
                    shutil.rmtree(checkpoint)
        elif _step(checkpoint) < steps:
            return checkpoint
    return None


def keep_latest(folder: Path, number: int | None) -> None:
    """Remove all checkpoints in ``folder`` but the latest; None keeps all."""
    for old in list(checkpoints_of(folder).values())[:-number] if number else ():
        (old / SEAL).unlink()  # first: half a checkpoint is none
        shutil.rmtree(old)


class Keeper(TrainerCallback):
    """Seals each checkpoint and then removes the oldest ones; nothing is kept of a model that is no longer finite.

    Args:
        run: the run that checkpoints belong to.
        keep: the latest checkpoints that stay; None keeps all.
    """

    def __init__(self, run: str, keep: int | None) -> None:
        self.run, self.keep = run, keep

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if distributed.is_initialized():
            distributed.barrier()  # each process writes files of its own
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        seal(folder / f"{_NAME}{state.global_step}", self.run)
        if self.keep is not None:  # the last one is none to go on from, until the model is written
            keep_latest(folder, self.keep + (state.global_step >= state.max_steps))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop where the loss is no number."""
        loss = kwargs["logs"].get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise RunError(
                f"the loss is {loss} at step {state.global_step}; checkpoints from before may be of use. Start anew "
                "with a lower train.learning_rate, a longer train.warmup_steps, or train.precision: fp32"
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Before a checkpoint is written."""
        if control.should_save and not _is_finite(kwargs["model"]):
            raise RunError(
                f"weights are no longer finite at step {state.global_step}, so no checkpoint was written of them. Go "
                "on from the one before with --resume, or start anew with a lower train.learning_rate"
            )


class Stopper(TrainerCallback):
    """SIGINT (Ctrl-C) and SIGTERM end the run after the step under way, with a checkpoint; a second one at once.

    With several processes, which must agree on the step, the end is at a step that is logged.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.stopped_at: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Heed signals, if this is the thread that gets them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, self._heed(before[number]))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heed(self, before: Any) -> Callable[[int, FrameType | None], None]:
        def heed(number: int, frame: FrameType | None) -> None:
            self.asked = number
            signal.signal(number, before)
            print("stopping after this step, with a checkpoint; once more to stop at once", flush=True)

        return heed

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step < state.max_steps and self._is_time(args, control):
            self.stopped_at = state.global_step
            control.should_save = control.should_training_stop = True

    def _is_time(self, args: TrainingArguments, control: TrainerControl) -> bool:
        if args.world_size == 1:
            return self.asked is not None
        if not control.should_log:
            return False
        asked = torch.tensor([self.asked or 0], device=args.device)
        distributed.all_reduce(asked, distributed.ReduceOp.MAX)
        self.asked = int(asked) or None
        return self.asked is not None


@contextmanager
def told_how_to_go_on(folder: Path, command: str) -> Iterator[None]:
    """Errors of a run say what is left of it.

    Raises:
        RunError: the disk is full; what was being written is removed.
    """
    try:
        yield
    except (ConfigError, RunError):
        raise
    except Exception as error:
        if _is_full(error):
            for checkpoint in folder.glob(f"{_NAME}*"):
                if not (checkpoint / SEAL).exists():
                    shutil.rmtree(checkpoint, ignore_errors=True)
            raise RunError(f"{folder} cannot be written, the disk is full: free some space, then {command}") from error
        error.add_note(f"After the cause is mended: {command}")
        raise


def _is_full(error: BaseException | None) -> bool:
    """Whether the error, or what it came from, says that there is no space left (libraries say it in their text)."""
    while error is not None:
        if "No space left" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_finite(model: torch.nn.Module) -> bool:
    sums = torch.stack([local(p.detach()).float().sum() for p in model.parameters()])
    is_finite = sums.isfinite().all().float()
    if distributed.is_initialized():  # each process may hold a shard, and all must come to one answer
        distributed.all_reduce(is_finite, distributed.ReduceOp.MIN)
    return bool(is_finite)


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix(_NAME)
    return int(number) if number.isdigit() else -1
