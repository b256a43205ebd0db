"""What the benchmarks share: steps in turns in one process, ratios within a round, their medians, peak memory."""

import gc
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sgtm.environment import environment

Step = Callable[[], float]  # does the work once and returns its loss, or what else it amounts to


@dataclass(frozen=True)
class Timing:
    """One step: seconds of wall clock and of processor time, and its loss."""

    wall: float
    processor: float
    loss: float


def in_turns(steps: dict[str, Step], rounds: int, warmup: int = 1) -> dict[str, list[Timing]]:
    """``rounds`` of every step; the order is turned round in every second one, so that a drift cancels."""
    for step in list(steps.values()) * warmup:
        step()
    found: dict[str, list[Timing]] = {name: [] for name in steps}
    for i in range(rounds):
        for name in list(steps)[:: 1 if i % 2 == 0 else -1]:
            found[name].append(_timed(steps[name]))
            print(f"\r{i + 1}/{rounds} {name[:60]:60}", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 80 + "\r", end="", file=sys.stderr)
    return found


def _timed(step: Step) -> Timing:
    _wait()
    wall, processor = time.perf_counter(), time.process_time()
    loss = step()
    _wait()
    return Timing(time.perf_counter() - wall, time.process_time() - processor, loss)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def speeds(case: Sequence[Timing], reference: Sequence[Timing], clock: str) -> list[float]:
    """Of each round: the reference's seconds / the case's."""
    return [getattr(r, clock) / getattr(c, clock) for c, r in zip(case, reference, strict=True)]


def interval(ratios: Sequence[float]) -> str:
    """The median, and a 95 % interval of it (bootstrap)."""
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, 1), (0.025, 0.975))
    return f"{statistics.median(ratios):.3f} ({low:.3f} .. {high:.3f})"


def clock() -> str:
    """On a machine that others use as well processor time is the steadier one; it says nothing of a GPU."""
    return "wall" if torch.cuda.is_available() else "processor"


def peak_memory(arguments: Sequence[str]) -> float:
    """MB at most that this program holds, run with ``arguments`` in a process of its own, beyond what it began with."""
    program = [sys.executable, sys.argv[0], *arguments]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    return float(said.splitlines()[-1])


def peak_of_gpu(make: Callable[[], Step]) -> float:
    """MB of the GPU at most that building a step and doing it twice takes; infinite where that does not fit."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        step = make()
        step(), step()
    except torch.OutOfMemoryError:
        return math.inf
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def print_peak(work: Callable[[], object]) -> None:
    """Do ``work`` and print, in MB, by how much it raised the most that this process held."""
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
    work()
    print((_resident("VmHWM") - before) / 1024)


def _resident(name: str) -> int:
    """kB that this process holds (VmRSS), or held at most (VmHWM); Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], data: object, out: Path) -> None:
    """Print the table and the machine, and write all that was measured as JSON."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    about = environment()
    machine = about.get("gpu", platform.processor() or platform.machine())
    console = Console(width=170)
    console.print(table, f"{machine}, {about['torch_threads']} threads, torch {about['torch']}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"measured": data, "environment": about}, indent=1, default=vars))
    print(f"written to {out}")
