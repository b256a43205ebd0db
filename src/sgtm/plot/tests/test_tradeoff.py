"""Figures are drawn from record files alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sgtm.config import ConfigError
from sgtm.plot.records import read_run
from sgtm.plot.tradeoff import tradeoff

pytest.importorskip("matplotlib", reason="the extra `plot` has matplotlib")


def write_run(folder: Path, method: str, losses: list[tuple[int, float, float]]) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"method": method}))
    lines = [
        {"step": step, "split": "test", "category": category, "variant": "calibrated", "loss": loss}
        for step, retain, forget in losses
        for category, loss in (("retain", retain), ("forget", forget))
    ]
    lines.append({"step": 1, "split": "train", "category": "all", "variant": "intact", "loss": 9.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path / "sgtm", "sgtm", [(10, 4.0, 6.0), (20, 3.5, 6.5)]),
        write_run(tmp_path / "filter", "filter", [(20, 3.4, 4.5)]),
        write_run(tmp_path / "mine", "parameter_masking_no_proj", [(20, 3.4, 4.5)]),
    ]


def test_a_run_is_read_from_its_records(runs):
    run = read_run(runs[0])
    assert run.name == "sgtm"
    assert run.curve("forget", "calibrated") == [(10, 6.0), (20, 6.5)]
    assert run.curve("retain", "intact") == []


def test_a_line_cut_short_by_a_kill_is_left_out(runs):
    with (runs[0] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "spl')
    assert len(read_run(runs[0]).records) == 5


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_figure_is_drawn(runs, tmp_path, kind):
    out = tmp_path / f"figure.{kind}"
    tradeoff([read_run(r) for r in runs], out)
    assert out.stat().st_size > 5_000


def test_bad_input_is_refused(tmp_path, runs):
    with pytest.raises(ConfigError, match=r"has no metrics.jsonl"):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match="no runs to plot"):
        tradeoff([], tmp_path / "x.png")
    with pytest.raises(ConfigError, match="has no ablated losses"):
        tradeoff([read_run(runs[0])], tmp_path / "x.png", variant="ablated")
    assert not (tmp_path / "x.png").exists()


def test_plotting_needs_no_torch():
    code = "import sys, sgtm.plot.tradeoff, sgtm.plot.records; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
