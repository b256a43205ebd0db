"""The figure of gradients shows what the records say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sgtm.cli import main
from sgtm.config import ConfigError
from sgtm.plot.gradient_norms import _density, gradient_norms, read_gradients

pytest.importorskip("matplotlib", reason="the extra `plot` has matplotlib")


def write_gradients(folder: Path, steps=(10, 20), domains=("forget",), examples: int = 30) -> Path:
    """Records whose examples push their own parameters ten times as hard, and are undefined where masked."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with (folder / "gradients.jsonl").open("w") as file:
        for step in steps:
            for category in (*domains, "retain"):
                for example in range(examples):
                    for part in ("retain", *domains, "joint", "all"):
                        norm = float(np.exp(rng.normal())) * (10 if part == category else 1)
                        cosines = {
                            direction: None if {part, direction} & set(domains) and part != direction else step / 100
                            for direction in (*domains, "retain")
                        }
                        cosines |= {f"{d} unmasked": float(rng.uniform(-1, 1)) for d in (*domains, "retain")}
                        record = {"step": step, "category": category, "example": example, "part": part}
                        file.write(
                            json.dumps(record | {"norm": norm, "relative_norm": norm, "cosines": cosines}) + "\n"
                        )
    return folder


@pytest.fixture
def figure(monkeypatch):
    """The figure that was drawn last, kept open."""
    from matplotlib import pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    yield lambda: kept[-1]
    monkeypatch.undo()
    for each in kept:
        plt.close(each)


def test_records_are_selected_by_example_part_and_direction(tmp_path):
    run = read_gradients(write_gradients(tmp_path / "run"))
    assert (run.steps, run.domains, run.categories) == ([10, 20], ("forget",), ("forget", "retain"))
    assert len(run.norms("forget", "forget")) == 30, "those of the last step"
    assert np.median(run.norms("forget", "forget")) > 4 * np.median(run.norms("retain", "forget"))
    assert set(run.cosines(("forget",), "forget", "own", 20)) == {0.2}
    assert not len(run.cosines(("forget",), "retain", "own", 20)), "undefined"
    assert len(run.cosines(("forget",), "retain", "own unmasked", 20)) == 30


def test_own_is_the_direction_of_each_examples_domain(tmp_path):
    run = read_gradients(write_gradients(tmp_path / "run", domains=("es", "rot")))
    own = run.cosines(("es", "rot"), "all", "own unmasked", 10)
    expected = [
        r["cosines"][f"{r['category']} unmasked"]
        for r in run.records
        if r["step"] == 10 and r["part"] == "all" and r["category"] != "retain"
    ]
    assert own.tolist() == expected


def test_a_density_is_one_and_where_the_values_are():
    values = np.random.default_rng(0).normal(3, 0.5, 4000)
    x, density = _density(values)
    assert np.trapezoid(density, x) == pytest.approx(1, abs=1e-3)
    normal = np.exp(-0.5 * ((x - 3) / 0.5) ** 2) / (0.5 * np.sqrt(2 * np.pi))
    assert np.abs(density - normal).max() < 0.08  # three standard errors at the peak
    for few in ([1.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0, 9.0]):
        x, density = _density(np.array(few))
        assert np.isfinite(density).all()
        assert np.trapezoid(density, x) == pytest.approx(1, abs=1e-2)


def test_medians_are_marked_and_the_largest_hundredth_is_left_out(tmp_path, figure):
    folder = write_gradients(tmp_path / "run", steps=(5,), examples=150)
    lines = (folder / "gradients.jsonl").read_text().splitlines(keepends=True)
    huge = json.loads(next(line for line in lines if '"part": "forget"' in line and '"category": "forget"' in line))
    (folder / "gradients.jsonl").write_text("".join(lines) + json.dumps(huge | {"relative_norm": 1e9}) + "\n")
    run = read_gradients(folder)
    gradient_norms([run], tmp_path / "x.png")
    axes = figure().axes[0]
    medians = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert medians == pytest.approx([np.median(run.norms(c, "forget")) for c in ("forget", "retain")], rel=0.02)
    assert max(np.max(line.get_xdata()) for line in axes.lines) < 1e6


def test_cosines_are_drawn_over_the_steps_where_they_are_defined(tmp_path, figure):
    gradient_norms([read_gradients(write_gradients(tmp_path / "run"))], tmp_path / "x.png")
    below = figure().axes[3:]
    lines = [
        {
            line.get_label(): line.get_ydata()
            for line in axes.lines
            if len(line.get_xdata()) == 2 and not line.get_label().startswith("_")
        }
        for axes in below
    ]
    assert list(lines[0]["labelled forget"]) == pytest.approx([0.1, 0.2])
    assert "labelled retain" not in lines[0]
    assert list(lines[1]["labelled retain"]) == pytest.approx([0.1, 0.2])
    assert "labelled forget" not in lines[1]
    assert {"labelled forget, unmasked", "labelled retain, unmasked"} <= lines[0].keys() & lines[1].keys()


@pytest.mark.parametrize(("steps", "domains", "kind"), [((10, 20), ("forget",), "png"), ((5,), ("es", "rot"), "pdf")])
def test_the_command_draws_folders_and_files(tmp_path, steps, domains, kind, capsys):
    run = write_gradients(tmp_path / "run", steps, domains)
    shutil.copy(run / "gradients.jsonl", tmp_path / "kept.jsonl")
    out = tmp_path / f"figure.{kind}"
    main(["plot", "gradient-norms", str(run), str(tmp_path / "kept.jsonl"), "--out", str(out)])
    assert out.stat().st_size > 10_000
    assert "written to" in capsys.readouterr().out


def test_what_cannot_be_drawn_is_refused(tmp_path):
    run, other = (write_gradients(tmp_path / n, domains=(d,)) for n, d in (("a", "forget"), ("b", "es")))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    for paths, message in (
        ([], "no runs to plot"),
        ([tmp_path], "has no records of gradients; write them with `sgtm gradients RUN`"),
        ([tmp_path / "nowhere"], "has no records of gradients"),
        ([tmp_path / "metrics.jsonl"], "metrics.jsonl, line 1: it has no 'category'"),
        ([run, other], r"different domains \(a: forget; b: es\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            gradient_norms([read_gradients(path) for path in paths], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
