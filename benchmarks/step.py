"""What masking costs: one training step (forward, backward, AdamW) under SGTM against the same model without it.

    python benchmarks/step.py [--rounds 7]

Rounds of all cases alternate in one process; printed are medians and the ratio to the untouched model.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from sgtm import SGTM, Partition
from sgtm.environment import environment, tune_malloc
from sgtm.model.masking import Mode
from sgtm.train.optimizer import BlockParameters

BATCH, CONTEXT, STEPS = 8, 128, 5


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


def cases() -> dict[str, Callable[[], None]]:
    """Each case runs one step of its own model; all models start equal."""
    tokens = torch.randint(4096, (BATCH, CONTEXT))

    def plain(fused: bool) -> Callable[[], None]:
        net = model()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused)

        def step() -> None:
            net(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def masked(mode: Mode, update: str = "gradient", fused: bool = False) -> Callable[[], None]:
        net = model()
        sgtm = SGTM(Partition.of(net, heads=1, neurons=32), joint=("embeddings", "norms"))
        blocks = BlockParameters(sgtm, contiguous=fused)
        groups = blocks.groups(1e-3, 0.01, {name for name, _ in net.named_parameters()})
        optimizer = torch.optim.AdamW(net.parameters() if update == "gradient" else groups, lr=1e-3, fused=fused)
        if update != "gradient":
            blocks.attach(optimizer)
        present = {mode} if isinstance(mode, str) else {"default", "retain", "forget"}

        def step() -> None:
            with sgtm.batch(mode):
                net(input_ids=tokens, labels=tokens).loss.backward()
            if update != "gradient":
                blocks.set_gradients(present)
            optimizer.step()
            net.zero_grad()

        return step

    examples = [("default", "retain", "forget")[i % 3] for i in range(BATCH)]
    positions = torch.randint(3, (BATCH, CONTEXT))
    modes = ("default", "retain", "forget")
    return {
        "stock": plain(fused=False),
        **{f"{mode}, gradient": masked(mode) for mode in modes},
        **{f"{mode}, strict": masked(mode, "strict") for mode in modes},
        "a mode for each example, gradient": masked(examples),
        "a mode for each position, gradient": masked(positions),
        "a mode for each example, strict": masked(examples, "strict"),
        "stock, fused AdamW": plain(fused=True),
        "default, strict, fused AdamW": masked("default", "strict", fused=True),
        "a mode for each example, strict, fused AdamW": masked(examples, "strict", fused=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/step.json"))
    arguments = parser.parse_args()
    tune_malloc()
    steps = cases()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            seconds[name].append((time.perf_counter() - start) / STEPS)
    report(seconds, arguments.out)


def report(seconds: dict[str, list[float]], out: Path) -> None:
    table = Table("step", "ms (median)", "min .. max", "tokens/s", "speed / stock")
    for name, times in seconds.items():
        stock = seconds["stock, fused AdamW" if "fused" in name else "stock"]
        middle = statistics.median(times)
        ratio = statistics.median([a / b for a, b in zip(stock, times, strict=True)])
        spread = f"{min(times) * 1e3:.1f} .. {max(times) * 1e3:.1f}"
        table.add_row(name, f"{middle * 1e3:.1f}", spread, f"{BATCH * CONTEXT / middle:,.0f}", f"{ratio:.3f}")
    Console().print(table, platform.processor() or platform.machine())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"seconds_per_step": seconds, "environment": environment()}, indent=1))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
