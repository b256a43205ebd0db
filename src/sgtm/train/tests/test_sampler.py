"""The order of rows: whole steps, every row once, the same everywhere."""

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="the extra `dev` has hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from sgtm.config import ConfigError
from sgtm.train.sampler import ModeSampler, StepDrawSampler


def modes_of(*sizes: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int8)


@given(sizes=st.lists(st.integers(0, 60), min_size=3, max_size=3), step=st.integers(1, 20), epoch=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_steps_of_one_mode(sizes, step, epoch):
    modes = modes_of(*sizes)
    whole = sum(n // step for n in sizes)
    if not whole:
        with pytest.raises(ConfigError, match="is more than"):
            ModeSampler(modes, step, "step")
        return
    sampler = ModeSampler(modes, step, "step")
    sampler.set_epoch(epoch)
    order = np.array(list(sampler))
    assert len(order) == len(sampler) == whole * step
    assert len(set(order.tolist())) == len(order)
    per_step = modes[order].reshape(whole, step)
    assert (per_step == per_step[:, :1]).all()


@given(sizes=st.lists(st.integers(0, 200), min_size=3, max_size=3), step=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_mixed_steps_hold_each_mode_in_its_share(sizes, step):
    modes = modes_of(*sizes)
    if len(modes) < step:
        return
    order = np.array(list(ModeSampler(modes, step)))
    assert len(order) == len(modes) // step * step
    assert len(set(order.tolist())) == len(order)
    for mode in range(3):
        counts = (modes[order].reshape(-1, step) == mode).sum(1)
        # Each place of a mode is drawn in its own stretch, so any stretch holds its share but for two; a stretch of
        # `step` rows is longer or shorter by what the other two modes are off.
        share = sizes[mode] / len(modes)
        assert (abs(counts - step * share) <= 2 + 2 * share).all()


@pytest.mark.parametrize("mixing", ["example", "step"])
def test_the_order_is_that_of_seed_and_epoch(mixing):
    modes = modes_of(50, 40, 30)

    def order(seed, epoch):
        sampler = ModeSampler(modes, 10, mixing, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_a_drawn_step_has_one_category_and_one_mode():
    categories = modes_of(400, 0, 600)
    chances = np.array([[0.2, 0, 0.8, 0], [0, 0, 0, 1], [0.75, 0.25, 0, 0]])
    sampler = StepDrawSampler(categories, chances, 10, seed=3)
    pairs = np.array(list(sampler)).reshape(-1, 10, 2)
    assert len(pairs) * 10 == len(sampler) == 1000
    assert (categories[pairs[..., 0]] == categories[pairs[:, :1, 0]]).all()
    assert (pairs[..., 1] == pairs[:, :1, 1]).all()
    forget = categories[pairs[:, 0, 0]] == 0
    assert set(pairs[forget, 0, 1]) == {0, 2}
    assert set(pairs[~forget, 0, 1]) == {0, 1}
    assert len(set(pairs[..., 0].ravel().tolist())) == 1000


def test_dropped_steps_are_left_out_and_every_epoch_is_as_long():
    chances = np.array([[0.1, 0, 0, 0.9], [0, 0, 0, 1], [1, 0, 0, 0]])
    sampler = StepDrawSampler(modes_of(500, 0, 500), chances, 10, seed=0)
    lengths = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        lengths.append(len(list(sampler)))
    assert lengths == [len(sampler)] * 3
    assert 500 <= len(sampler) < 700


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match="batch_size=200 is more than the 120 training rows"):
        ModeSampler(modes_of(50, 40, 30), 200)
    with pytest.raises(ConfigError, match="of any one mode"):
        ModeSampler(modes_of(50, 40, 30), 60, "step")
    with pytest.raises(ConfigError, match="any category"):
        StepDrawSampler(modes_of(5, 5), np.eye(3, 4), 60)
