"""Stands in for `sgtm train` in the tests of sweeps: the same files, and steps of `train.log_every` milliseconds.

python stand_in.py FOLDER            one run
python stand_in.py --sweep FILE OUT  a sweep of such runs, as `sgtm sweep` runs it
"""

import json
import os
import sys
import time
from pathlib import Path

FAILS = 13  # train.log_every of a run that fails


def train(folder: Path) -> None:
    import yaml

    config = yaml.safe_load((folder / "config.yaml").read_text())
    steps, pause = config["train"]["steps"], config["train"]["log_every"]
    (folder / "run.json").write_text("{}")
    records = folder / "metrics.jsonl"
    done = len(records.read_text().splitlines()) if records.exists() else 0
    print("from step", done, "with", os.environ["OMP_NUM_THREADS"], "threads", flush=True)
    if pause == FAILS:
        sys.exit("the reason why")
    for step in range(done + 1, steps + 1):
        time.sleep(pause / 1000)
        about = {"step": step, "split": "test", "category": "forget", "variant": "calibrated", "loss": 5.0 + step}
        with records.open("a") as file:
            file.write(json.dumps(about) + "\n")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")


def command(folder: Path, processes: int) -> list[str]:
    return [sys.executable, __file__, str(folder)]


def sweep(path: Path, out: Path) -> None:
    from sgtm.train import launch
    from sgtm.train.sweep import points_of, read_sweep

    launch.command = command
    plan = read_sweep(path)
    launch.run_points(points_of(plan, plan.common, out, plan.config.seeds), launch.slots([]))


if __name__ == "__main__":
    train(Path(sys.argv[1])) if len(sys.argv) == 2 else sweep(*map(Path, sys.argv[2:]))
