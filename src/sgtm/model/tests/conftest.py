"""Every test that asks for ``family``, ``strategy`` or ``joint`` runs for all of them."""

from collections.abc import Iterator

import pytest
import torch

from sgtm.model.strategies import STRATEGIES
from sgtm.model.tests.families import FAMILIES, Family, Joint


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """These models are so small that threads only wait for each other: minutes, where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[(), ("embeddings", "norms")], ids=["joint_updated", "joint_frozen"])
def joint(request: pytest.FixtureRequest) -> Joint:
    return request.param
