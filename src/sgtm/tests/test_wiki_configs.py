"""The Wikipedia runs are those of the paper, and can be started."""

import pytest

from sgtm.config import load
from sgtm.train.run import METHODS, new_model
from sgtm.train.sweep import points_of, read_sweep

# arXiv:2512.05648: layers, width, batch, warm-up, steps; and the size that gives the configuration its name.
PAPER = {
    "34M": (8, 384, 128, 500, 5169),
    "64M": (12, 512, 256, 500, 4887),
    "125M": (12, 768, 256, 1000, 9491),
    "254M": (16, 1024, 512, 1000, 9689),
}


@pytest.fixture
def folder(request):
    return request.config.rootpath / "configs"


@pytest.mark.parametrize("name", PAPER)
def test_sizes_and_schedules(folder, name):
    config = load(folder / "wiki" / f"{name}.yaml")
    model, t = config.model.config, config.train
    assert (model["num_layers"], model["hidden_size"], t.batch_size, t.warmup_steps, t.steps) == PAPER[name]
    assert (model["num_heads"], config.partition.heads, config.partition.neurons) == (32, 1, 64)
    assert (t.learning_rate, config.calibrate.steps, config.labels.retain_fraction) == (6e-4, 500, 0.1)


@pytest.mark.parametrize(("name", "least", "most"), [("34M", 30e6, 36e6), ("64M", 60e6, 68e6)])
def test_they_are_as_large_as_they_are_called(folder, name, least, most):
    """With the paper's vocabulary of 50,257 (the two larger ones take too long to make here)."""
    config = load(folder / "wiki" / f"{name}.yaml")
    config.model.config["vocab_size"] = 50257
    model, sgtm = new_model(config, None)
    assert least < model.num_parameters() < most
    assert sgtm is not None


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_the_sweep_has_the_four_runs(folder, preset):
    sweep = read_sweep(folder / "sweeps" / "wiki" / f"runs-{preset}.yaml")
    points = points_of(sweep, sweep.common, folder / "out", [0, 1, 2])
    assert [p.name for p in points[:4]] == ["sgtm-seed0", "none-seed0", "weak-seed0", "strict-seed0"]
    assert [METHODS[p.config.method].use for p in points[:4]] == ["modes", "everything", "filter", "strict_filter"]
    assert len({(p.config.train.steps, p.config.train.batch_size) for p in points}) == 1, "the same compute for all"


def test_domains_are_named_by_the_configuration_alone(folder):
    assert load(folder / "wiki" / "military.yaml").partition.names == ("forget",)
    assert load(folder / "wiki" / "two_domains.yaml").partition.names == ("biology", "military")
