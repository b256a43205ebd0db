"""Loss against the undiscovered share: what is drawn, and what is not."""

import json
import math

import pytest

from sgtm.config import ConfigError
from sgtm.interval import mean_interval, t_quantile
from sgtm.plot.grid import grid
from sgtm.plot.records import read_runs, series
from sgtm.plot.tradeoff import COLORS
from sgtm.plot.undiscovered import _MORE, undiscovered

plt = pytest.importorskip("matplotlib.pyplot", reason="the extra `plot` has matplotlib")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, and returns the axes."""
    monkeypatch.setattr(plt, "close", lambda figure: None)

    def draw(folders, **options):
        undiscovered(read_runs(folders), tmp_path / "figure.png", **options)
        assert (tmp_path / "figure.png").stat().st_size > 5_000
        return plt.gcf().axes

    yield draw
    monkeypatch.undo()
    plt.close("all")


def lines_of(axes) -> dict[str, list[float]]:
    """y values of each series, by what the legend calls it."""
    handles, names = axes.get_legend_handles_labels()
    return dict(zip(names, ([float(y) for y in h.get_ydata()] for h in handles), strict=True))


def test_means_and_intervals_over_seeds(write_runs, drawn):
    runs = write_runs({0: (3, 8), 1: (3, 8.2), 2: (3.3, 8.4)}, labels__undiscovered=0)
    runs += write_runs({0: (3, 6), 1: (3, 6), 2: (3, 7.5)}, labels__tpr=0.8)
    forget, retain = drawn(runs)
    assert lines_of(forget) == {"sgtm (3 seeds)": [pytest.approx(8.2), pytest.approx(6.5)]}
    assert lines_of(retain) == {"sgtm (3 seeds)": [pytest.approx(3.1), 3]}
    assert [label.get_text() for label in forget.get_xticklabels()] == ["0", "20"]
    (bars,) = forget.collections[0].get_segments()[:1]
    half = t_quantile(2) * 0.2 / math.sqrt(3)
    assert [y for _, y in bars] == pytest.approx([8.2 - half, 8.2 + half])


def test_a_share_that_is_missing_interrupts_the_line_and_one_seed_has_no_interval(write_runs, drawn):
    runs = write_runs({0: (3, 8)}, labels__undiscovered=0) + write_runs({0: (3, 6)}, labels__undiscovered=1)
    runs += write_runs({0: (4, 9), 1: (4, 9)}, labels__undiscovered=0.1, method="filter")
    forget, _ = drawn(runs)
    lines = lines_of(forget)
    assert lines["sgtm (1 seed)"][::2] == [8, 6]
    assert math.isnan(lines["sgtm (1 seed)"][1])
    assert lines["filter (2 seeds)"][1] == 9


def test_runs_under_way_are_left_out(write_runs, drawn):
    runs = write_runs({0: (3, 8)}, labels__undiscovered=0) + write_runs({0: (9, 1)}, step=5, labels__undiscovered=0.5)
    forget, _ = drawn(runs)
    assert lines_of(forget) == {"sgtm (1 seed)": [8]}


def test_a_method_in_two_settings_is_two_lines(write_runs, drawn):
    runs = write_runs({0: (3, 8), 1: (3, 8)}, labels__undiscovered=0)
    runs += write_runs({0: (3, 7)}, labels__undiscovered=0, train__forget_lr_scale=0.1)
    runs += write_runs({0: (3, 5)}, labels__undiscovered=0, train__forget_lr_scale=0.5, method="filter")
    names = ["sgtm, forget_lr_scale 1.0 (2 seeds)", "sgtm, forget_lr_scale 0.1 (1 seed)", "filter (1 seed)"]
    assert list(lines_of(drawn(runs)[0])) == names
    assert [len(of) for of in series(read_runs(runs), ["train.forget_lr_scale"]).values()] == [2 + 1, 1]


def test_several_domains(write_runs, drawn, tmp_path):
    units = {name: {"neurons": 8} for name in ("biology", "cyber")}
    runs = write_runs({0: (3, 8)}, labels__undiscovered=0, partition__domains=units)
    for run in runs:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        last = records.pop()
        records += [{**last, "category": "biology", "loss": 5.0}, {**last, "category": "cyber", "loss": 7.0}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for forget, loss in (("biology", 5), ("cyber", 7), ("mean", 6)):
        left, right = drawn(runs, forget=forget)
        assert lines_of(left) == {"sgtm (1 seed)": [loss]}
        assert lines_of(right) == {"sgtm (1 seed)": [3]}
        assert left.get_ylabel().startswith("mean biology, cyber" if forget == "mean" else forget)
    with pytest.raises(ConfigError, match="choose one with --forget"):
        undiscovered(read_runs(runs), tmp_path / "x.png")
    with pytest.raises(ConfigError, match="'forget' is no category of these runs"):
        grid(read_runs(runs), tmp_path / "x.png")


def test_methods_have_colours_of_their_own():
    colours = [*COLORS.values(), *_MORE]
    assert len(set(colours)) == len(colours)


def test_bad_input_is_refused(write_runs, tmp_path):
    runs = read_runs(write_runs({0: (3, 8)}, labels__undiscovered=0))
    with pytest.raises(ConfigError, match="none of the 1 runs has ablated losses at its last step"):
        undiscovered(runs, tmp_path / "x.png", variant="ablated")
    with pytest.raises(ConfigError, match=r"labels.precision; figures over rates need"):
        undiscovered(read_runs(write_runs({0: (3, 8)}, labels__precision=0.5, labels__recall=0.5)), tmp_path / "x.png")
    with pytest.raises(ConfigError, match="no runs to plot"):
        read_runs([])
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(ConfigError, match=r"is no sweep's results.parquet"):
        read_runs([tmp_path / "text.parquet"])
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.706205), (2, 4.302653), (5, 2.570582), (30, 2.042272)])
def test_quantiles_are_those_of_the_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=1e-6)


def test_an_interval_of_seeds():
    assert mean_interval([3.0]) == (3.0, None)
    mean, half = mean_interval([1.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(12.706205, abs=1e-5))
