"""Probes of features whose separability is known."""

import numpy as np
import pytest
import torch

from sgtm.data.mixture import collate
from sgtm.evaluate.probes import auc_interval, mean_states, probe, probe_layers

ROWS, FEATURES = 200, 8


def features(rng, shift: float) -> np.ndarray:
    return (rng.normal(size=(ROWS, FEATURES)) + shift * np.eye(FEATURES)[0]).astype(np.float32)


def split(seed: int, shift: float):
    rng = np.random.default_rng(seed)
    x = [np.concatenate([features(rng, shift), features(rng, 0)]) for _ in range(2)]
    y = np.repeat([1, 0], ROWS)
    return probe(x[0], y, x[1], y, 500, rng)


def test_separable_features_are_told_apart_and_noise_is_not():
    apart = split(0, 20.0)
    assert (apart.accuracy, apart.auc, apart.low, apart.high) == (1.0, 1.0, 1.0, 1.0)
    noise = split(1, 0.0)
    assert abs(noise.auc - 0.5) < 0.1  # its standard error is 0.03
    assert noise.low < 0.5 < noise.high
    between = split(2, 1.5)  # AUC of the best direction: Phi(1.5 / sqrt 2) = 0.856
    assert between.auc == pytest.approx(0.856, abs=0.06)
    assert noise.auc < between.low < between.auc < between.high < 1


def test_the_auc_is_a_share_of_won_pairs():
    rng = np.random.default_rng(0)
    assert auc_interval(np.array([1.0, 3.0]), np.array([0.0, 2.0]), 10, rng)[0] == 0.75
    assert auc_interval(np.array([1.0]), np.array([1.0]), 10, rng) == (0.5, 0.5, 0.5)


def test_shuffled_labels_are_about_one_half_where_true_ones_are_one():
    rng = np.random.default_rng(0)
    states = [(features(rng, 20.0)[None], features(rng, 0)[None]) for _ in range(2)]
    (true,) = probe_layers(*states, 100, np.random.default_rng(0))
    (control,) = probe_layers(*states, 100, np.random.default_rng(0), shuffles=40)
    assert true.auc == 1
    # One probe of shuffled labels has a chance direction, along which the two kinds lie either way: means of many.
    assert abs(control.auc - 0.5) < 0.2
    assert control.low < 0.5 < control.high


def test_states_are_means_over_a_row_without_its_padding(model, data):
    rows = data.test.of("forget", 12)
    found = mean_states(model, rows)
    assert found.shape == (model.config.num_layers + 1, len(rows), model.config.hidden_size)
    model.eval()
    for i in (0, 5, 11):
        ids = collate([rows[i]])["input_ids"]
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        expected = torch.stack([s[0].mean(0) for s in states])
        torch.testing.assert_close(torch.tensor(found[:, i]), expected, rtol=1e-4, atol=1e-5)
