"""Two thresholds by their targets, and what they promise."""

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="the extra `dev` has hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from sgtm.config import ConfigError
from sgtm.data.thresholds import (
    Scored,
    Targets,
    Thresholds,
    assign,
    check,
    choose,
    confusion,
    estimate_prevalence,
    wilson,
)


def sample(rng, num_domain, num_other, gap=2.0):
    """Scores of a classifier whose log odds differ by ``gap`` standard deviations between the classes."""
    is_domain = np.repeat([True, False], [num_domain, num_other])
    logits = rng.normal(np.where(is_domain, gap / 2, -gap / 2))
    return Scored(1 / (1 + np.exp(-gap * logits)), is_domain, np.ones(num_domain + num_other))


def brute_force(known, targets):
    """By trying every score, from the definitions."""
    domain, scores = known.scores[known.is_domain], known.scores
    forget, retain = np.inf, -np.inf
    for t in np.unique(scores):
        above = scores >= t
        if (above & known.is_domain).sum() / (above.sum() + 1) >= targets.precision - 1e-9:
            forget = min(forget, t)
        if t in domain and ((domain < t).sum() + 1) / (len(domain) + 1) <= 1 - targets.recall + 1e-9:
            retain = max(retain, t)
    return forget, retain


@given(
    seed=st.integers(0, 2**31),
    precision=st.floats(0.3, 0.99),
    recall=st.floats(0.3, 0.99),
    gap=st.floats(0.1, 4),
    ties=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_thresholds_are_what_their_definition_says(seed, precision, recall, gap, ties):
    known = sample(np.random.default_rng(seed), 40, 60, gap)
    if ties:
        known = Scored(known.scores.round(1), known.is_domain, known.weights)
    targets = Targets(precision, recall)
    forget, retain = brute_force(known, targets)
    found = choose(known, targets)
    assert found.retain <= found.forget
    if retain > forget:
        assert found.retain == found.forget == np.clip(0.5, forget, retain)
    else:
        assert found.forget == forget
        assert found.retain == (retain if (known.scores < retain).any() else -np.inf)


def test_new_documents_keep_the_promises_on_average():
    """800 classifiers, each with thresholds from 60 + 90 documents, on 2000 new documents each."""
    rng, targets = np.random.default_rng(0), Targets(0.8, 0.9)
    missed, hits, flagged = [], 0, 0
    for _ in range(800):
        thresholds = choose(sample(rng, 60, 90), targets)
        new = sample(rng, 800, 1200)
        labels = assign(new.scores[:, None], [thresholds])
        missed.append((labels[new.is_domain] == 1).mean())
        hits, flagged = hits + (labels[new.is_domain] == 0).sum(), flagged + (labels == 0).sum()
    # Conformal: at most 0.1 (and with 60 of the domain at least 0.1 - 1/61), exactly in expectation.
    assert 0.1 - 1 / 61 - 0.005 < np.mean(missed) < 0.1 + 0.005
    assert hits / flagged > 0.8 - 0.01


def test_weights_stand_for_how_frequent_a_kind_is():
    """A threshold that is right for one in two is far too low where one in ten belongs to the domain."""
    known = sample(np.random.default_rng(1), 1000, 1000, 3.0)
    rare = Scored(known.scores, known.is_domain, np.where(known.is_domain, 0.1 / 0.5, 0.9 / 0.5))
    balanced, strict = (choose(k, Targets(0.95, 0.99)).forget for k in (known, rare))
    again = sample(np.random.default_rng(2), 20_000, 20_000, 3.0)

    def precision(threshold):
        tpr, fpr = ((again.scores[where] >= threshold).mean() for where in (again.is_domain, ~again.is_domain))
        return 0.1 * tpr / (0.1 * tpr + 0.9 * fpr)

    assert precision(balanced) < 0.75
    assert precision(strict) == pytest.approx(0.95, abs=0.03)


def test_what_cannot_be_reached_is_refused_with_what_can():
    known = sample(np.random.default_rng(0), 10, 10, 8.0)  # told apart perfectly
    targets = Targets(0.95, 0.5)
    with pytest.raises(ConfigError, match=r"20 cross-validated examples \(10 of spam\); at most 0.909 is"):
        check(choose(known, targets), "spam", known, targets)
    check(choose(known, Targets(0.9, 0.9)), "spam", known, Targets(0.9, 0.9))
    targets = Targets(0.5, 0.95)
    with pytest.raises(ConfigError, match=r"target_recall=0.95 .*; at most 0.909 is"):
        check(choose(known, Targets(0.5, 0.95)), "spam", known, targets)


def test_the_domain_with_the_highest_score_wins_and_retain_needs_all():
    thresholds = [Thresholds(0.8, 0.2), Thresholds(0.6, 0.3)]
    scores = np.array([[0.9, 0.7], [0.7, 0.65], [0.1, 0.1], [0.1, 0.5], [0.5, 0.1], [0.85, 0.95]])
    assert assign(scores, thresholds).tolist() == [0, 1, 2, 3, 3, 1]


def test_confusion_counts_and_shares():
    codes = np.array([0] * 10 + [-1] * 30)
    drawn = np.array([0] * 7 + [1] * 1 + [2] * 2 + [0] * 3 + [1] * 27)
    found = confusion(drawn, codes, np.ones((40, 1)), ("bio",))
    assert found["counts"]["bio as bio"] == 7
    assert found["counts"]["others as bio"] == 3
    measured = {name: share["share"] for name, share in found["measured"]["bio"].items()}
    expected = {"precision": 0.7, "recall": 0.7, "labelled_retain": 0.1, "unlabeled": 0.2, "others_labelled": 0.1}
    assert measured == pytest.approx(expected)
    weights = np.where(codes[:, None] == 0, 0.1, 1.3)
    rare = confusion(drawn, codes, weights, ("bio",))["measured"]["bio"]["precision"]
    assert rare["share"] == pytest.approx(0.7 / (0.7 + 3.9))
    assert rare["of"] < 10  # fewer effective documents than were counted


def test_wilson_intervals():
    """The textbook's 8 of 10, and coverage of rare shares, which the normal interval lacks."""
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0.0, 0) == (0.0, 1.0)
    draws = np.random.default_rng(0).binomial(50, 0.03, 2000) / 50
    covered = np.mean([low <= 0.03 <= high for low, high in (wilson(float(d), 50) for d in draws)])
    assert covered > 0.92


def test_prevalence_is_found_again():
    rng = np.random.default_rng(0)
    data = sample(rng, 400, 9600)  # calibrated for one half, used where it is 4 %
    found = estimate_prevalence(data.scores, np.ones(10_000), 0.5)
    assert found == pytest.approx(0.04, abs=0.012)
