"""From what a document is to what the labeller says of it, and from that to how it is trained on.

category (forget, adjacent, retain) -> label (forget, retain, unlabeled) -> mode (forget, retain, default). With several
domains each stands in place of ``forget``; codes are indices into ``categories(domains)`` and so on.
"""

import numpy as np
from numpy.typing import NDArray

from sgtm.config import DOMAINS, ConfigError, LabelConfig, labels, modes

Codes = NDArray[np.int8]  # indices into categories, labels or modes
_LABEL_STREAM = 1  # keeps the labels' random numbers apart from those of other uses of the seed


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


def draw_labels(
    categories: Codes,
    documents: NDArray[np.int64],
    config: LabelConfig,
    seed: int,
    domains: tuple[str, ...] = DOMAINS,
) -> Codes:
    """Label every row; rows of one document get the same label.

    The labels depend on the seed and the document's number alone: not on the order of rows, nor on the number of
    processes. Confident retain labels are a share of all non-forget documents, apart from the false positives. A
    document of a domain that is found is labelled with its own; false positives fall to all domains alike.

    Args:
        categories: (rows,) codes.
        documents: (rows,) document numbers.

    Raises:
        ConfigError: see ``error_rates``.
    """
    is_forget, names = categories < len(domains), labels(domains)
    tpr, fpr = error_rates(config, categories, documents, len(domains))
    draws = np.random.default_rng((seed, _LABEL_STREAM)).random(int(documents.max(initial=-1)) + 1)[documents]
    drawn = np.full(len(categories), names.index("unlabeled"), np.int8)
    found, mistaken = is_forget & (draws < tpr), ~is_forget & (draws < fpr)
    drawn[found] = categories[found]
    drawn[mistaken] = np.minimum(draws[mistaken] / fpr * len(domains), len(domains) - 1)
    drawn[~is_forget & (draws >= 1 - config.retain_fraction)] = names.index("retain")
    return drawn


def modes_of(codes: Codes, domains: tuple[str, ...] = DOMAINS) -> Codes:
    """The code of the mode that each label (a code) is trained in."""
    known = modes(domains)
    table = [known.index({"unlabeled": "default"}.get(label, label)) for label in labels(domains)]
    found: Codes = np.array(table, np.int8)[codes]
    return found
