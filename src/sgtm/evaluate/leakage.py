"""Leakage: how much forget data a model has learned from, counted in tokens of an ordinary model.

    leakage = n* / u

u is the number of undiscovered forget tokens that a run trained on, and n* its *token-equivalent*: the forget tokens
that an ordinary model, trained on the same retain data, needs to reach the run's forget loss (arXiv:2512.05648;
uncalibrated). n* is read off a grid of ordinary models with more and more forget data. A filter is an ordinary model:
n* = u.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal, TypeVar

import numpy as np

from sgtm.config import ConfigError

T = TypeVar("T")
Interpolation = Literal["linear", "log"]
Bound = Literal["below", "exact", "above"]
INTERVAL = 0.95  # of the bootstrap's estimates
_ORDER: tuple[Bound, ...] = ("below", "exact", "above")


@dataclass(frozen=True)
class Estimate:
    """A number, or all that the grid can say of it: that it is ``below`` or ``above`` ``value``."""

    value: float
    bound: Bound = "exact"


@dataclass(frozen=True)
class Point:
    """One model: the forget tokens that it trained on unmasked, and its test loss on forget data (nats per token)."""

    tokens: float
    loss: float


Grid = Sequence[Point]  # ordinary models of one seed
Interval = tuple[Estimate, Estimate]


@dataclass(frozen=True)
class Leakage:
    """What some runs that differ by their seed alone have leaked.

    Args:
        tokens: the token-equivalent n*.
        ratio: n* / u; None where no forget token was undiscovered.
        tokens_interval: from the 2.5 % to the 97.5 % quantile of the bootstrap; None with one seed.
        is_monotone: whether each ordinary model with more forget tokens has a lower loss.
    """

    tokens: Estimate
    ratio: Estimate | None
    tokens_interval: Interval | None
    ratio_interval: Interval | None
    is_monotone: bool


def tokens_to_reach(loss: float, grid: Grid, interpolation: Interpolation = "linear") -> Estimate:
    """The fewest forget tokens with which an ordinary model's loss is ``loss`` or lower.

    Between neighbours of the grid the loss is taken as linear in the tokens or, with ``log``, in their logarithm
    (linear next to a model without forget tokens). Where noise makes the loss rise on the way, the first crossing
    counts: what an ordinary model *needs*. Nothing is said beyond the grid but on which side of it the loss lies.

    Raises:
        ConfigError: fewer than two ordinary models, or a loss that is no number.
    """
    if bad := [x for x in (loss, *(point.loss for point in grid)) if not math.isfinite(x)]:
        raise ConfigError(f"a loss is {bad[0]}; a model that diverged tells nothing, train it anew or leave it out")
    if len(grid) < 2:
        raise ConfigError(f"{len(grid)} ordinary models are no grid; interpolation needs at least two shares")
    points = sorted(grid, key=lambda point: point.tokens)
    if loss >= points[0].loss:
        return Estimate(points[0].tokens, "exact" if loss == points[0].loss else "below")
    for low, high in pairwise(points):
        if high.loss <= loss:
            return Estimate(_between(low, high, (low.loss - loss) / (low.loss - high.loss), interpolation))
    return Estimate(points[-1].tokens, "above")


def leakage(
    runs: Sequence[Point],
    grids: Sequence[Grid],
    interpolation: Interpolation = "linear",
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> Leakage:
    """Leakage of ``runs``, one a seed, against ``grids``, one a seed, which all have the same shares in the same order.

    Losses and tokens are averaged over the seeds, then read off the averaged grid: so seeds that leave the grid count
    with the others. The bootstrap draws the seeds of the runs and those of the grids, each with replacement and
    independently, and repeats that. (The interval of few seeds is short: three have only ten different draws.)

    Raises:
        ConfigError: fewer than two ordinary models, or a negative number of draws.
    """
    if num_bootstrap < 0:
        raise ConfigError(f"bootstrap={num_bootstrap} is no number of draws; use 0 for no interval, or 1000")

    def of(chosen_runs: Sequence[Point], chosen_grids: Sequence[Grid]) -> tuple[Estimate, Estimate | None]:
        run = _mean(chosen_runs)
        tokens = tokens_to_reach(run.loss, _mean_grid(chosen_grids), interpolation)
        return tokens, Estimate(tokens.value / run.tokens, tokens.bound) if run.tokens else None

    tokens, ratio = of(runs, grids)
    drawn = _bootstrap(of, runs, grids, num_bootstrap, seed) if len(runs) > 1 and len(grids) > 1 else []
    ratios = [r for _, r in drawn if r is not None]
    losses = [p.loss for p in sorted(_mean_grid(grids), key=lambda point: point.tokens)]
    is_monotone = all(a > b for a, b in pairwise(losses))
    return Leakage(tokens, ratio, interval([t for t, _ in drawn]), interval(ratios), is_monotone)


def by_construction(runs: Sequence[Point]) -> Leakage:
    """Of ordinary models (a filter, or none), which are their own measure: n* = u."""
    tokens = _mean(runs).tokens
    return Leakage(Estimate(tokens), Estimate(1.0) if tokens else None, None, None, True)


def interval(estimates: Sequence[Estimate]) -> Interval | None:
    """The estimates at both ends of the middle 95 %; bounds come before and behind all numbers. None of none."""
    if not estimates:
        return None
    ordered = sorted(estimates, key=lambda e: (_ORDER.index(e.bound), e.value))
    last, tail = len(ordered) - 1, (1 - INTERVAL) / 2
    return ordered[math.floor(tail * last)], ordered[math.ceil((1 - tail) * last)]


def _between(low: Point, high: Point, share: float, interpolation: Interpolation) -> float:
    """Tokens at ``share`` of the way from ``low`` to ``high``; ends are exact."""
    if interpolation == "linear" or not low.tokens:
        return (1 - share) * low.tokens + share * high.tokens
    return float(low.tokens ** (1 - share) * high.tokens**share)


def _bootstrap(
    of: Callable[[Sequence[Point], Sequence[Grid]], tuple[Estimate, Estimate | None]],
    runs: Sequence[Point],
    grids: Sequence[Grid],
    num_bootstrap: int,
    seed: int,
) -> list[tuple[Estimate, Estimate | None]]:
    rng = np.random.default_rng(seed)

    def draw(seeds: Sequence[T]) -> list[T]:
        return [seeds[i] for i in rng.integers(len(seeds), size=len(seeds))]

    return [of(draw(runs), draw(grids)) for _ in range(num_bootstrap)]


def _mean(points: Sequence[Point]) -> Point:
    return Point(fmean(p.tokens for p in points), fmean(p.loss for p in points))


def _mean_grid(grids: Sequence[Grid]) -> list[Point]:
    return [_mean(points) for points in zip(*grids, strict=True)]
