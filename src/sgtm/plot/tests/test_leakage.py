"""The table and the figures of leakage, from record files alone."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sgtm.cli import main
from sgtm.config import ConfigError
from sgtm.plot.leakage import leakage, leakage_table, read_leakage, readings
from sgtm.plot.tests.leakage_records import SHARES, leakage_record, write_leakage_records

pytest.importorskip("matplotlib", reason="the extra `plot` has matplotlib")
from matplotlib.figure import Figure

BELOW = {"value": 0, "bound": "below"}
ABOVE = {"value": 1e6, "bound": "above"}


@pytest.fixture
def records(tmp_path):
    return read_leakage([write_leakage_records(tmp_path / "runs")])


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, out, **_: saved.append(figure))
    return saved


def shown(records) -> str:
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(leakage_table(records))
    return " ".join(console.export_text().split())


def test_records_are_found_by_file_folder_or_run(tmp_path):
    folder = write_leakage_records(tmp_path / "runs")
    everything = read_leakage([folder])
    assert len(everything) == 3 * 5 * 2
    assert read_leakage([folder / "leakage.jsonl"]) == everything
    assert read_leakage([folder, folder / "leakage.jsonl"]) == everything, "each once"
    (one,) = read_leakage([folder / "sgtm-8000000-u0.1-seed2"])
    assert (one["method"], one["undiscovered"]) == ("sgtm", 0.1)


def test_the_table_says_what_the_records_say(records):
    text = shown(records)
    assert "500 [400, 650]" in text
    assert "undefined" in text
    assert "20,000 [16,000, 26,000]" in text, "all of it undiscovered: 2 % of a million"
    assert "0.02 [0.016, 0.026]" in text
    assert "1 by construction" in text
    assert "One seed" not in text
    assert "outside" not in text


def test_the_table_says_what_it_cannot_say():
    text = shown(
        [
            leakage_record("sgtm", 0.1, 10**6, seeds=[0], tokens=BELOW, ratio=BELOW, tokens_interval=None),
            leakage_record("sgtm", 0.4, 10**6, tokens_interval=[BELOW, ABOVE], is_monotone=False),
        ]
    )
    assert "≤ 0 " in text
    assert "[≤ 0, > 1,000,000]" in text
    assert "One seed gives no interval." in text
    assert "outside the grid" in text
    assert "the first crossing is taken" in text


def test_the_figures_lines_are_the_records(records, figures):
    leakage(records, Path("unused.png"))
    against_share, in_tokens, against_size = figures[0].axes
    lines = {line.get_label(): line for line in against_share.lines}
    assert set(lines) == {"filter, by construction", *(f"{m}, {s}" for m in METHODS for s in ("8M", "64M"))}
    assert lines["filter, by construction"].get_ydata() == [1, 1]
    assert lines["sgtm, 8M"].get_xdata().tolist() == [100 * s for s in SHARES if s]
    assert lines["sgtm, 8M"].get_ydata() == pytest.approx([0.02] * 4)
    assert [axes.get_yscale() for axes in figures[0].axes] == ["log"] * 3
    assert len(against_share.collections) == 4, "intervals of each line"
    tokens = {line.get_label(): line for line in in_tokens.lines}
    assert tokens["sgtm, 8M"].get_xdata()[0] == 0, "no undiscovered token, and yet a token-equivalent"
    assert tokens["sgtm, 8M"].get_ydata().tolist() == pytest.approx([500, 200, 2000, 8000, 20_000])
    sizes = {line.get_label(): line for line in against_size.lines}
    assert sizes["sgtm, 10 % undiscovered"].get_xdata().tolist() == [8e6, 64e6]
    assert sizes["sgtm, 10 % undiscovered"].get_ydata()[0] > sizes["sgtm, 10 % undiscovered"].get_ydata()[1]


METHODS = ("sgtm", "gradient_routing")


def test_what_lies_outside_the_grid_is_not_joined(figures):
    records = [leakage_record("sgtm", share, 10**6) for share in (0.1, 0.2)]
    records += [
        leakage_record("sgtm", 0.4, 10**6, tokens=ABOVE, ratio={"value": 2.5, "bound": "above"}),
        leakage_record("sgtm", 0.05, 10**6, tokens=BELOW, ratio=BELOW),
    ]
    leakage(records, Path("unused.png"))
    assert len(figures[0].axes) == 2, "one size, no panel of sizes"
    lines = figures[0].axes[0].lines
    assert [len(line.get_xdata()) for line in lines[1:]] == [2, 1, 1]
    assert sorted(line.get_marker() for line in lines[2:]) == ["^", "v"]
    assert all(line.get_markerfacecolor() == "white" for line in lines[2:])


def test_readings_stand_on_the_grids(records, figures):
    readings(records, Path("unused.png"))
    (axes,) = figures[0].axes
    grids = [line for line in axes.lines if line.get_linestyle() == "-"]
    points = [line for line in axes.lines if line.get_marker() == "D"]
    assert len(grids) == 2, "one for each size"
    assert [len(of_method.get_xdata()) for of_method in points] == [5 * 2, 5 * 2], "a point for each record"


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_figures_are_drawn(records, tmp_path, kind):
    for name, draw in (("leakage", leakage), ("readings", readings)):
        draw(records, tmp_path / f"{name}.{kind}")
        assert (tmp_path / f"{name}.{kind}").stat().st_size > 5_000


def test_bad_input_is_refused(tmp_path, records):
    with pytest.raises(ConfigError, match="nothing to plot"):
        read_leakage([])
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    for path in (tmp_path / "none", tmp_path, tmp_path / "metrics.jsonl", tmp_path / "runs" / "another"):
        with pytest.raises(ConfigError, match="has no leakage records"):
            read_leakage([path])
    filters = [r for r in records if r["method"] == "filter"]
    for draw in (leakage, readings):
        with pytest.raises(ConfigError, match=r"filters leak 1|no grid"):
            draw(filters, tmp_path / "x.png")
    with pytest.raises(ConfigError, match="but other settings"):
        leakage([*records, leakage_record("sgtm", 0.1, 8_000_000, runs=["elsewhere"])], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
    with pytest.raises(SystemExit, match="has no leakage records"):
        main(["plot", "leakage", str(tmp_path / "none")])


def test_plotting_needs_no_torch():
    code = "import sys, sgtm.plot.leakage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
