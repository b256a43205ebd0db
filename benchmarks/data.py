"""What feeds the model: rows in their modes from disk, against the plain way to load the same rows.

    python benchmarks/data.py [--rows 4000] [--context 512] [--batch 64] [--rounds 7]

Packed rows in a folder as `sgtm data` leaves it (Arrow, memory-mapped). The plain way is torch's loader over the data
set in random order, its lists stacked; ours draws the labels, mixes the modes within every
step, and collates, as `SGTMTrainer` does. Both in this process, without workers: what is told is the time that a GPU
would wait. `tokens/s` should be many times what the model trains on.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from side_by_side import clock, in_turns, interval, report, speeds
from torch.utils.data import DataLoader

from sgtm.config import LabelConfig
from sgtm.data.mixture import Rows, collate, training_rows
from sgtm.train.sampler import ModeSampler

SHARES = {"forget": 0.2, "retain": 0.8}


def make(folder: Path, rows: int, context: int) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(50257, size=(rows, context)).tolist()
    category = rng.choice(list(SHARES), rows, p=list(SHARES.values())).tolist()
    Dataset.from_dict({"input_ids": ids, "category": category, "document": list(range(rows))}).save_to_disk(folder)


def plain_collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([example["input_ids"] for example in examples])
    return {"input_ids": ids, "labels": ids.clone()}


def load_plainly(data: Dataset, batch: int) -> float:
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(data, batch, shuffle=True, collate_fn=plain_collate, drop_last=True, generator=generator)  # type: ignore[arg-type, call-overload]
    return float(sum(found["input_ids"].numel() for found in loader))


def load_modes(data: Dataset, batch: int) -> float:
    categories = np.array([("forget", "adjacent", "retain").index(c) for c in data["category"]], np.int8)
    rows = Rows(data, categories, np.array(data["document"]))
    labelled, _ = training_rows(rows, LabelConfig(undiscovered=0.1), "modes", seed=0)
    assert labelled.modes is not None
    sampler = ModeSampler(labelled.modes, batch)
    loader = DataLoader(labelled, batch, sampler=sampler, collate_fn=collate, drop_last=True)  # type: ignore[arg-type]
    return float(sum(found["input_ids"].numel() for found in loader))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/data.json"))
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), settings.rows, settings.context)
        data = load_from_disk(folder)
        found = in_turns(
            {
                "plain": lambda: load_plainly(data, settings.batch),
                "ours": lambda: load_modes(data, settings.batch),
            },
            settings.rounds,
        )
    table = []
    for name, timings in found.items():
        seconds = statistics.median(getattr(t, clock()) for t in timings)
        steps = timings[0].loss / (settings.batch * settings.context)
        ratio = "" if name == "plain" else interval(speeds(timings, found["plain"], clock()))
        table.append([name, f"{timings[0].loss / seconds:,.0f}", f"{seconds / steps * 1e3:.2f}", ratio])
    title = f"{settings.rows} rows of {settings.context} tokens, {settings.batch} a step"
    report(title, ("way", "tokens/s", "ms a step", "speed / plain"), table, found, settings.out)


if __name__ == "__main__":
    main()
