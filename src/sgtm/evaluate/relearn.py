"""How soon a relearning curve reaches a loss: in steps, and in tokens of forget text (arXiv:2512.05648, Relearning).

A curve is measured every few steps. Between two neighbours (t_0, l_0), (t_1, l_1) the loss is taken as linear in the
steps t, so a target L with l_0 > L >= l_1 is reached at t_0 + (t_1 - t_0) (l_0 - L) / (l_0 - l_1), and tokens alike.
Where the loss rises again on the way, the first crossing counts. Nothing is said beyond the last measurement: a curve
that stays above L has *not reached* it, which is no number of steps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sgtm.config import ConfigError


@dataclass(frozen=True)
class Point:
    """One evaluation: steps, tokens seen (of all text, and of forget text alone), forget loss (nats per token)."""

    step: float
    tokens: float
    forget_tokens: float
    loss: float


@dataclass(frozen=True)
class Outcome:
    """Where a curve reached the target, or how near it came.

    Args:
        at: the (interpolated) point of the target's loss; None where it was not reached.
        closest: the measured point of least loss.
        steps: of the whole curve.
    """

    target: float
    at: Point | None
    closest: Point
    steps: int

    def __str__(self) -> str:
        if self.at is None:
            return (
                f"not reached within {self.steps:,} steps (closest loss {self.closest.loss:.3f} at step "
                f"{self.closest.step:,.0f})"
            )
        return f"reached after {self.at.step:,.1f} steps, {self.at.forget_tokens:,.0f} forget tokens"


def reach(curve: Sequence[Point], target: float) -> Outcome:
    """Where ``curve`` first has a loss of ``target`` or lower.

    Raises:
        ConfigError: a curve without a point.
    """
    if not curve:
        raise ConfigError("a curve without evaluations reaches nothing; evaluate it at least once")
    points = sorted(curve, key=lambda p: p.step)
    closest, last = min(points, key=lambda p: p.loss), int(points[-1].step)
    if points[0].loss <= target:
        return Outcome(target, points[0], closest, last)
    for low, high in pairwise(points):
        if high.loss <= target:
            return Outcome(target, _between(low, high, target), closest, last)
    return Outcome(target, None, closest, last)


def best(outcomes: Iterable[Outcome]) -> int:
    """Index of the outcome that an attacker would choose: the fewest steps or, where none arrives, the least loss."""
    keys = [(o.at is None, o.closest.loss if o.at is None else o.at.step) for o in outcomes]
    return keys.index(min(keys))


def _between(low: Point, high: Point, target: float) -> Point:
    share = (low.loss - target) / (low.loss - high.loss)

    def at(a: float, b: float) -> float:
        return b if share == 1 else a + share * (b - a)

    return Point(
        at(low.step, high.step),
        at(low.tokens, high.tokens),
        at(low.forget_tokens, high.forget_tokens),
        target,
    )
