"""Every test that asks for ``family``, ``strategy`` or ``case`` (both, and joint parameters) runs for all of them."""

import pytest

from sgtm.model.strategies import STRATEGIES
from sgtm.model.tests.families import CASES, FAMILIES, Case, Family


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]
