"""How fast a run goes and on what, as it goes: tokens per second, MFU, memory, examples of each mode."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_PEAK_TFLOPS = {  # dense, of one device in bf16: the makers' figures; the first that a name holds as words
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


@dataclass(frozen=True)
class Reading:
    """What went by since the reading before, evaluations left out.

    Args:
        tokens: trained on by all processes, each predicted token once.
        examples: of each mode (positions, where each position has a mode of its own), on all processes.
        memory_mb: the most that this process held: of the GPU's memory where there is one, else of the machine's.
        mfu: 6 x parameters x tokens / seconds, as a share of what the devices can do; None where that is not known.
    """

    tokens: int
    seconds: float
    examples: dict[str, int]
    memory_mb: float
    mfu: float | None

    def as_logs(self) -> dict[str, float]:
        """Numbers by the names that loggers and the progress bar show."""
        logs = {"tokens_per_second": round(self.tokens / self.seconds, 1) if self.seconds else 0.0}
        if self.mfu is not None:
            logs["mfu"] = round(self.mfu, 4)
        return logs | {"memory_mb": self.memory_mb} | {f"examples/{mode}": n for mode, n in self.examples.items()}

    def as_record(self) -> dict[str, Any]:
        """For ``throughput.jsonl``."""
        record = {"tokens": self.tokens, "seconds": round(self.seconds, 3), "memory_mb": self.memory_mb}
        return record | ({} if self.mfu is None else {"mfu": self.mfu}) | {"examples": self.examples}


class Meter(TrainerCallback):
    """Counts while a run trains; ``read`` says what went by and begins anew. Counting makes nobody wait for
    the device.

    Args:
        model: whose parameters and device count for MFU.
        modes: names that the codes of ``count`` are indices into.
        total: sums (modes,) over all processes.
        num_devices: that train together.
        peak_tflops: what one device can do; None: that of a GPU whose name is known.
    """

    def __init__(
        self,
        model: nn.Module,
        modes: Sequence[str],
        total: Callable[[Tensor], Tensor] = lambda counts: counts,
        num_devices: int = 1,
        peak_tflops: float | None = None,
    ) -> None:
        self.modes, self.total = tuple(modes), total
        self.flops_per_token = 6 * sum(p.numel() for p in model.parameters())
        self.num_devices, self.peak_tflops = num_devices, peak_tflops
        self.counts: NDArray[np.int64] | None = None
        self.since, self.tokens = time.monotonic(), 0
        self.untold: Tensor | int = 0  # predicted tokens that the state does not know of yet, on their device

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.since, self.tokens, self.counts = time.monotonic(), state.num_input_tokens_seen, None
        self.untold = 0

    def count(self, mode: NDArray[np.int64]) -> None:
        """Note the codes (batch,) or (batch, seq) of a batch."""
        found = np.array([np.count_nonzero(mode == code) for code in range(len(self.modes))])
        self.counts = found if self.counts is None else self.counts + found

    def count_tokens(self, number: Tensor | int) -> None:
        """Note the predicted tokens of a step. (Trainer's count is a float, which would lose some in a long sum.)"""
        self.untold = self.untold + (number.to(torch.int64) if isinstance(number, Tensor) else int(number))

    def tell(self, state: TrainerState) -> int:
        """The tokens seen so far, of which ``state`` knows from now on; a device has to be waited for."""
        state.num_input_tokens_seen += int(self.untold)
        self.untold = 0
        return state.num_input_tokens_seen

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens meanwhile is no training."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.since += time.monotonic() - start

    def read(self, tokens_seen: int) -> Reading:
        """Called by all processes together."""
        now = time.monotonic()
        seconds, tokens = now - self.since, tokens_seen - self.tokens
        self.since, self.tokens = now, tokens_seen
        examples: dict[str, int] = {}
        if self.counts is not None:
            summed = self.total(torch.from_numpy(self.counts))
            examples = dict(zip(self.modes, summed.tolist(), strict=True))
            self.counts = None
        peak, mfu = self.peak_tflops or known_peak(), None
        if peak is not None and seconds:
            mfu = self.flops_per_token * tokens / seconds / (peak * 1e12 * self.num_devices)
        return Reading(tokens, seconds, examples, peak_memory(), mfu)


def known_peak() -> float | None:
    """TFLOP/s of this process's GPU in bf16, where its name is known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for known, peak in _PEAK_TFLOPS.items() if re.search(rf"\b{known}\b", name)), None)


def peak_memory() -> float:
    """MB that this process held at most: of the GPU, where there is one."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    import resource  # not on every system

    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
