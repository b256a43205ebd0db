"""Label noise: rates, shares and reproducibility."""

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="the extra `dev` has hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from sgtm.config import CATEGORIES, LABELS, MODES, ConfigError, LabelConfig
from sgtm.data.labels import dependent_chances, draw_labels, error_rates, label_chances, modes_of

FORGET, ADJACENT, RETAIN = (CATEGORIES.index(c) for c in ("forget", "adjacent", "retain"))


def corpus(num_forget: int, num_adjacent: int, num_retain: int) -> tuple[np.ndarray, np.ndarray]:
    categories = np.repeat([FORGET, ADJACENT, RETAIN], [num_forget, num_adjacent, num_retain]).astype(np.int8)
    return categories, np.arange(len(categories))


def share(labels: np.ndarray, label: str, where: np.ndarray) -> float:
    return float((labels[where] == LABELS.index(label)).mean())


def bound(p: float, n: int) -> float:
    """Five standard deviations of a share of ``n`` draws, and a few draws more: rare events are not normal."""
    return 5 * np.sqrt(max(p * (1 - p), 1e-9) / n) + (4 / n if 0 < p < 1 else 1e-9)


@given(tpr=st.floats(0, 1), fpr=st.floats(0, 0.7), retain=st.floats(0, 0.3), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_rates_hold_in_every_category(tpr, fpr, retain, seed):
    categories, documents = corpus(4000, 1500, 6000)
    labels = draw_labels(categories, documents, LabelConfig(tpr=tpr, fpr=fpr, retain_fraction=retain), seed)
    is_forget = categories == FORGET
    assert share(labels, "forget", is_forget) == pytest.approx(tpr, abs=bound(tpr, 4000))
    assert not (labels[is_forget] == LABELS.index("retain")).any()
    for category in (ADJACENT, RETAIN):
        where = categories == category
        assert share(labels, "forget", where) == pytest.approx(fpr, abs=bound(fpr, where.sum()))
        assert share(labels, "retain", where) == pytest.approx(retain, abs=bound(retain, where.sum()))


def test_precision_and_recall_are_those_of_the_drawn_labels():
    categories, documents = corpus(5000, 5000, 40000)
    labels = draw_labels(categories, documents, LabelConfig(precision=0.6, recall=0.7, retain_fraction=0.1), 3)
    flagged = labels == LABELS.index("forget")
    hits = (flagged & (categories == FORGET)).sum()
    assert hits / 5000 == pytest.approx(0.7, abs=0.03)
    assert hits / flagged.sum() == pytest.approx(0.6, abs=0.02)


def test_false_positives_are_a_share_of_all_other_documents():
    """Not of the true positives: 10 % of 45,000, not 10 % of 450."""
    categories, documents = corpus(500, 5000, 40000)
    labels = draw_labels(categories, documents, LabelConfig(tpr=0.9, fpr=0.1, retain_fraction=0.1), 0)
    false_positives = (labels[categories != FORGET] == LABELS.index("forget")).sum()
    assert false_positives == pytest.approx(4500, abs=5 * np.sqrt(4500))


def test_undiscovered_is_one_minus_tpr():
    categories, documents = corpus(100, 0, 100)
    assert error_rates(LabelConfig(undiscovered=0.2), categories, documents) == (0.8, 0.0)
    assert error_rates(LabelConfig(), categories, documents) == (1.0, 0.0)


def test_rows_of_one_document_share_its_label():
    categories = np.zeros(3000, np.int8)
    documents = np.repeat(np.arange(1000), 3)
    labels = draw_labels(categories, documents, LabelConfig(undiscovered=0.5), 1).reshape(1000, 3)
    assert (labels == labels[:, :1]).all()
    assert 400 < (labels[:, 0] == LABELS.index("forget")).sum() < 600


def test_labels_depend_on_seed_and_document_alone():
    categories, documents = corpus(1000, 0, 1000)
    config = LabelConfig(tpr=0.5, fpr=0.2)
    labels = draw_labels(categories, documents, config, 7)
    order = np.random.default_rng(0).permutation(len(documents))
    assert (draw_labels(categories[order], documents[order], config, 7) == labels[order]).all()
    half = slice(None, None, 2)  # what one of two processes would see
    assert (draw_labels(categories[half], documents[half], config, 7) == labels[half]).all()
    assert (draw_labels(categories, documents, config, 8) != labels).any()


def test_modes_of_labels():
    assert [MODES[m] for m in modes_of(np.arange(len(LABELS)))] == ["forget", "retain", "default"]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"undiscovered": 0.1, "tpr": 0.9}, "use undiscovered, or tpr"),
        ({"precision": 0.5}, "precision and recall"),
        ({"undiscovered": 1.2}, "no fraction"),
        ({"retain_fraction": -0.1}, "no fraction"),
        ({"precision": 0.0, "recall": 0.5}, "precision=0"),
    ],
)
def test_settings_that_contradict_are_refused(settings_, message):
    with pytest.raises(ConfigError, match=message):
        LabelConfig(**settings_)


@pytest.mark.parametrize(
    "config", [LabelConfig(tpr=1, fpr=0.8, retain_fraction=0.3), LabelConfig(precision=0.1, recall=1.0)]
)
def test_more_labels_than_documents_are_refused(config):
    categories, documents = corpus(100, 0, 100)
    with pytest.raises(ConfigError, match="together at most 1"):
        draw_labels(categories, documents, config, 0)


orders = st.lists(st.integers(0, 20), min_size=1, max_size=60).map(lambda order: np.array(order, float))
strengths = st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, 1e-3, 30.0, np.inf, -np.inf]))


@given(rate=st.floats(0, 1), order=orders, strength=strengths)
@settings(max_examples=200, deadline=None)
def test_dependent_chances_have_the_rate_as_their_mean(rate, order, strength):
    """Exactly, whatever the order, its ties and the strength: 1e-9 is rounding."""
    chances = dependent_chances(rate, order, strength)
    assert chances.mean() == pytest.approx(rate, abs=1e-9)
    assert ((chances >= 0) & (chances <= 1)).all()
    rising = order if strength >= 0 else -order
    sorted_chances = chances[np.argsort(rising, kind="stable")]
    assert (np.diff(sorted_chances) >= -1e-9).all()
    for value in np.unique(order):
        assert len(np.unique(chances[order == value])) == 1


@pytest.mark.parametrize("strength", [0.5, 4.0, 12.0, -4.0])
def test_strength_is_the_log_odds_between_the_ends(strength):
    chances = dependent_chances(0.3, np.arange(20_000.0), strength)
    odds = np.log(chances / (1 - chances))
    assert odds[-1] - odds[0] == pytest.approx(strength, rel=1e-3)
    middle = odds[10_000] - odds[0]
    assert middle == pytest.approx(strength / 2, rel=1e-3)  # linear in the rank


def test_infinite_strength_is_a_threshold_that_ties_share():
    order = np.array([0, 1, 1, 1, 1, 2, 3, 4, 5, 6], float)
    np.testing.assert_allclose(dependent_chances(0.7, order, np.inf), [0, 0.5, 0.5, 0.5, 0.5, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(
        dependent_chances(0.3, order, -np.inf), [1, 0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0, 0], atol=1e-12
    )


@given(
    tpr=st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 0.99, 1.0]),
    fpr=st.sampled_from([0.0, 0.01, 0.1, 0.4, 0.9]),
    depends_on=st.sampled_from(["nothing", "length", "loss", "topic", "classifier"]),
    strength=st.sampled_from([0.0, 4.0, -2.0, np.inf]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_the_grid_of_rates_is_hit_by_structured_noise_as_well(tpr, fpr, depends_on, strength, seed):
    """In expectation exactly, by the drawn labels within five standard deviations (a sum of independent draws varies
    less than a binomial). Rates are shares of documents, of which some have several rows."""
    categories, documents = corpus(3000, 1000, 4000)
    rows = np.repeat(documents, 1 + documents % 3)
    kinds = categories[rows]
    scores = None
    if depends_on != "nothing":
        of_document = np.random.default_rng(seed).integers(0, 12 if depends_on == "topic" else 2000, 8000)
        scores = of_document.astype(float)[rows]
    config = LabelConfig(tpr=tpr, fpr=fpr, retain_fraction=0.1, depends_on=depends_on, strength=strength)
    flagged, kept = label_chances(kinds, rows, config, seed, 1, scores)
    one = np.unique(rows, return_index=True)[1]
    forget = kinds[one] == FORGET
    assert flagged[one][forget].mean() == pytest.approx(tpr, abs=1e-9)
    assert flagged[one][~forget].mean() == pytest.approx(fpr, abs=1e-9)
    assert kept[one][~forget].mean() == pytest.approx(0.1, abs=1e-9)
    assert not kept[one][forget].any()
    drawn = draw_labels(kinds, rows, config, seed, scores=scores)
    assert share(drawn[one], "forget", forget) == pytest.approx(tpr, abs=bound(tpr, 3000))
    assert share(drawn[one], "forget", ~forget) == pytest.approx(fpr, abs=bound(fpr, 5000))
    assert share(drawn[one], "retain", ~forget) == pytest.approx(0.1, abs=bound(0.1, 5000))
    first = np.searchsorted(rows, rows)  # rows of one document stand together
    assert (drawn == drawn[first]).all()


@given(seed=st.integers(0, 2**31), shuffle=st.integers(0, 2**31), rank=st.integers(0, 7))
@settings(max_examples=30, deadline=None)
def test_structured_labels_depend_on_seed_and_documents_alone(seed, shuffle, rank):
    categories, documents = corpus(300, 100, 300)
    scores = np.random.default_rng(1).random(700)
    config = LabelConfig(tpr=0.6, fpr=0.2, depends_on="loss", strength=6)
    labels = draw_labels(categories, documents, config, seed, scores=scores)
    order = np.random.default_rng(shuffle).permutation(len(documents))
    with pytest.MonkeyPatch.context() as patch:  # what torchrun tells a process
        patch.setenv("RANK", str(rank))
        patch.setenv("WORLD_SIZE", "8")
        again = draw_labels(categories[order], documents[order], config, seed, scores=scores[order])
    assert (again == labels[order]).all()
    assert (draw_labels(categories, documents, config, seed + 1, scores=scores) != labels).any()


def test_errors_fall_where_they_are_said_to():
    categories, documents = corpus(2000, 500, 2000)
    scores = np.random.default_rng(0).random(4500)
    is_forget = categories == FORGET

    def mean_scores(depends_on, strength):
        config = LabelConfig(tpr=0.7, fpr=0.2, retain_fraction=0.1, depends_on=depends_on, strength=strength)
        drawn = draw_labels(categories, documents, config, 0, scores=scores)
        missed, mistaken = is_forget & (drawn != 0), ~is_forget & (drawn == 0)
        return scores[missed].mean(), scores[mistaken].mean()

    missed, mistaken = mean_scores("length", 8.0)
    assert max(missed, mistaken) < 0.35  # short documents, both ways
    missed, mistaken = mean_scores("length", -8.0)
    assert min(missed, mistaken) > 0.65
    missed, mistaken = mean_scores("loss", 8.0)
    assert min(missed, mistaken) > 0.65  # hard ones
    missed, mistaken = mean_scores("classifier", np.inf)
    assert missed == pytest.approx(0.15, abs=0.02)  # the lowest 30 % of forget
    assert mistaken == pytest.approx(0.9, abs=0.02)  # the highest 20 % of the others
    missed, mistaken = mean_scores("loss", 0.0)
    assert missed == pytest.approx(0.5, abs=0.05)
    assert mistaken == pytest.approx(0.5, abs=0.05)


def test_whole_topics_are_missed_and_another_seed_misses_others():
    categories, documents = corpus(4000, 0, 1000)
    topics = (documents % 10).astype(float)
    config = LabelConfig(undiscovered=0.3, depends_on="topic", strength=np.inf)

    def missed(seed):
        drawn = draw_labels(categories, documents, config, seed, scores=topics)
        of_topic = [(drawn[:4000][topics[:4000] == t] != 0).mean() for t in range(10)]
        assert sorted(of_topic) == [0] * 7 + [1] * 3
        return tuple(np.flatnonzero(of_topic))

    assert len({missed(seed) for seed in range(6)}) > 1


def test_rates_hold_in_each_domain():
    """Where one domain has the longer documents, the other must not bear all the errors."""
    categories = np.repeat([0, 1, 3], [1000, 1000, 1000]).astype(np.int8)
    documents = np.arange(3000)
    lengths = np.repeat([1.0, 1000.0, 10.0], 1000) + documents % 500
    config = LabelConfig(undiscovered=0.25, depends_on="length", strength=np.inf)
    drawn = draw_labels(categories, documents, config, 0, ("short", "long"), lengths)
    assert [(drawn[categories == c] != c).mean() for c in (0, 1)] == [0.25, 0.25]


def test_no_dependence_draws_what_it_drew_before():
    categories, documents = corpus(1000, 0, 1000)
    plain = draw_labels(categories, documents, LabelConfig(tpr=0.5, fpr=0.2), 7)
    config = LabelConfig(tpr=0.5, fpr=0.2, depends_on="loss", strength=0)
    assert (draw_labels(categories, documents, config, 7, scores=documents.astype(float)) == plain).all()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [({"depends_on": "length"}, "but not how many"), ({"tpr": 0.5, "strength": float("nan")}, "no number")],
)
def test_a_dependence_without_errors_is_refused(settings_, message):
    with pytest.raises(ConfigError, match=message):
        LabelConfig(**settings_)
