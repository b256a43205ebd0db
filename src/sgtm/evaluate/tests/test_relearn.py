"""Where a curve reaches a loss, on curves made by hand."""

import pytest

from sgtm.config import ConfigError
from sgtm.evaluate.relearn import Point, best, reach


def curve(*losses: float, every: int = 10) -> list[Point]:
    return [Point(i * every, i * every * 100, i * every * 50, loss) for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "target", "step"),
    [
        ((5.0, 4.0, 3.0, 2.0), 3.5, 15.0),
        ((5.0, 4.0, 3.0, 2.0), 4.75, 2.5),
        ((5.0, 4.0, 3.0), 3.0, 20.0),  # on a measured point: exact
        ((5.0, 4.0, 3.0), 5.0, 0.0),  # from the start
        ((5.0, 4.0, 3.0), 6.0, 0.0),  # better than the target before a step
        ((5.0, 3.0, 4.5, 2.0), 4.0, 5.0),  # the first crossing of a curve that rises again
        ((5.0, 5.5, 3.5), 4.5, 15.0),
    ],
)
def test_the_point_is_interpolated(losses, target, step):
    found = reach(curve(*losses), target)
    assert found.at is not None
    assert found.at.step == step
    assert (found.at.tokens, found.at.forget_tokens) == (step * 100, step * 50)
    assert found.steps == 10 * (len(losses) - 1)


def test_the_order_of_the_points_does_not_matter():
    points = curve(5.0, 4.0, 3.0)
    assert reach(points[::-1], 3.5) == reach(points, 3.5)


def test_what_is_not_reached_is_no_number_of_steps():
    found = reach(curve(5.0, 3.2, 3.6), 3.0)
    assert found.at is None
    assert (found.closest.step, found.closest.loss, found.steps) == (10, 3.2, 20)
    assert str(found) == "not reached within 20 steps (closest loss 3.200 at step 10)"
    assert str(reach(curve(5.0, 3.0), 4.0)) == "reached after 5.0 steps, 250 forget tokens"


def test_the_attacker_chooses_the_soonest_or_else_the_nearest():
    never, nearer = reach(curve(5.0, 4.0), 3.0), reach(curve(5.0, 3.5), 3.0)
    soon, late = reach(curve(5.0, 1.0), 3.0), reach(curve(5.0, 4.0, 0.5), 3.0)
    assert best([never, late, soon, nearer]) == 2
    assert best([never, nearer]) == 1


def test_an_empty_curve_is_refused():
    with pytest.raises(ConfigError, match="without evaluations"):
        reach([], 3.0)
