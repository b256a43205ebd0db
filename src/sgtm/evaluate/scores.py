"""Scores of multiple-choice questions, and how far they may be off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_ENDS = (0.025, 0.975)  # of 95 % intervals
_Z = NormalDist().inv_cdf(_ENDS[1])
Aggregate = Callable[[Sequence[Any]], float]


@dataclass(frozen=True)
class Answers:
    """What one metric says of each question of a task.

    Args:
        values: (questions,) of each: 1 for right and 0 for wrong, or whatever ``aggregate`` takes.
        groups: (questions,) what questions hang together by (their document); each by itself where that is unknown.
        chance: the score of blind guessing; None where there is nothing to choose from.
        aggregate: values -> score; None for their mean.
    """

    values: list[Any]
    groups: NDArray[np.int64]
    chance: float | None
    aggregate: Aggregate | None = None

    @property
    def is_right_or_wrong(self) -> bool:
        return self.aggregate is None and set(self.values) <= {0, 1}

    @property
    def num_groups(self) -> int:
        return len(np.unique(self.groups))

    def score(self, questions: NDArray[np.int64] | None = None) -> float:
        """The score of all questions, or of some."""
        values = self.values if questions is None else [self.values[i] for i in questions]
        return float(np.mean(values) if self.aggregate is None else self.aggregate(values))


@dataclass(frozen=True)
class Interval:
    """95 %, and the way it was found."""

    low: float
    high: float
    kind: Literal["wilson", "bootstrap"]


def interval(answers: Answers, resamples: int, seed: int) -> Interval:
    """Wilson's interval of questions that are right or wrong and have nothing to do with each other; else a bootstrap.

    The bootstrap draws documents, not questions, where several questions are about one document: these are right or
    wrong together.
    """
    number = len(answers.values)
    if answers.is_right_or_wrong and answers.num_groups == number:
        return Interval(*wilson(int(sum(answers.values)), number), "wilson")
    low, high = np.quantile(_resampled(answers.score, answers, resamples, seed), _ENDS)
    return Interval(float(low), float(high), "bootstrap")


def change_interval(before: Answers, after: Answers, resamples: int, seed: int) -> Interval:
    """Of the difference of two models' scores on the same questions: questions are drawn, with both models' answers."""

    def change(questions: NDArray[np.int64]) -> float:
        return after.score(questions) - before.score(questions)

    if before.aggregate is None:
        differences = np.asarray(after.values, float) - np.asarray(before.values, float)
        low, high = np.quantile(_means(differences, before.groups, resamples, seed), _ENDS)
    else:
        low, high = np.quantile(_resampled(change, before, resamples, seed), _ENDS)
    return Interval(float(low), float(high), "bootstrap")


def wilson(right: int, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: all p with abs(right / number - p) <= z sqrt(p (1 - p) / number)."""
    share, weight = right / number, _Z**2 / number
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * (share * (1 - share) / number + weight / (4 * number)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def _resampled(
    score: Callable[[NDArray[np.int64]], float], answers: Answers, resamples: int, seed: int
) -> NDArray[np.float64]:
    """(resamples,) scores of questions drawn by group with replacement, as many groups as there are."""
    if answers.aggregate is None:
        return _means(np.asarray(answers.values, float), answers.groups, resamples, seed)
    order = np.argsort(answers.groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(answers.groups[order])) + 1)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(members), size=len(members)) for _ in range(resamples))
    return np.array([score(np.concatenate([members[i] for i in drawn])) for drawn in draws])


def _means(values: NDArray[np.float64], groups: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.float64]:
    """The same where a score is a mean: sums over drawn groups by their numbers of questions."""
    _, group = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(group, values), np.bincount(group)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), resamples)
    means: NDArray[np.float64] = (drawn @ sums) / (drawn @ sizes)
    return means
