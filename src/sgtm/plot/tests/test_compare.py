"""Runs side by side."""

import re

import pytest

from sgtm.config import ConfigError
from sgtm.plot.compare import compare_page, losses_table, read_compared, settings_table
from sgtm.plot.page import rich_table
from sgtm.plot.tests.report_records import HOSTILE, TOKEN, write_run
from sgtm.plot.tests.test_page import Reader


def rows_of(shown) -> dict[str, str]:
    return dict(re.findall(r'<tr><th scope="row"[^>]*>(.*?)</th>(.*?)</tr>', rich_table(shown)))


def test_settings_that_differ_and_no_others(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", 1, method="filter", train__learning_rate=0.01)]
    rows = rows_of(settings_table(read_compared(folders)))
    assert set(rows) == {"method", "seed", "train.learning_rate"}
    assert re.findall(r">(\w+)</td>", rows["method"]) == ["sgtm", "filter"]


def test_differences_are_to_the_first(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", shift=0.25)]
    rows = rows_of(losses_table(read_compared(folders)))
    assert re.findall(r">([^<]+)</td>", rows["forget, calibrated"]) == ["7.500", "7.750 (+0.250)"]
    back = rows_of(losses_table(read_compared(folders[::-1])))
    assert re.findall(r">([^<]+)</td>", back["forget, calibrated"]) == ["7.750", "7.500 (-0.250)"]


def test_what_a_run_lacks_is_a_dash(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", partition__domains={"biology": {"neurons": 2}})]
    rows = rows_of(losses_table(read_compared(folders)))
    assert re.findall(r">([^<]+)</td>", rows["forget, intact"]) == ["5.000", "–"]
    assert re.findall(r">([^<]+)</td>", rows["biology, intact"]) == ["–", "5.000"]


def test_the_page_has_curves_over_one_another(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", shift=0.25)]
    text = compare_page(read_compared(folders))
    assert text.count('class="plot"') == 6  # two categories, three variants
    assert re.search(r"<desc[^>]*>[^<]*a: 6 at 10, 5 at 30; b: 6.25 at 10, 5.25 at 30", text)


def test_runs_of_one_name_are_told_apart_by_their_path(tmp_path):
    folders = [write_run(tmp_path / x / "run") for x in "pq"]
    assert list(read_compared(folders)) == ["p/run", "q/run"]


def test_a_sweep_stands_for_its_runs(tmp_path):
    one, *_ = [write_run(tmp_path / "sweep" / x, shift=i) for i, x in enumerate("abc")]
    write_run(one / "inside")
    assert list(read_compared([tmp_path / "sweep"])) == ["a", "b", "c"]
    assert list(read_compared([one, write_run(tmp_path / "d")])) == ["a", "d"]


def test_a_run_is_not_compared_with_itself(tmp_path):
    folder = write_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="two different runs"):
        read_compared([folder, folder])


def test_the_page_says_what_it_says_as_text(tmp_path):
    folders = [write_run(tmp_path / "a", data__path=HOSTILE), write_run(tmp_path / "b")]
    read = Reader(compare_page(read_compared(folders)))
    assert not {"script", "img"} & set(read.tags)
    assert HOSTILE in read.text


def test_a_configuration_that_holds_a_secret_is_refused_without_showing_it(tmp_path):
    folders = [write_run(tmp_path / name, data__path="IT") for name in ("a", "b")]
    config = folders[1] / "config.yaml"  # by hand: no run is given one
    config.write_text(config.read_text().replace("IT", TOKEN))
    with pytest.raises(ConfigError, match=r"data\.path holds a password or a token") as refused:
        read_compared(folders)
    assert TOKEN not in str(refused.value)
