"""Figures are drawn from record files alone."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from sgtm.cli import main
from sgtm.config import ConfigError
from sgtm.plot.records import read_run
from sgtm.plot.tradeoff import _label, tradeoff

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


def write_domains(folder: Path, losses: dict[str, float], step: int = 5) -> Path:
    """A run of several domains, evaluated once."""
    folder.mkdir()
    units = {name: {"neurons": 4} for name in losses if name != "retain"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"method": "sgtm", "partition": {"domains": units}}))
    record = {"step": step, "split": "test", "variant": "calibrated"}
    lines = [json.dumps(record | {"category": c, "loss": loss}) + "\n" for c, loss in losses.items()]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The points and the label of the y axis of what is drawn."""
    from matplotlib.axes import Axes

    seen: dict[str, list] = {"points": [], "ylabel": []}
    plot, label = Axes.plot, Axes.set_ylabel
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, *a, **k: seen["points"].append((x, y)) or plot(self, x, y, *a, **k)
    )
    monkeypatch.setattr(Axes, "set_ylabel", lambda self, text: seen["ylabel"].append(text) or label(self, text))
    return seen


@pytest.mark.parametrize(
    ("forget", "y", "label"),
    [("rot", 8.0, "rot loss"), ("es", 5.0, "es loss"), ("mean", 6.5, "mean of es, rot loss")],
)
def test_runs_of_several_domains_show_one_or_the_mean(tmp_path, drawn, forget, y, label):
    run = write_domains(tmp_path / "run", {"es": 5.0, "rot": 8.0, "retain": 2.0})
    tradeoff([read_run(run)], tmp_path / "x.png", forget=forget)
    assert drawn["points"] == [([2.0], [y]), (2.0, y)]
    assert drawn["ylabel"][0].startswith(label)


def test_the_one_domain_of_all_runs_needs_no_naming(tmp_path, drawn):
    runs = [write_domains(tmp_path / n, {"biology": b, "retain": 2.0}) for n, b in (("a", 5.0), ("b", 6.0))]
    main(["plot", "tradeoff", *map(str, runs), "--out", str(tmp_path / "x.png")])
    assert drawn["points"][1::2] == [(2.0, 5.0), (2.0, 6.0)]
    assert drawn["ylabel"][0].startswith("biology loss")


def test_the_mean_is_of_steps_that_all_domains_have(tmp_path, drawn):
    run = write_domains(tmp_path / "run", {"es": 5.0, "rot": 8.0, "retain": 2.0})
    with (run / "metrics.jsonl").open("a") as file:
        for category in ("es", "retain"):
            file.write(
                json.dumps({"step": 9, "split": "test", "variant": "calibrated", "category": category, "loss": 1})
                + "\n"
            )
    tradeoff([read_run(run)], tmp_path / "x.png", forget="mean")
    assert drawn["points"][-1] == (2.0, 6.5)


def test_domains_that_are_not_clear_are_refused(tmp_path, runs):
    run = write_domains(tmp_path / "run", {"es": 5.0, "rot": 8.0, "retain": 2.0})
    other = write_domains(tmp_path / "other", {"es": 5.0, "retain": 2.0})
    for folders, forget, message in (
        ([run], "", "the runs have the domains es, rot; choose one with --forget DOMAIN, or --forget mean"),
        ([run], "rott", "has no domain 'rott'; did you mean 'rot'"),
        ([other, run], "rot", r"other has no domain 'rot' \(domains: es\)"),
        ([run, other], "mean", "has the domains es, rot and .*other es; choose one that all have"),
        ([run, runs[0]], "", "has the domains es, rot and .*sgtm forget; choose"),
    ):
        with pytest.raises(ConfigError, match=message):
            tradeoff([read_run(f) for f in folders], tmp_path / "x.png", forget=forget)
    assert not (tmp_path / "x.png").exists()
    tradeoff([read_run(run), read_run(other)], tmp_path / "x.png", forget="es")


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


def test_seeds_share_a_name_and_names_stand_apart():
    """By an axes that notes where names and lines go."""
    told, lines = {}, []
    axes = SimpleNamespace(
        annotate=lambda name, place, *rest, **style: told.update({name: place}),
        plot=lambda xs, ys, **style: lines.append((xs, ys)),
    )
    names = ["a-seed0", "a-seed1", "b", "c-seed0", "d"]
    _label(axes, names, [(3.0, 3.0), (3.0, math.nextafter(3.0, 4)), *[(3.0, 3.0)] * 3])  # ends
    told.clear(), lines.clear()
    _label(axes, names, [(0.0, 1.0), (0.2, 3.0), (0.21, 2.0), (9.0, 2.0), (8.5, 1.96)])
    assert told.keys() == {"a", "b", "c", "d"}
    assert told["d"][1] > 2.05, "c's point would stand in it"
    assert told["c"][1] >= told["d"][1] + 0.1, "d's name is there now"
    assert told["a"][0] == 0.2, "beside the point that is furthest to the right"
    assert abs(told["a"][1] - told["b"][1]) >= 0.1, "names stand apart"
    of_seeds = [((0.1, x), (2.0, y)) for x, y in ((0.0, 1.0), (0.2, 3.0))]
    assert [line for line in lines if line in of_seeds] == of_seeds, "seeds are joined to their mean"
    assert ((8.5, 8.5), (1.96, told["d"][1])) in lines, "a name that was moved is, to its point"


@pytest.mark.parametrize("name", ["figure.xyz", "figure"])
def test_a_file_that_is_no_picture_is_refused(runs, tmp_path, name):
    with pytest.raises(SystemExit, match="which is no kind of picture; use one of"):
        main(["plot", "tradeoff", *map(str, runs), "--out", str(tmp_path / name)])
    assert not (tmp_path / name).exists()
