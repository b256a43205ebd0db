"""From what a document is to what the labeller says of it, and from that to how it is trained on.

category (forget, adjacent, retain) -> label (forget, retain, unlabeled) -> mode (forget, retain, default).
"""

import numpy as np
from numpy.typing import NDArray

from sgtm.config import CATEGORIES, LABELS, MODES, ConfigError, Label, LabelConfig, Mode

Codes = NDArray[np.int8]  # indices into CATEGORIES, LABELS or MODES
MODE_OF_LABEL: dict[Label, Mode] = {"forget": "forget", "retain": "retain", "unlabeled": "default"}
_FORGET = CATEGORIES.index("forget")
_LABEL_STREAM = 1  # keeps the labels' random numbers apart from those of other uses of the seed


def error_rates(config: LabelConfig, categories: Codes, documents: NDArray[np.int64]) -> tuple[float, float]:
    """(tpr, fpr) of the labeller, as shares of forget documents and of **all** other documents.

    With precision p and recall r: tpr = r and fpr = r (1 - p) / p x num_forget / num_other.

    Args:
        categories: (rows,) indices into ``CATEGORIES``.
        documents: (rows,) document numbers.

    Raises:
        ConfigError: the precision asks for more false positives than there are other documents, or false positives
            and confident retain documents together are more than there are.
    """
    num_forget = len(np.unique(documents[categories == _FORGET]))
    num_other = len(np.unique(documents[categories != _FORGET]))
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


def draw_labels(categories: Codes, documents: NDArray[np.int64], config: LabelConfig, seed: int) -> Codes:
    """Label every row (as an index into ``LABELS``); rows of one document get the same label.

    The labels depend on the seed and the document's number alone: not on the order of rows, nor on the number of
    processes. Confident retain labels are a share of all non-forget documents, apart from the false positives.

    Args:
        categories: (rows,) indices into ``CATEGORIES``.
        documents: (rows,) document numbers.

    Raises:
        ConfigError: see ``error_rates``.
    """
    is_forget = categories == _FORGET
    tpr, fpr = error_rates(config, categories, documents)
    draws = np.random.default_rng((seed, _LABEL_STREAM)).random(int(documents.max(initial=-1)) + 1)[documents]
    labels = np.full(len(categories), LABELS.index("unlabeled"), np.int8)
    labels[draws < np.where(is_forget, tpr, fpr)] = LABELS.index("forget")
    labels[~is_forget & (draws >= 1 - config.retain_fraction)] = LABELS.index("retain")
    return labels


def modes_of(labels: Codes) -> Codes:
    """The mode (index into ``MODES``) that each label (index into ``LABELS``) is trained in."""
    table = np.array([MODES.index(MODE_OF_LABEL[label]) for label in LABELS], np.int8)
    return table[labels]
