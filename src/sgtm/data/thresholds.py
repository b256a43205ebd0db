"""Two thresholds on a classifier's scores: confident forget, confident retain, and between them unlabeled."""

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgtm.config import ConfigError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
_TINY = 1e-9
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Targets:
    """Precision of a domain's labels, and share of its documents that are not labelled retain."""

    precision: float
    recall: float


@dataclass(frozen=True)
class Scored:
    """Documents that thresholds are chosen on, scored by a classifier that had not seen them.

    Args:
        scores: (documents,).
        is_domain: (documents,) whether each truly belongs to the domain.
        weights: (documents,) how frequent its kind is in the data, as a multiple of how frequent it is here.
    """

    scores: Floats
    is_domain: Bools
    weights: Floats


@dataclass(frozen=True)
class Thresholds:
    """A document with score >= ``forget`` is labelled for the domain, one with score < ``retain`` is not of it.

    Never ``retain`` > ``forget``.
    """

    forget: float
    retain: float


@dataclass(frozen=True)
class Share:
    """A measured share with its 95 % interval (Wilson), of ``of`` documents (fewer than counted, if weighted)."""

    share: float | None  # of none
    low: float
    high: float
    of: float


def choose(known: Scored, targets: Targets) -> Thresholds:
    """Thresholds by the targets; inf or -inf where one cannot be met, so that nothing gets that label.

    Both count one document more that goes wrong, than were seen to, as a few documents cannot vouch for
    perfection: a target p takes at least p / (1 - p) documents of the domain.

    forget: the lowest score t such that of the documents with score >= t, and one more that is not of the domain, a
    share of at least ``precision`` belongs to it. retain: the highest t such that of the domain's documents, and one
    more below t, a share of at most 1 - ``recall`` has score < t (split conformal prediction: for a new document of
    the domain the chance to be labelled retain is at most that). Where retain > forget, no band is needed, and both are
    the score between them that is nearest to 1/2.
    """
    cuts, precisions = _precisions(known)
    reached = cuts[precisions >= targets.precision - _TINY]
    forget = float(reached[-1]) if len(reached) else np.inf
    cuts, recalls = _recalls(known)
    reached = cuts[recalls >= targets.recall - _TINY]
    retain = float(reached[-1]) if len(reached) else -np.inf
    if retain > forget:
        forget = retain = min(max(0.5, forget), retain)
    return Thresholds(forget, retain if (known.scores < retain).any() else -np.inf)


def check(thresholds: Thresholds, domain: str, known: Scored, targets: Targets) -> None:
    """Raise a ConfigError where a target was not reached, with what can be."""
    where = f"{len(known.scores)} cross-validated examples ({known.is_domain.sum()} of {domain})"
    if np.isinf(thresholds.forget):
        raise ConfigError(
            f"target_precision={targets.precision} is not reached on {where}; at most "
            f"{_floor(_precisions(known)[1].max(initial=0))} is: lower it, or label more examples"
        )
    if np.isinf(thresholds.retain):
        cuts, recalls = _recalls(known)
        able = recalls[cuts > known.scores.min()]
        raise ConfigError(
            f"target_recall={targets.recall} is not reached on {where} by any document that would be labelled retain; "
            f"at most {_floor(able.max(initial=0))} is: lower it, or label more examples"
        )


def assign(scores: Floats, thresholds: list[Thresholds]) -> NDArray[np.int64]:
    """(documents,) label codes for scores (documents, domains): a domain, then retain, then unlabeled.

    The domain with the highest score among those whose threshold is reached; retain where all domains say so.
    """
    num_domains = len(thresholds)
    reached = scores >= np.array([t.forget for t in thresholds])
    best = np.where(reached, scores, -1.0).argmax(1)
    kept = (scores < np.array([t.retain for t in thresholds])).all(1)
    return np.where(reached.any(1), best, np.where(kept, num_domains, num_domains + 1))


def confusion(
    drawn: NDArray[np.int64], codes: NDArray[np.int64], weights: Floats, domains: tuple[str, ...]
) -> dict[str, Any]:
    """Counts of "truth as label", and for each domain precision, recall and the share labelled retain by mistake.

    Args:
        drawn: (documents,) label codes.
        codes: (documents,) domain codes, or -1.
        weights: (documents, domains).
    """
    truths, labels = (*domains, "others"), (*domains, "retain", "unlabeled")
    true = np.where(codes < 0, len(domains), codes)
    counts = {
        f"{truth} as {label}": int(((true == t) & (drawn == k)).sum())
        for t, truth in enumerate(truths)
        for k, label in enumerate(labels)
    }
    measured = {}
    for d, domain in enumerate(domains):
        w, of_domain = weights[:, d], codes == d
        measured[domain] = {
            "precision": asdict(_share(of_domain, drawn == d, w)),
            "recall": asdict(_share(drawn == d, of_domain, w)),
            "labelled_retain": asdict(_share(drawn == len(domains), of_domain, w)),
            "unlabeled": asdict(_share(drawn == len(domains) + 1, of_domain, w)),
            "others_labelled": asdict(_share(drawn == d, ~of_domain, w)),
        }
    return {"counts": {name: n for name, n in counts.items() if n}, "measured": measured}


def wilson(share: float, of: float) -> tuple[float, float]:
    """The 95 % interval of a share of ``of`` draws (Wilson 1927); all of 0 to 1 for none."""
    if not of:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    middle = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * (share * (1 - share) / of + z**2 / (4 * of**2)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def estimate_prevalence(scores: Floats, counts: Floats, share: float, rounds: int = 200) -> float:
    """Share of the domain in data with these ``scores`` of a classifier that was calibrated where it was ``share``.

    Expectation-maximisation over the class prior (Saerens, Latinne & Decaestecker 2002).

    Args:
        scores: (n,) more than 0 and less than 1.
        counts: (n,) documents with each score.
    """
    prior = share
    for _ in range(rounds):
        up, down = scores * (prior / share), (1 - scores) * ((1 - prior) / (1 - share))
        prior = float(np.clip(np.average(up / (up + down), weights=counts), 1e-6, 1 - 1e-6))
    return prior


def _precisions(known: Scored) -> tuple[Floats, Floats]:
    """Scores that may be thresholds, falling, and the precision of documents at or above each."""
    order = np.argsort(-known.scores, kind="stable")
    one_more = known.weights[~known.is_domain].max(initial=0)
    hits = np.cumsum((known.weights * known.is_domain)[order])
    precisions = hits / (np.cumsum(known.weights[order]) + one_more)
    falling = known.scores[order]
    last = np.append(falling[1:] != falling[:-1], True)[: len(falling)]  # equal scores stand on one side
    return falling[last], precisions[last]


def _recalls(known: Scored) -> tuple[Floats, Floats]:
    """Scores of the domain's documents, rising, and the share of such documents at or above each."""
    of_domain = np.sort(known.scores[known.is_domain])
    rising, below = np.unique(of_domain, return_index=True)
    return rising, 1 - (below + 1) / (len(of_domain) + 1)


def _floor(share: float) -> float:
    return float(np.floor(share * 1000 + _TINY) / 1000)


def _share(hits: Bools, where: Bools, weights: Floats) -> Share:
    """The weighted share of ``hits`` among ``where``; its size is Kish's effective number of documents."""
    w = weights[where]
    if not len(w):
        return Share(None, 0.0, 1.0, 0.0)
    share, of = float((w * hits[where]).sum() / w.sum()), float(w.sum() ** 2 / (w**2).sum())
    low, high = wilson(share, of)
    return Share(share, low, high, of)
