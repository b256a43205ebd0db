"""Loss over true and false positive rates."""

import pytest

from sgtm.config import ConfigError
from sgtm.plot.grid import grid
from sgtm.plot.records import read_runs

plt = pytest.importorskip("matplotlib.pyplot", reason="the extra `plot` has matplotlib")


@pytest.fixture
def texts(monkeypatch, tmp_path):
    """Draws, and returns what the cells say by (true, false positive rate), as the axes have them."""
    monkeypatch.setattr(plt, "close", lambda figure: None)

    def draw(folders, **options):
        grid(read_runs(folders), tmp_path / "figure.png", **options)
        axes = plt.gcf().axes[0]
        ys, xs = ([label.get_text() for label in of] for of in (axes.get_yticklabels(), axes.get_xticklabels()))
        places = {(ys[round(t.get_position()[1])], xs[round(t.get_position()[0])]): t.get_text() for t in axes.texts}
        return {rates: text.replace("\n", " ") for rates, text in places.items()}

    yield draw
    monkeypatch.undo()
    plt.close("all")


@pytest.fixture
def runs(write_runs):
    found = write_runs({0: (3, 8), 1: (3, 8)}, labels__tpr=0.5, labels__fpr=0.2)
    found += write_runs({0: (3, 6)}, labels__tpr=0.5)
    found += write_runs({0: (3, 9)}, labels__undiscovered=0)
    found += write_runs({1: (4, 5), 2: (4, 3)}, labels__tpr=0.5, labels__fpr=0.2, method="filter")
    return found + write_runs({1: (4, 4)}, labels__tpr=0.5, method="filter")


def test_a_cell_has_the_mean_and_its_interval(runs, texts):
    cells = {("0.5", "0.2"): "8.00 ±0.00", ("0.5", "0"): "6.00 (1 seed)", ("1", "0"): "9.00 (1 seed)"}
    assert texts(runs) == cells
    assert texts(runs, category="retain")["0.5", "0.2"] == "3.00 ±0.00"


def test_a_difference_is_taken_between_the_same_seeds(runs, texts):
    assert texts(runs, against="filter") == {("0.5", "0.2"): "+3.00 (1 seed)"}
    assert texts(runs, method="filter", against="sgtm") == {("0.5", "0.2"): "-3.00 (1 seed)"}


def test_bad_input_is_refused(runs, write_runs, tmp_path):
    out = tmp_path / "x.png"
    with pytest.raises(ConfigError, match=r"'filtre'; did you mean 'filter'\? \(there are: sgtm, filter\)"):
        grid(read_runs(runs), out, method="filtre")
    with pytest.raises(ConfigError, match="no run of sgtm has ablated losses of forget"):
        grid(read_runs(runs), out, variant="ablated")
    with pytest.raises(ConfigError, match="no finished run of the same rates and seed"):
        grid(read_runs([*runs[3:4], *runs[4:5]]), out, against="filter")
    more = write_runs({0: (3, 8)}, labels__tpr=0.5, train__forget_lr_scale=0.1)
    with pytest.raises(ConfigError, match="sgtm comes in 2 settings"):
        grid(read_runs([*runs, *more]), out)
    grid(read_runs([*runs, *more]), out, method="sgtm, forget_lr_scale 0.1")
    assert out.exists()
