"""The mean of a few seeds, and how far it may be off."""

from collections.abc import Sequence

import numpy as np

_COVERAGE = 0.95
_POINTS = 200_001  # of the integral: at one degree of freedom, the worst, an error of 1e-9


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, half the 95 % t interval) of ``values``, one a seed; one value alone has no interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, t_quantile(len(values) - 1) * error


def t_quantile(degrees: int) -> float:
    """The t for which P(-t < T < t) = 0.95, T having Student's distribution with ``degrees`` of freedom.

    With T = sqrt(degrees) tan(angle), the density of the angle is proportional to cos(angle)^(degrees - 1).
    """
    angles = np.linspace(0, np.pi / 2, _POINTS)
    density = np.cos(angles) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(degrees**0.5 * np.tan(np.interp(_COVERAGE * below[-1], below, angles)))
