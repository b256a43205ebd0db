"""Intervals of scores: Wilson's against its equation, bootstraps against what is known, groups and pairs heeded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgtm.evaluate.scores import Answers, change_interval, interval, wilson

Z = 1.959963984540054


def answers(values, groups=None, aggregate=None) -> Answers:
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    return Answers(list(values), groups, 0.25, aggregate)


@given(st.integers(1, 5000), st.data())
def test_wilsons_ends_solve_its_equation(number, data):
    right = data.draw(st.integers(0, number))
    share = right / number
    for end in wilson(right, number):
        assert 0 <= end <= 1
        assert abs(share - end) == pytest.approx(Z * (end * (1 - end) / number) ** 0.5, abs=1e-7)


def test_wilson_of_ten_in_twenty():
    assert wilson(10, 20) == pytest.approx((0.299298, 0.700702), abs=1e-6)


def test_the_kind_of_interval():
    assert interval(answers([1.0, 0.0, 1.0]), 100, 0).kind == "wilson"
    assert interval(answers([1.0, 0.0, 1.0], [0, 0, 1]), 100, 0).kind == "bootstrap"
    assert interval(answers([0.5, 0.0, 1.0]), 100, 0).kind == "bootstrap"
    assert interval(answers([1, 0, 1], aggregate=max), 100, 0).kind == "bootstrap"


def test_documents_are_drawn_not_questions():
    """Ten questions about each document, all right or all wrong: as if there was one."""
    rng = np.random.default_rng(0)
    documents = (rng.random(200) < 0.4).astype(float)
    many = interval(answers(np.repeat(documents, 10), np.repeat(np.arange(200), 10)), 4000, 0)
    low, high = wilson(int(documents.sum()), 200)
    assert (many.low, many.high) == pytest.approx((low, high), abs=0.01)
    alone = wilson(int(documents.sum()) * 10, 2000)
    assert many.high - many.low > 2.5 * (alone[1] - alone[0])


@pytest.mark.parametrize("groups", [np.arange(300), np.repeat(np.arange(100), 3)], ids=["alone", "by document"])
def test_any_aggregate_as_the_mean(groups):
    """Drawn in another way, so equal but for the draws."""
    values = np.random.default_rng(1).random(300)
    mean = interval(answers(values, groups), 4000, 0)
    other = interval(answers(values, groups, lambda found: sum(found) / len(found)), 4000, 0)
    assert (mean.low, mean.high) == pytest.approx((other.low, other.high), abs=0.003)


def test_the_change_is_of_the_same_questions():
    """Two models that differ in 5 of 100 questions differ by 0.05, whatever the others are."""
    before = np.arange(100) % 2.0
    after = before.copy()
    after[[0, 2, 4, 6, 8]] = 1
    found = change_interval(answers(before), answers(after), 4000, 0)
    assert 0.005 < found.low < 0.05 < found.high < 0.11
    assert found.high - found.low < 0.5 * (wilson(55, 100)[1] - wilson(55, 100)[0])
    same = change_interval(answers(before), answers(before), 100, 0)
    assert (same.low, same.high) == (0, 0)
    other = change_interval(answers(before, aggregate=np.mean), answers(after, aggregate=np.mean), 4000, 0)
    assert (other.low, other.high) == pytest.approx((found.low, found.high), abs=0.011)


def test_the_score():
    assert answers([1, 0, 1, 1]).score() == 0.75
    assert answers([3, 5, 1], aggregate=max).score() == 5
