"""`sgtm train` under torchrun on 1, 2, ... processes (one a GPU; on a CPU one a core): tokens/s, with SGTM and without.

    python benchmarks/scaling.py [--processes 1 2] [--config configs/demo/demo.yaml] [--steps 30] [--rounds 3]

Each process has as many examples a step whatever their number, so perfect scaling is a speed of n times one process.
Runs alternate; a speed is the median of the records of `throughput.jsonl` after the first. Where the configuration's
data is not there, the embedded corpus takes its place.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from side_by_side import report

from sgtm.config import load

METHODS = ("none", "sgtm")
LOG_EVERY = 5


def speed(config: Path, processes: int, method: str, steps: int, batch: int, folder: Path) -> float:
    """Tokens per second of a run of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    options = {
        "--method": method,
        "--run-dir": str(folder),
        "--train.steps": steps,
        "--train.warmup-steps": 1,
        "--train.batch-size": batch * processes,
        "--train.log-every": LOG_EVERY,
        "--train.save-every": steps,
        "--evaluate.rows": 8,
        "--evaluate.generations": 0,
        "--calibrate.steps": 1,
    }
    program = [*launcher, "-m", "sgtm.cli", "train", str(config), *(str(x) for pair in options.items() for x in pair)]
    threads = "" if torch.cuda.is_available() else "1"
    environment = os.environ | ({"OMP_NUM_THREADS": threads} if threads else {})
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(program)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    records = [json.loads(line) for line in (folder / "throughput.jsonl").read_text().splitlines()][1:]
    return statistics.median(r["tokens"] / r["seconds"] for r in records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=sorted({1, torch.cuda.device_count() or 2}))
    parser.add_argument("--config", type=Path, default=Path("configs/demo/demo.yaml"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/scaling.json"))
    settings = parser.parse_args()
    config = load(settings.config)
    if not Path(str(config.data.path)).exists():
        prepare = [sys.executable, "-m", "sgtm.cli", "data", "synthetic", "--out", str(config.data.path)]
        subprocess.run(prepare, check=True)
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(settings.rounds):
            for processes in settings.processes:
                for method in METHODS:
                    run = Path(folder) / f"{i}-{processes}-{method}"
                    batch = config.train.batch_size
                    own = speed(settings.config, processes, method, settings.steps, batch, run)
                    found[processes, method].append(own)
                    print(f"round {i + 1}: {processes} processes, {method}: {own:,.0f} tokens/s")
    rows = []
    first = settings.processes[0]
    for (processes, method), speeds in found.items():
        of_one = [a / b for a, b in zip(speeds, found[first, method], strict=True)]
        of_none = [a / b for a, b in zip(speeds, found[processes, "none"], strict=True)]
        rows.append(
            [
                str(processes),
                method,
                f"{statistics.median(speeds):,.0f}",
                f"{statistics.median(of_one):.2f} ({min(of_one):.2f} .. {max(of_one):.2f})",
                f"{statistics.median(of_none):.3f} ({min(of_none):.3f} .. {max(of_none):.3f})",
            ]
        )
    columns = ("processes", "method", "tokens/s", f"times {first} process", "of no masking")
    report("medians (lowest .. highest)", columns, rows, {f"{p} {m}": v for (p, m), v in found.items()}, settings.out)


if __name__ == "__main__":
    main()
