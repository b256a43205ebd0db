"""Label noise: rates, shares and reproducibility."""

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="the extra `dev` has hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from sgtm.config import CATEGORIES, LABELS, MODES, ConfigError, LabelConfig
from sgtm.data.labels import draw_labels, error_rates, modes_of

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
