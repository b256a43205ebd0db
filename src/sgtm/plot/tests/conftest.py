"""Runs that were never trained: records and configurations alone."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from sgtm.config import RunConfig, build, dump, with_settings


@pytest.fixture
def write_runs(tmp_path):
    """A folder for each of `settings`: {seed: (retain loss, forget loss)} at the end, calibrated."""

    def write(losses: dict[int, tuple[float, float]], step: int = 10, **settings) -> list[Path]:
        found = []
        for seed, of_seed in losses.items():
            given = {key.replace("__", "."): value for key, value in settings.items()}
            values = with_settings(asdict(RunConfig()), {"train.steps": 10, "train.warmup_steps": 1, **given}, "test")
            folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            dump(build(RunConfig, {**values, "seed": seed}, "test"), folder / "config.yaml")
            lines = [
                {"step": step, "split": "test", "category": category, "variant": "calibrated", "loss": loss}
                for category, loss in zip(("retain", "forget"), of_seed, strict=True)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            found.append(folder)
        return found

    return write
