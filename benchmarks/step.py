"""What masking costs: a step (forward, backward, clipping, AdamW) under SGTM against one of the model without it.

    python benchmarks/step.py [--rounds 15] [--only strict]

Every measurement of a case stands between two of the untouched model in the same process; the ratio of the two is what
is reported: its median over the rounds, with a 95 % interval of the median (bootstrap). Processor time is reported
beside wall time: on a machine that others use as well it is the steadier one.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from sgtm import SGTM, Partition
from sgtm.environment import environment, tune_malloc
from sgtm.model.masking import Mode
from sgtm.train.optimizer import BlockParameters

BATCH, CONTEXT, STEPS = 8, 128, 5
MODES = ("default", "retain", "forget")
Step = Callable[[], None]


def model() -> GPTNeoForCausalLM:
    config = GPTNeoConfig(
        vocab_size=4096,
        hidden_size=128,
        num_layers=6,
        num_heads=8,
        attention_types=[[["global", "local"], 3]],
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return GPTNeoForCausalLM(config)


def tokens() -> torch.Tensor:
    return torch.randint(4096, (BATCH, CONTEXT), generator=torch.Generator().manual_seed(0))


def plain(fused: bool) -> Step:
    net, ids = model(), tokens()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused)

    def step() -> None:
        net(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def masked(mode: Mode, update: str, fused: bool = False) -> Step:
    net, ids = model(), tokens()
    sgtm = SGTM(Partition.of(net, heads=1, neurons=32), joint=("embeddings", "norms"))
    blocks = BlockParameters(sgtm, contiguous=fused)
    names = {name for name, _ in net.named_parameters()}
    groups = blocks.groups(1e-3, 0.01, names, by_owner=update == "per_block")
    optimizer = torch.optim.AdamW(net.parameters() if update == "gradient" else groups, lr=1e-3, fused=fused)
    if update != "gradient":
        blocks.attach(optimizer)
    present = {mode} if isinstance(mode, str) else set(MODES)

    def step() -> None:
        with sgtm.batch(mode):
            net(input_ids=ids, labels=ids).loss.backward()
        if update != "gradient":
            blocks.set_gradients(present)
        if update == "per_block":
            blocks.clip(1.0)
        else:
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        net.zero_grad()

    return step


def cases() -> dict[str, Callable[[], Step]]:
    """What is measured, by name; made when it is its turn."""
    examples: Mode = [MODES[i % 3] for i in range(BATCH)]
    positions: Mode = torch.randint(3, (BATCH, CONTEXT), generator=torch.Generator().manual_seed(0))
    mixed = {"a mode for each example": examples, "a mode for each position": positions}
    found: dict[str, Callable[[], Step]] = {"stock again": lambda: plain(fused=False)}
    for update in ("gradient", "strict", "per_block"):
        for name, mode in {**dict(zip(MODES, MODES, strict=True)), **mixed}.items():
            found[f"{name}, {update}"] = lambda mode=mode, update=update: masked(mode, update)  # type: ignore[misc]
    for mode in MODES:
        found[f"{mode}, strict, fused AdamW"] = lambda mode=mode: masked(mode, "strict", fused=True)  # type: ignore[misc]
    return found


def seconds(step: Step) -> tuple[float, float]:
    """(wall, processor) seconds of one step."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - wall) / STEPS, (time.process_time() - processor) / STEPS


def measure(stock: Step, case: Step, rounds: int) -> list[dict[str, float]]:
    """Speed against stock in each round, which is stock, case, stock."""
    case()
    found, before = [], seconds(stock)
    for _ in range(rounds):
        own, after = seconds(case), seconds(stock)
        wall, processor = ((a + b) / 2 / o for a, b, o in zip(before, after, own, strict=True))
        found.append({"wall": wall, "processor": processor, "seconds": own[0]})
        before = after
    return found


def interval(ratios: list[float]) -> str:
    """The median, and a 95 % interval of it."""
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, 1), (0.025, 0.975))
    return f"{statistics.median(ratios):.3f} ({low:.3f} .. {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/step.json"))
    arguments = parser.parse_args()
    tune_malloc()
    stocks = {fused: plain(fused) for fused in (False, True)}
    for stock in stocks.values():
        stock()
    chosen = {name: make for name, make in cases().items() if arguments.only in name}
    found = {name: measure(stocks["fused" in name], make(), arguments.rounds) for name, make in chosen.items()}
    report(found, arguments.out)


def report(found: dict[str, list[dict[str, float]]], out: Path) -> None:
    table = Table("step", "ms", "tokens/s", "speed / stock, wall", "speed / stock, processor time")
    for name, rounds in found.items():
        middle = statistics.median(r["seconds"] for r in rounds)
        ratios = (interval([r[clock] for r in rounds]) for clock in ("wall", "processor"))
        table.add_row(name, f"{middle * 1e3:.1f}", f"{BATCH * CONTEXT / middle:,.0f}", *ratios)
    Console(width=120).print(table, platform.processor() or platform.machine())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rounds": found, "environment": environment()}, indent=1))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
