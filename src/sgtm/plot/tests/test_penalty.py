"""The compute penalty: a law that is known is found again, and losses become the compute that they stand for."""

import json

import numpy as np
import pytest
from rich.console import Console

from sgtm.cli import main
from sgtm.config import ConfigError
from sgtm.plot.penalty import categories_of, fit, penalties, table
from sgtm.plot.records import read_runs

A, B = 80.0, 0.1  # of the law that the runs below follow


def write_run(folder, compute, losses, method="none", seed=0, size=1):
    """A run's records: final losses by category."""
    folder.mkdir(parents=True)
    labels = {"undiscovered": 0, "tpr": None, "fpr": None, "precision": None}
    config = {"method": method, "seed": seed, "labels": labels, "model": {"config": {"hidden_size": size}}}
    config["train"] = {"steps": 5, "warmup_steps": 1}
    (folder / "config.yaml").write_text(json.dumps({**config, "partition": {}}))
    record = {"step": 5, "tokens": 1, "flops": compute, "split": "test", "variant": "calibrated", "num_tokens": 9}
    lines = [json.dumps({**record, "category": c, "loss": loss}) for c, loss in losses.items()]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def loss_at(compute: float, noise: float = 0.0) -> float:
    return A * compute**-B * (1 + noise)


@pytest.fixture
def ordinary(tmp_path):
    rng = np.random.default_rng(0)
    return [
        write_run(tmp_path / f"none{c:.0e}-seed{s}", c, {k: loss_at(c, n) for k, n in noises(rng)}, seed=s, size=c)
        for c in (1e12, 1e13, 1e14, 1e15)
        for s in range(3)
    ]


def shown(laws, found):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table(laws, found))
    return capture.get()


def noises(rng):
    return [(name, rng.normal(0, 0.002)) for name in ("forget", "retain", "retain/Culture")]


def test_a_law_is_found_again():
    computes = [1e12, 1e13, 1e14]
    law = fit(computes, [loss_at(c) for c in computes])
    assert (law.a, law.b) == (pytest.approx(A), pytest.approx(B))
    assert law.compute(loss_at(3e13)) == pytest.approx(3e13)
    assert law.loss(3e13) == pytest.approx(loss_at(3e13))
    with pytest.raises(ConfigError, match="needs models without a filter of several sizes"):
        fit([1e12, 1e12], [3.0, 3.1])
    with pytest.raises(ConfigError, match="do not fall with compute"):
        fit([1e12, 1e13], [3.0, 3.1])


def test_a_loss_stands_for_the_compute_of_an_ordinary_model(ordinary, tmp_path):
    """Runs of 1e15 FLOPs that know of the domain what 1e13 would, and of the rest nearly everything."""
    losses = {"forget": loss_at(1e13), "retain": loss_at(0.9e15), "retain/Culture": 3.0}
    runs = [write_run(tmp_path / f"sgtm-seed{s}", 1e15, losses, "sgtm", s) for s in range(3)]
    _, found = penalties(read_runs(ordinary), read_runs(runs), ["forget", "retain"])
    forget, retain = found
    assert forget.penalty == pytest.approx(0.99, abs=0.003)
    assert retain.penalty == pytest.approx(0.10, abs=0.08)
    assert retain.interval[0] < 0.10 < retain.interval[1]
    assert forget.interval[1] - forget.interval[0] < 0.01
    assert not forget.extrapolated
    assert not retain.extrapolated


def test_what_was_unlearned_took_the_compute_of_what_it_was_before_as_well(ordinary, tmp_path):
    losses = {"forget": loss_at(1e13), "retain": loss_at(9e14)}
    run = write_run(tmp_path / "rmu-seed0", 1e14, losses, method="rmu")
    (run / "config.yaml").unlink()
    settings = {"method": "rmu", "domains": ["forget"], "seed": 0, "start": str(ordinary[-1])}
    for start in (ordinary[-1], ordinary[-1] / "model"):
        (run / "unlearn.yaml").write_text(json.dumps(settings | {"start": str(start)}))
        _, (forget, retain) = penalties(read_runs(ordinary), read_runs([run]), ["forget", "retain"], draws=0)
        assert forget.compute == retain.compute == pytest.approx(1.1e15)
        assert forget.penalty == pytest.approx(1 - 1e13 / 1.1e15, abs=0.01)
    (run / "unlearn.yaml").write_text(json.dumps(settings | {"start": "moved/away"}))
    with pytest.raises(ConfigError, match="was unlearned from moved/away, where no run tells the FLOPs"):
        penalties(read_runs(ordinary), read_runs([run]), ["forget"], draws=0)


def test_one_seed_has_no_interval(ordinary, tmp_path):
    run = write_run(tmp_path / "sgtm-seed0", 1e15, {"forget": loss_at(1e13)}, method="sgtm")
    laws, (found,) = penalties(read_runs(ordinary), read_runs([run]), ["forget"], draws=50)
    assert found.interval is None
    assert f"{100 * found.penalty:.1f} %" in shown(laws, [found])


def test_losses_that_hardly_fall_are_no_crash(tmp_path):
    """Sizes that are near each other, as in a first try: some draws reach the loss at no compute at all."""
    losses = {1e15: (4.00, 4.02, 3.98), 2e15: (3.99, 4.00, 3.97)}
    ordinary = [
        write_run(tmp_path / f"none{c:.0e}-seed{s}", c, {"forget": loss}, seed=s, size=c)
        for c, of_seed in losses.items()
        for s, loss in enumerate(of_seed)
    ]
    runs = [write_run(tmp_path / f"sgtm-seed{s}", 2e15, {"forget": 3.0}, method="sgtm", seed=s) for s in range(2)]
    laws, (found,) = penalties(read_runs(ordinary), read_runs(runs), ["forget"])
    assert laws["forget"].compute(3.0) > 1e4 * 2e15
    assert found.extrapolated
    assert found.penalty == found.interval[0] == pytest.approx(1 - 1e4)
    assert "-999900.0 %" in shown(laws, [found])


def test_what_lies_outside_the_models_is_marked(ordinary, tmp_path):
    run = write_run(tmp_path / "sgtm-seed0", 1e15, {"forget": loss_at(1e9), "retain": loss_at(1e14)}, "sgtm")
    _, found = penalties(read_runs(ordinary), read_runs([run]), ["forget", "retain"])
    assert [p.extrapolated for p in found] == [True, False]


def test_more_seeds_narrow_the_interval(ordinary, tmp_path):
    widths = []
    for number in (2, 12):
        runs = [
            write_run(tmp_path / f"{number}-{s}", 1e14, {"retain": loss_at(1e14, 0.02 * (-1) ** s)}, "sgtm", s)
            for s in range(number)
        ]
        _, (found,) = penalties(read_runs(ordinary), read_runs(runs), ["retain"])
        widths.append(found.interval[1] - found.interval[0])
    assert widths[1] < widths[0]


def test_categories_are_those_of_all_runs_without_topics(ordinary, tmp_path):
    run = write_run(tmp_path / "x", 1e14, {"retain": 3.0, "adjacent": 2.0}, "sgtm")
    assert categories_of(read_runs([*ordinary, run])) == ["retain"]


def test_the_commands(ordinary, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra `plot` has matplotlib")
    run = write_run(tmp_path / "sgtm-seed0", 1e15, {"forget": loss_at(1e13), "retain": loss_at(1e15)}, "sgtm")
    others = [str(path) for path in ordinary]
    main(["penalty", str(run), "--ordinary", *others, "--out", str(tmp_path / "penalty.json")])
    shown = capsys.readouterr().out
    assert "99.0 %" in shown.replace("98.9 %", "99.0 %")
    assert "C^-0.1" in shown
    written = json.loads((tmp_path / "penalty.json").read_text())
    assert written["penalties"][0]["method"] == "sgtm"
    main(["plot", "penalty", str(run), "--ordinary", *others, "--out", str(tmp_path / "penalty.png")])
    assert (tmp_path / "penalty.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="has no intact loss of"):
        main(["penalty", str(run), "--ordinary", *others, "--variant", "intact"])
