"""The demo, in short and (slow) whole."""

import json

import pytest
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM

from sgtm.config import ConfigError
from sgtm.demo import _clear, run_demo

METHODS = ("none", "filter_perfect", "filter", "gradient_routing", "sgtm")

pytest.importorskip("matplotlib", reason="the extra `plot` has matplotlib")


def check_files(out):
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"methods", "seconds"}
    assert tuple(results["methods"]) == METHODS
    for losses in results["methods"].values():
        assert set(losses) == {"retain", "forget"}
        assert all(set(of_category) == {"intact", "ablated", "calibrated"} for of_category in losses.values())
    assert (out / "tradeoff.png").stat().st_size > 10_000
    assert type(AutoModelForCausalLM.from_pretrained(out / "sgtm" / "export")) is GPTNeoForCausalLM
    return results["methods"]


def test_a_short_demo_writes_everything_and_is_replaced_by_the_next(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sgtm.demo._STORIES", 4000)
    run_demo(tmp_path / "demo", steps=2)
    check_files(tmp_path / "demo")
    shown = capsys.readouterr().out
    assert "its logits differ from the ablated model's by at most" in shown
    assert "before:" in shown
    assert "after:" in shown
    _clear(tmp_path / "demo")
    assert [p.name for p in (tmp_path / "demo").iterdir()] == ["demo.txt"]


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "sgtm").mkdir()
    for folder in (tmp_path, tmp_path / "sgtm"):
        (folder / "thesis.tex").write_text("years of work")
        with pytest.raises(ConfigError, match="holds no demo"):
            run_demo(folder)
    assert (tmp_path / "sgtm" / "thesis.tex").exists()


@pytest.mark.slow
def test_the_demo_shows_the_method(tmp_path):
    """What README.md claims."""
    run_demo(tmp_path / "demo")
    calibrated = {n: {c: v["calibrated"] for c, v in m.items()} for n, m in check_files(tmp_path / "demo").items()}
    low, high = calibrated["filter"]["forget"], calibrated["filter_perfect"]["forget"]
    assert calibrated["sgtm"]["forget"] >= low + 0.6 * (high - low)
    assert calibrated["sgtm"]["retain"] <= calibrated["none"]["retain"] + 0.10
