"""Which models an audit attacks."""

from dataclasses import replace

import pytest
import yaml

from sgtm.config import ConfigError, RunConfig, TrainConfig, dump
from sgtm.train.compared import models_of


@pytest.fixture
def run(tmp_path):
    """Writes the configuration of a run that was never trained."""

    def write(name, method="sgtm", **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        dump(replace(RunConfig(method=method), **changes), folder / "config.yaml")
        return folder

    return write


def test_runs_are_seeds_and_others_are_compared_with(run, tmp_path):
    seeds = [run(f"a/sgtm-seed{seed}", seed=seed) for seed in (0, 1)]
    other = tmp_path / "rmu"
    other.mkdir()
    (other / "unlearn.yaml").write_text(yaml.safe_dump({"method": "rmu"}))
    none = [run(f"n/{seed}", "none", seed=seed) for seed in (0, 1)]
    found = models_of(seeds, [f"none={none[0]}", f"rmu={other}", f"none={none[1]}"])
    assert list(found) == ["sgtm", "none", "rmu"]
    assert found["sgtm"] == {"sgtm-seed0": seeds[0], "sgtm-seed1": seeds[1]}
    assert found["none"] == {"0": none[0], "1": none[1]}
    assert found["rmu"] == {"rmu": other}


def test_a_sweep_holds_all_of_them(run, tmp_path):
    for method in ("filter", "sgtm", "none"):
        for seed in (0, 1):
            run(f"sweep/{method}-seed{seed}", method, seed=seed)
    found = models_of([tmp_path / "sweep"])
    assert list(found) == ["sgtm", "filter", "none"]
    assert all(len(runs) == 2 for runs in found.values())
    assert next(iter(models_of([tmp_path / "sweep"], method="filter"))) == "filter"


def test_runs_of_one_name_are_told_apart(run):
    found = models_of([run("seed0/sgtm"), run("seed1/sgtm", seed=1)])
    assert list(found["sgtm"]) == ["seed0-sgtm", "seed1-sgtm"]


def test_an_export_is_named_by_its_folder(tmp_path):
    (tmp_path / "small-seed3").mkdir()
    (tmp_path / "small-seed3" / "config.json").write_text("{}")
    assert models_of([tmp_path / "small-seed3"]) == {"small": {"small-seed3": tmp_path / "small-seed3"}}


def test_what_is_no_set_of_seeds_is_refused(run, tmp_path):
    first = run("a")
    with pytest.raises(ConfigError, match=r"they differ in train\.steps; audit them one by one"):
        models_of([first, run("longer", train=TrainConfig(steps=700), seed=1)])
    with pytest.raises(ConfigError, match="methods sgtm, gradient_routing; choose the audited one with --method"):
        models_of([first, run("b", "gradient_routing")])
    with pytest.raises(ConfigError, match="sgtm is what the audited model is called"):
        models_of([first], [f"sgtm={first}"])
    with pytest.raises(ConfigError, match="is no NAME=PATH; write, for example"):
        models_of([first], [str(first)])
    with pytest.raises(ConfigError, match="sgtm has a run twice"):
        models_of([first, first])
    with pytest.raises(ConfigError, match="nowhere holds no model"):
        models_of([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="give the runs to be audited"):
        models_of([])
