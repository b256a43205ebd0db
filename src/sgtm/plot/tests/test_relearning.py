"""The relearning figure and table, from records that were never trained."""

import json

import pytest
import yaml

from sgtm.config import ConfigError
from sgtm.plot import relearning as module
from sgtm.plot.relearning import lines_of, read_relearnings, relearning, relearning_table


def write_relearning(folder, losses, target=3.0, best=None, reached=None, **settings):
    """A folder that `sgtm relearn` could have written; ``losses`` by learning rate, one each 10 steps."""
    folder.mkdir(parents=True)
    settings = {"start": f"runs/{folder.name}", "on": "forget", "units": "absent", "lora": 0, "seed": 0, **settings}
    (folder / "relearn.yaml").write_text(yaml.safe_dump({**settings, "learning_rates": list(losses)}))
    best = best or next(iter(losses))
    lines, curves = [], []
    for rate, of_rate in losses.items():
        for i, loss in enumerate(of_rate):
            seen = {"step": 10 * i, "tokens": 400 * i, "forget_tokens": 200 * i * (settings["on"] == "forget")}
            for category in ("forget", "retain"):
                lines.append({**seen, "learning_rate": rate, "category": category, "loss": loss})
        at = None
        if reached is not None and rate == best:
            at = {"step": reached, "tokens": 40 * reached, "forget_tokens": 20 * reached, "loss": target}
        last = {**seen, "loss": of_rate[-1]}
        curves.append(
            {"learning_rate": rate, "reached": at is not None, "at": at, "closest": last, "steps": seen["step"]}
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"domain": "forget", "target": target, "best": best, "curves": curves}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def write(tmp_path):
    return lambda name, losses, **settings: write_relearning(tmp_path / name, losses, **settings)


@pytest.fixture
def folders(write):
    return [
        write("sgtm-seed0", {1e-3: [6, 5, 4], 1e-2: [6, 4, 2]}, best=1e-2, reached=15.0),
        write("sgtm-seed1", {1e-2: [6.2, 4.5, 3.5, 2.5]}, best=1e-2, reached=25.0, seed=1),
        write("filter-seed0", {1e-2: [8, 7, 6]}),
    ]


def drawn(monkeypatch, found, out):
    """The axes that were drawn on."""
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: kept.append(self))
    relearning(found, out)
    return kept[0].axes


def test_a_line_is_the_best_curve_over_seeds(folders, monkeypatch, tmp_path):
    found = read_relearnings(folders)
    assert [len(of) for of in lines_of(found).values()] == [2, 1]
    steps, tokens = drawn(monkeypatch, found, tmp_path / "f.png")
    means = {line.get_label(): line for line in steps.get_lines() if not line.get_label().startswith("_")}
    (name,) = (n for n in means if n.startswith("sgtm"))
    assert "2 seeds" in name
    assert "20 steps" in name
    assert means[name].get_xdata().tolist() == [0, 10, 20]  # the steps that both seeds have
    assert means[name].get_ydata() == pytest.approx([6.1, 4.25, 2.75])
    of_tokens = [line for line in tokens.get_lines() if line.get_label() == name]
    assert of_tokens[0].get_xdata().tolist() == [0, 200, 400]


def test_what_is_not_reached_looks_otherwise(folders, monkeypatch, tmp_path):
    steps, _ = drawn(monkeypatch, read_relearnings(folders), tmp_path / "f.png")
    marks = {m: [line.get_xydata().tolist()[0] for line in steps.get_lines() if line.get_marker() == m] for m in "ox"}
    assert marks == {"o": [[15.0, 3.0], [25.0, 3.0]], "x": [[20.0, 6.0]]}
    assert [line.get_ydata()[0] for line in steps.get_lines() if line.get_linestyle() == "--"] == [3.0]
    labels = [line.get_label() for line in steps.get_lines()]
    assert any("not reached within 20 steps (closest loss 6.000)" in label for label in labels)


def test_the_table_says_the_same(folders):
    table = relearning_table(read_relearnings(folders))
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns["start"] == ["sgtm", "filter"]
    assert columns["steps"][0].startswith("20.0 ± ")
    assert columns["forget tokens"][0].startswith("400 ± ")
    assert columns["steps"][1] == ""
    assert columns["not reached"] == ["", "within 20 steps (closest loss 6.000)"]


def test_lines_are_named_by_what_differs(write):
    found = read_relearnings(
        [
            write("sgtm-seed0", {1e-2: [6, 5]}),
            write("sgtm_seed1", {1e-2: [6, 5]}, start="runs/sgtm-seed0", units="zero", lora=0),
        ]
    )
    assert list(lines_of(found)) == ["sgtm, units absent", "sgtm, units zero"]


def test_attacks_without_forget_text_are_drawn_over_all_tokens(write, monkeypatch, tmp_path):
    found = read_relearnings([write("sgtm-seed0", {1e-2: [6, 5]}, on="adjacent")])
    _, tokens = drawn(monkeypatch, found, tmp_path / "f.png")
    assert tokens.get_xlabel() == "tokens, of all text"
    assert tokens.get_lines()[0].get_xdata().tolist() == [0, 400]


def test_no_target_is_no_failure(write, monkeypatch, tmp_path):
    found = read_relearnings([write("sgtm-seed0", {1e-2: [6, 5]}, target=None)])
    steps, _ = drawn(monkeypatch, found, tmp_path / "f.png")
    assert not [line for line in steps.get_lines() if line.get_marker() == "x"]
    assert list(relearning_table(found).columns[2].cells) == ["none"]


def test_a_folder_of_folders_is_read(folders, tmp_path):
    assert [r.folder for r in read_relearnings([tmp_path])] == sorted(folders)


def test_what_cannot_be_read_is_said(tmp_path, folders):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has no relearn\.yaml"):
        read_relearnings([tmp_path / "empty"])
    (folders[0] / "summary.json").unlink()
    with pytest.raises(ConfigError, match="no finished curve"):
        read_relearnings(folders)
    with pytest.raises(ConfigError, match="nothing to plot"):
        module.relearning([], tmp_path / "f.png")
