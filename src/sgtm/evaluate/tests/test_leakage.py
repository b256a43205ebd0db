"""Leakage: what the interpolation promises for any grid, and what the bootstrap says of seeds."""

import math
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="the extra `dev` has hypothesis")
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sgtm.config import ConfigError
from sgtm.evaluate.leakage import Estimate, Point, by_construction, interval, leakage, tokens_to_reach

BOUNDS = ("below", "exact", "above")
GRID = [Point(0, 8.0), Point(100, 6.0), Point(1000, 4.0)]
interpolations = pytest.mark.parametrize("interpolation", ["linear", "log"])
losses = st.floats(0.1, 12, allow_nan=False)


@st.composite
def grids(draw, falling=False):
    """Ordinary models with rising tokens, the first often without any; ``falling``: and with falling losses."""
    size = draw(st.integers(2, 8))
    tokens = sorted(draw(st.lists(st.integers(0, 10**9), min_size=size, max_size=size, unique=True)))
    tokens[0] = draw(st.sampled_from([0, tokens[0]]))
    ys = draw(st.lists(losses, min_size=size, max_size=size, unique=falling))
    return [Point(t, y) for t, y in zip(tokens, sorted(ys, reverse=True) if falling else ys, strict=True)]


def order(estimate: Estimate) -> tuple[int, float]:
    return BOUNDS.index(estimate.bound), estimate.value


@given(grid=grids(falling=True), interpolation=st.sampled_from(["linear", "log"]))
def test_a_model_of_the_grid_is_its_own_measure(grid, interpolation):
    assert [tokens_to_reach(p.loss, grid, interpolation) for p in grid] == [Estimate(p.tokens) for p in grid]


@given(grid=grids(), one=losses, other=losses, interpolation=st.sampled_from(["linear", "log"]))
@settings(max_examples=300)
def test_a_lower_loss_needs_no_fewer_tokens(grid, one, other, interpolation):
    low, high = sorted((one, other))
    needs_more, needs_less = (order(tokens_to_reach(loss, grid, interpolation)) for loss in (low, high))
    assert needs_more[0] >= needs_less[0]
    assert needs_more[1] >= needs_less[1] * (1 - 1e-9), "but for rounding of the powers"


@given(grid=grids(), loss=losses)
@settings(max_examples=300)
def test_the_first_pair_that_brackets_the_loss_is_taken(grid, loss):
    """By brute force; and both interpolations stay in the pair, the logarithm on the lower side."""
    assume(loss != grid[0].loss)
    linear, log = tokens_to_reach(loss, grid, "linear"), tokens_to_reach(loss, grid, "log")
    brackets = [(a.tokens, b.tokens) for a, b in pairwise(grid) if a.loss > loss >= b.loss]
    if loss > grid[0].loss:
        assert linear == log == Estimate(grid[0].tokens, "below")
    elif not brackets:
        assert linear == log == Estimate(grid[-1].tokens, "above")
    else:
        (low, high), rounding = brackets[0], 1e-9
        assert linear.bound == log.bound == "exact"
        assert low <= log.value * (1 + rounding)
        assert log.value <= linear.value * (1 + rounding) <= high * (1 + 2 * rounding)


@given(grid=grids(), loss=losses, scale=st.floats(0.01, 100), interpolation=st.sampled_from(["linear", "log"]))
def test_the_unit_of_tokens_does_not_matter(grid, loss, scale, interpolation):
    scaled = [Point(p.tokens * scale, p.loss) for p in grid]
    once, again = tokens_to_reach(loss, grid, interpolation), tokens_to_reach(loss, scaled, interpolation)
    assert again.bound == once.bound
    assert again.value == pytest.approx(once.value * scale, rel=1e-6, abs=1e-6)


def test_by_hand():
    assert tokens_to_reach(7.0, GRID, "linear") == tokens_to_reach(7.0, GRID, "log") == Estimate(50)
    assert tokens_to_reach(5.0, GRID, "linear") == Estimate(550)
    assert tokens_to_reach(5.0, GRID, "log").value == pytest.approx(math.sqrt(100 * 1000))
    assert tokens_to_reach(5.0, GRID[::-1], "linear") == Estimate(550), "in any order"
    assert tokens_to_reach(8.1, GRID) == Estimate(0, "below")
    assert tokens_to_reach(3.9, GRID) == Estimate(1000, "above")
    rising = [Point(0, 8.0), Point(10, 6.0), Point(20, 7.0), Point(30, 5.0)]
    assert tokens_to_reach(6.5, rising) == Estimate(7.5), "the first crossing, not the one between 20 and 30"
    with pytest.raises(ConfigError, match="1 ordinary models are no grid"):
        tokens_to_reach(5.0, GRID[:1])


@interpolations
def test_a_filter_leaks_one(interpolation):
    """Runs that are the grid's own models, seed by seed."""
    seeds = [[Point(p.tokens * (1 + s / 10), p.loss - s / 20) for p in GRID] for s in range(3)]
    for k in (1, 2):
        found = leakage([grid[k] for grid in seeds], seeds, interpolation, num_bootstrap=200)
        assert found.ratio == Estimate(pytest.approx(1, rel=1e-12))
        low, high = found.ratio_interval
        assert low.value <= 1 <= high.value or (k == 2 and high.bound == "above"), "the grid ends at the last model"
    assert by_construction([grid[1] for grid in seeds]).ratio == Estimate(1)


def test_ratio_and_token_equivalent():
    found = leakage([Point(1000, 5.0)], [GRID])
    assert (found.tokens, found.ratio) == (Estimate(550), Estimate(0.55))
    assert (found.tokens_interval, found.ratio_interval) == (None, None), "one seed has no interval"
    beyond = leakage([Point(1000, 9.0)], [GRID])
    assert (beyond.tokens, beyond.ratio) == (Estimate(0, "below"), Estimate(0, "below"))
    assert leakage([Point(500, 3.0)], [GRID]).ratio == Estimate(2, "above")


def test_without_undiscovered_tokens_there_is_no_ratio():
    found = leakage([Point(0, 7.0), Point(0, 7.2)], [GRID, GRID])
    assert found.tokens.value == pytest.approx(45)
    assert (found.ratio, found.ratio_interval) == (None, None)
    assert found.tokens_interval is not None
    assert by_construction([Point(0, 7.0)]).ratio is None


def test_a_grid_that_rises_is_said_to():
    assert leakage([Point(10, 5.0)], [GRID]).is_monotone
    assert not leakage([Point(10, 5.0)], [[*GRID, Point(2000, 4.5)]]).is_monotone


def test_the_bootstrap_draws_seeds_of_runs_and_of_grids():
    runs, same = [Point(1000, 5.0), Point(1000, 5.4)], [GRID, GRID]
    found = leakage(runs, same, num_bootstrap=300)
    assert found == leakage(runs, same, num_bootstrap=300), "one seed, one interval"
    ends = [e.value for e in found.tokens_interval]
    assert ends == pytest.approx([370, 550]), "both runs of one kind: the ends of what two seeds can give"
    shifted = [[Point(p.tokens, p.loss + d) for p in GRID] for d in (-0.2, 0.2)]
    low, high = leakage([runs[0], runs[0]], shifted, num_bootstrap=300).tokens_interval
    assert (low.value, high.value) == pytest.approx((460, 640)), "grids alone move it too"
    alike = leakage([runs[0]] * 3, [GRID] * 3, num_bootstrap=50)
    assert alike.tokens_interval == (alike.tokens, alike.tokens)
    assert leakage(runs, same, num_bootstrap=0).tokens_interval is None
    with pytest.raises(ConfigError, match="use 0 for no interval"):
        leakage(runs, same, num_bootstrap=-1)


def test_an_interval_may_end_outside_the_grid():
    found = leakage([Point(100, 7.0), Point(100, 8.4)], [GRID, GRID], num_bootstrap=300)
    assert found.tokens == Estimate(pytest.approx(15))
    assert [e.bound for e in found.tokens_interval] == ["below", "exact"]
    assert interval([Estimate(5), Estimate(9, "above"), Estimate(0, "below")]) == (
        Estimate(0, "below"),
        Estimate(9, "above"),
    )


def test_the_interval_covers_the_truth():
    """Ten seeds of normal noise: a percentile interval is a little short (nominal 95 %), never half empty."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(60):
        runs = [Point(1000, 5.0 + e) for e in rng.normal(0, 0.1, 10)]
        noisy = [[Point(p.tokens, p.loss + e) for p, e in zip(GRID, rng.normal(0, 0.1, 3), strict=True)] for _ in runs]
        low, high = leakage(runs, noisy, num_bootstrap=100).tokens_interval
        covered += low.value <= 550 <= high.value
    assert covered >= 48, "80 %: four standard deviations below 95 %"
