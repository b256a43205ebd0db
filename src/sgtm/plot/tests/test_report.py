"""A run's page and a sweep's page say what the records say, and what is missing."""

import re

import pytest

from sgtm.config import ConfigError
from sgtm.interval import mean_interval
from sgtm.plot.partition import partition_figure
from sgtm.plot.report import write_report
from sgtm.plot.tests.report_records import (
    HOSTILE,
    PARTITION,
    TOKEN,
    write_full_run,
    write_lines,
    write_relearning,
    write_run,
)
from sgtm.plot.tests.test_page import Reader

TITLES = (
    "Losses",
    "Generations",
    "Trade-off",
    "Ablation matrix",
    "Partition",
    "Data",
    "Configuration",
    "Relearning",
    "Leakage",
    "Throughput",
    "Environment",
)


def sections_of(page: str) -> dict[str, str]:
    """Markup by title."""
    parts = re.split(r"<section aria-labelledby=", page)[1:]
    return {re.search(r"<h2[^>]*>(.*?)</h2>", part)[1]: part for part in parts}


@pytest.fixture
def full(tmp_path):
    folder = write_full_run(tmp_path)
    return folder, sections_of(write_report(folder).read_text())


def test_every_section_is_there_and_none_lacks_anything(full):
    _, sections = full
    assert tuple(sections) == TITLES
    assert not [title for title, part in sections.items() if 'class="missing"' in part]


def test_losses_and_their_changes(full):
    _, sections = full
    assert "4.100 (+0.100)" in sections["Losses"]  # retain, ablated
    assert "7.500 (+2.500)" in sections["Losses"]  # biology, calibrated
    titles = re.findall(r"<strong>(.*?)</strong>", sections["Losses"])
    assert titles == ["Test loss, retain", "Test loss, biology", "Test loss, cyber", "Training loss, all text"]
    assert re.findall(r"<strong>(.*?)</strong>", sections["Trade-off"]) == ["Removal of biology", "Removal of cyber"]


def test_the_matrix_tells_losses_without_each_domain(full):
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', full[1]["Ablation matrix"])
    assert [name for name, _ in rows] == ["nothing", "biology", "cyber", "biology, cyber"]
    assert "6.010 (+2.010)" in rows[1][1]


def test_what_else_was_recorded(full):
    _, sections = full
    assert all(f"una historia {v}" in sections["Generations"] for v in ("intact", "ablated", "calibrated"))
    assert (
        "500" in re.search(r"tokens per second</dt><dd>(.*?)</dd>", sections["Throughput"])[1]
    )  # 30,000 in 12 s: 2,500
    assert "<dd>2,500</dd>" in sections["Throughput"]  # 30,000 tokens in 12 s
    assert "<dd>640 MB</dd>" in sections["Throughput"]
    assert "<dd>25.0%</dd>" in sections["Throughput"]
    assert "trained in forget mode</dt><dd>3,702</dd>" in sections["Throughput"]
    assert "0.031" in sections["Leakage"]
    assert "learning rate 0.003, best" in sections["Relearning"]
    assert "19,200" in sections["Data"]
    assert "biology" in sections["Data"]
    assert "forget batches leave 50% of it alone" in sections["Partition"]
    assert "python" in sections["Environment"]


def test_missing_records_are_one_line_each_with_the_command(tmp_path):
    folder = write_run(tmp_path / "bare")
    sections = sections_of(write_report(folder).read_text())
    commands = {
        "Generations": f"sgtm evaluate {folder} --generations 2",
        "Ablation matrix": f"sgtm evaluate {folder} --matrix",
        "Partition": f"sgtm evaluate {folder}",
        "Data": "sgtm data",
        "Relearning": f"sgtm relearn {folder}",
        "Leakage": f"sgtm leakage {folder}",
        "Throughput": "sgtm train",
        "Environment": "sgtm train",
    }
    assert tuple(sections) == TITLES
    lacking = {title for title, part in sections.items() if part.count('class="missing"') == 1}
    assert lacking == set(commands)
    for title, command in commands.items():
        assert f"<code>{command}" in sections[title]


@pytest.mark.parametrize(
    "name", ["run.json", "partition.json", "generations.jsonl", "matrix.jsonl", "throughput.jsonl"]
)
def test_any_record_may_be_missing(tmp_path, name):
    folder = write_full_run(tmp_path)
    (folder / name).unlink()
    assert tuple(sections_of(write_report(folder).read_text())) == TITLES


def test_nothing_that_a_run_says_becomes_markup(tmp_path):
    folder = write_full_run(tmp_path, HOSTILE, data__tokenizer=HOSTILE)
    read = Reader(write_report(folder).read_text())
    assert not {"script", "img"} & set(read.tags)
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert read.text.count("document.title='pwned'") > 5  # it is all there, as text


def test_secrets_are_not_shown(tmp_path):
    folder = write_full_run(tmp_path, f"a {TOKEN} b", train__arguments={"hub_token": "plain-words"})
    text = write_report(folder).read_text()
    assert TOKEN not in text
    assert "plain-words" not in text
    assert text.count("[hidden]") > 3


def test_a_run_that_has_not_ended_says_so(tmp_path):
    text = write_report(write_run(tmp_path / "run", steps=20)).read_text()
    assert "This run is not finished: step 20 of 30." in text


def test_one_evaluation_is_no_curve(tmp_path):
    folder = write_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines if '"step": 30' in line))
    losses = sections_of(write_report(folder).read_text())["Losses"]
    assert "Test loss, retain" not in losses
    assert "--evaluate.every STEPS" in losses


def test_a_method_without_forget_units_has_no_partition(tmp_path):
    folder = write_run(tmp_path / "run", method="none")
    (folder / "run.json").write_text('{"parameters": {"joint": 5000}}')
    assert "Method none sets no units apart: an ordinary model of 5,000 parameters." in write_report(folder).read_text()


def test_relearnings_of_other_runs_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    write_relearning(tmp_path / "others", tmp_path / "elsewhere")
    assert 'class="missing"' in sections_of(write_report(folder).read_text())["Relearning"]
    asked = write_report(folder, tmp_path / "page.html", [tmp_path / "others"]).read_text()
    assert "learning rate 0.003, best" in sections_of(asked)["Relearning"]


def test_a_broken_record_is_an_error_that_names_it(tmp_path):
    folder = write_full_run(tmp_path)
    (folder / "partition.json").write_text("{")
    with pytest.raises(ConfigError, match=r"partition\.json is no JSON"):
        write_report(folder)


def test_units_are_drawn_to_scale():
    figure = partition_figure(PARTITION)
    blocks = re.findall(r"<rect x=\"[\d.]+\" y=\"[\d.]+\" width=\"([\d.]+)\"[^>]*><title>(.*?)</title>", figure)
    widths = {about: float(width) for width, about in blocks}
    neurons = {owner: widths[f"layer 0, {owner}: {n} of 64 neurons"] for owner, n in (("biology", 8), ("cyber", 4))}
    assert neurons["biology"] == pytest.approx(2 * neurons["cyber"], rel=0.01)
    assert widths["layer 0, retain: 52 of 64 neurons"] == pytest.approx(13 * neurons["cyber"], rel=0.01)
    assert "layer 2, joint: 64 of 64 neurons" in widths  # a layer without forget units is nobody's
    assert "layer 2, biology" not in figure
    assert "layer 2, retain" not in figure


def test_a_sweep_has_means_and_intervals_over_seeds(tmp_path):
    shifts = {0: 0.0, 1: 0.1, 2: 0.4}
    for method in ("sgtm", "filter"):
        for seed, shift in shifts.items():
            for share in (0.0, 0.4):
                write_run(tmp_path / f"{method}-{share}-{seed}", seed, shift, method=method, labels__undiscovered=share)
    write_lines(tmp_path / "sgtm-0.0-0" / "metrics.jsonl", [])  # has not begun to evaluate
    sections = sections_of(write_report(tmp_path).read_text())
    mean, half = mean_interval([4.05 + shift for shift in shifts.values()])
    two, wide = mean_interval([4.05 + shifts[1], 4.05 + shifts[2]])
    rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', sections["Losses"].partition("<details>")[0]))
    assert len(rows) == 4
    assert f"{mean:.3f} ± {half:.3f}" in rows["filter, undiscovered 0.4"]
    assert f"{two:.3f} ± {wide:.3f}" in rows["sgtm, undiscovered 0.0"]
    assert "not ended" in sections["Runs"]
    assert sections["Trade-off"].count('class="error"') == 8  # two intervals of each setting
    assert "<strong>Forget loss, calibrated</strong>" in sections["Undiscovered forget data"]


def test_runs_of_one_share_have_no_figure_over_shares(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", 1)
    part = sections_of(write_report(tmp_path).read_text())["Undiscovered forget data"]
    assert "do not differ by their undiscovered share" in part


def test_a_folder_of_other_things_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither a run"):
        write_report(tmp_path)
    write_relearning(tmp_path / "again", tmp_path / "run")
    with pytest.raises(ConfigError, match="neither a run"):
        write_report(tmp_path)


def test_a_report_needs_a_folder_to_stand_in(tmp_path):
    folder = write_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="choose another --out"):
        write_report(folder, tmp_path / "none" / "page.html")
