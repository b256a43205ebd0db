"""From what a document is to what the labeller says of it, and from that to how it is trained on.

category (forget, adjacent, retain) -> label (forget, retain, unlabeled) -> mode (forget, retain, default). With several
domains each stands in place of ``forget``; codes are indices into ``categories(domains)`` and so on.
"""

import numpy as np
from numpy.typing import NDArray

from sgtm.config import DOMAINS, ConfigError, LabelConfig, Stream, labels, modes

Codes = NDArray[np.int8]  # indices into categories, labels or modes
Floats = NDArray[np.float64]
_TINY = 1e-6


def error_rates(
    config: LabelConfig, categories: Codes, documents: NDArray[np.int64], num_domains: int = 1
) -> tuple[float, float]:
    """(tpr, fpr) of the labeller, as shares of forget documents and of **all** other documents.

    With precision p and recall r: tpr = r and fpr = r (1 - p) / p x num_forget / num_other.

    Args:
        categories: (rows,) codes.
        documents: (rows,) document numbers.

    Raises:
        ConfigError: the precision asks for more false positives than there are other documents, or false positives
            and confident retain documents together are more than there are.
    """
    num_forget = len(np.unique(documents[categories < num_domains]))
    num_other = len(np.unique(documents[categories >= num_domains]))
    tpr, fpr = 1.0 if config.tpr is None else config.tpr, config.fpr or 0.0
    if config.undiscovered is not None:
        tpr = 1 - config.undiscovered
    elif config.precision is not None and config.recall is not None:
        tpr = config.recall
        fpr = tpr * (1 - config.precision) / config.precision * num_forget / max(num_other, 1)
    if fpr + config.retain_fraction > 1:
        raise ConfigError(
            f"labels: a share of {fpr:.3g} of the {num_other} other documents would be false positives and "
            f"{config.retain_fraction} confident retain documents; together at most 1: raise the precision (or lower "
            "fpr), or lower retain_fraction"
        )
    return tpr, fpr


def label_chances(
    categories: Codes,
    documents: NDArray[np.int64],
    config: LabelConfig,
    seed: int = 0,
    num_domains: int = 1,
    scores: Floats | None = None,
) -> tuple[Floats, Floats]:
    """(flagged, kept), (rows,) each: the chance of each row's document of being labelled for a domain, and retain.

    Their means over documents are exactly tpr (in each domain) and fpr (over all others), and retain_fraction; which
    documents the errors fall to is ``config.depends_on``. Confident retain labels fall evenly to those others that are
    not mistaken.

    Args:
        categories: (rows,) codes.
        documents: (rows,) document numbers.
        scores: (rows,) what the errors depend on, the same for all rows of a document.

    Raises:
        ConfigError: see ``error_rates``.
    """
    tpr, fpr = error_rates(config, categories, documents, num_domains)
    is_forget = categories < num_domains
    flagged = np.where(is_forget, tpr, fpr)
    if scores is not None:
        _, first, row_of = np.unique(documents, return_index=True, return_inverse=True)
        of_document = flagged[first]
        group = np.minimum(categories, num_domains)[first]
        for code in np.unique(group):
            where, is_domain = group == code, code < num_domains
            errors = _proneness(scores[first][where], config.depends_on, seed, bool(is_domain))
            rate = tpr if is_domain else fpr
            of_document[where] = dependent_chances(rate, -errors if is_domain else errors, config.strength)
        flagged = of_document[row_of]
    kept = np.where(is_forget, 0.0, config.retain_fraction * ((1 - flagged) / max(1 - fpr, _TINY)))
    return flagged, kept


def dependent_chances(rate: float, order: Floats, strength: float) -> Floats:
    """(documents,) chances with mean ``rate`` exactly, which rise with ``order``.

    Frank's copula between a document's rank and its label: with u the rank in [0, 1] and b the strength, the chance at
    u is dG/du = sigmoid(a + b u), where a is such that G(1) = rate. A document has the mean over its part of [0, 1];
    documents of equal order share theirs. b = 0 is independence, b = inf a threshold.

    Args:
        rate: 0 to 1.
        order: (documents,) any numbers; only their order counts.
        strength: log odds of the last document against the first; negative chances fall with ``order``.
    """
    if abs(strength) < _TINY or not 0 < rate < 1 or not len(order):
        return np.full(len(order), rate)
    _, tie, sizes = np.unique(order if strength > 0 else -order, return_inverse=True, return_counts=True)
    edges = np.append(0, np.cumsum(sizes)) / len(order)
    chances = np.diff(_frank(edges, rate, abs(strength))) / np.diff(edges)
    return np.clip(chances, 0, 1)[tie]


def _frank(u: Floats, rate: float, b: float) -> Floats:
    """G(u) = (softplus(a + b u) - softplus(a)) / b, the number of labels up to rank u; G(1) = ``rate``."""
    if np.isinf(b):
        return np.maximum(0.0, u - (1 - rate))
    if not b * rate:  # less than the smallest number
        return u * rate
    a = np.log(-np.expm1(-b * rate)) - b * (1 - rate) - np.log(-np.expm1(-b * (1 - rate)))
    counts: Floats = (np.logaddexp(0, a + b * u) - np.logaddexp(0, a)) / b
    return counts


def _proneness(scores: Floats, depends_on: str, seed: int, is_domain: bool) -> Floats:
    """(documents,) how prone to error documents of one group are, in any scale.

    Short ones, hard ones, those of topics that the seed chooses; a classifier misses what it scores low and takes what
    it scores high.
    """
    if depends_on == "length" or (depends_on == "classifier" and is_domain):
        return -scores
    if depends_on != "topic":
        return scores
    topics, topic = np.unique(scores, return_inverse=True)
    order: Floats = np.random.default_rng((seed, Stream.TOPIC_ERRORS)).permutation(len(topics)).astype(float)[topic]
    return order


def draw_labels(
    categories: Codes,
    documents: NDArray[np.int64],
    config: LabelConfig,
    seed: int,
    domains: tuple[str, ...] = DOMAINS,
    scores: Floats | None = None,
) -> Codes:
    """Label every row; rows of one document get the same label.

    Every document has one random number, by the seed and its number alone: not by the order of rows, nor the number of
    processes. Confident retain labels are a share of all non-forget documents, apart from the false positives. A
    document of a domain that is found is labelled with its own; false positives fall to all domains alike.

    Args:
        categories: (rows,) codes.
        documents: (rows,) document numbers.
        scores: (rows,) what ``config.depends_on`` names (``sgtm.data.scores``); the chances are those of the whole
            split, so label all of it, never a process's part.

    Raises:
        ConfigError: see ``error_rates``.
    """
    is_forget, names = categories < len(domains), labels(domains)
    flagged, kept = label_chances(categories, documents, config, seed, len(domains), scores)
    draws = np.random.default_rng((seed, Stream.LABELS)).random(int(documents.max(initial=-1)) + 1)[documents]
    drawn = np.full(len(categories), names.index("unlabeled"), np.int8)
    found, mistaken = is_forget & (draws < flagged), ~is_forget & (draws < flagged)
    drawn[found] = categories[found]
    drawn[mistaken] = np.minimum(draws[mistaken] / flagged[mistaken] * len(domains), len(domains) - 1)
    drawn[~is_forget & (draws >= 1 - kept)] = names.index("retain")
    return drawn


def modes_of(codes: Codes, domains: tuple[str, ...] = DOMAINS) -> Codes:
    """The code of the mode that each label (a code) is trained in."""
    known = modes(domains)
    table = [known.index({"unlabeled": "default"}.get(label, label)) for label in labels(domains)]
    found: Codes = np.array(table, np.int8)[codes]
    return found
