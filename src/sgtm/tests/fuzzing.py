"""Malformed inputs: what is near to a valid one, and what is not; each must be taken, or refused in our own words."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgtm.config import ConfigError

T = TypeVar("T")
LONGEST = timedelta(seconds=20)  # of one input, on a machine that is shared: longer is a hang
NASTY = (
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\n",
    b"\r",
    b"{",
    b"]",
    b'"',
    b"'",
    b",",
    b":",
    b"- ",
    b"&a",
    b"*a",
)
NUMBERS = (0, -1, 2**31, 2**63, 2**64, 10**400, 0.5, float("nan"), float("inf"), -float("inf"))


def amount(few: int, many: int) -> pytest.MarkDecorator:
    """``examples``: few of them in every run of the tests, always the same; many in slow ones."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])


def fuzz(examples: int, check: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
    """Call ``check`` with that many examples of the ``strategies``."""
    how = settings(
        max_examples=examples,
        deadline=LONGEST,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    how(given(*strategies)(check))()


def taken_or_refused(action: Callable[[], T], *documented: type[Exception]) -> T | None:
    """What ``action`` returns; None if it raises a ConfigError, or another ``documented`` error, with a message."""
    try:
        return action()
    except (ConfigError, *documented) as error:
        assert len(str(error)) > 20, error  # noqa: PT017
        return None


def plain_values(leaves: int = 12) -> st.SearchStrategy[Any]:
    """What YAML and JSON can hold: all kinds of scalars, lists and mappings."""
    scalars = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(NUMBERS)
    )
    keys = st.one_of(st.text(max_size=6), st.integers(), st.booleans(), st.none())
    return st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
        max_leaves=leaves,
    )


@st.composite
def near(draw: Any, valid: bytes) -> bytes:
    """``valid`` with some pieces cut out, flipped, doubled, or put in; sometimes cut short."""
    found = valid
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(found)))
        stop = min(len(found), start + draw(st.sampled_from((0, 1, 2, 4, 16, 64, len(found)))))
        piece = found[start:stop]
        put = draw(
            st.one_of(
                st.sampled_from(NASTY),
                st.binary(max_size=6),
                st.just(b""),
                st.just(piece + piece),
                st.just(bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in piece[:1]) + piece[1:]),
                st.sampled_from([str(n).encode() for n in NUMBERS]),
            )
        )
        found = found[:start] + put + found[stop:]
    return found


@st.composite
def with_another(draw: Any, values: Any, other: st.SearchStrategy[Any]) -> Any:
    """A copy of plain ``values`` in which one value at any depth is another, is gone, or has a neighbour."""
    if not isinstance(values, dict | list) or not values or draw(st.integers(0, 3)) == 0:
        return draw(other)
    keys = list(values) if isinstance(values, dict) else range(len(values))
    key = draw(st.sampled_from(list(keys)))
    copy = dict(values) if isinstance(values, dict) else list(values)
    if draw(st.integers(0, 7)) == 0:
        del copy[key]
    else:
        copy[key] = draw(with_another(values[key], other))
    return copy
