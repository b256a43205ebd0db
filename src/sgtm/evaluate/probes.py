"""Linear probes: do a model's hidden states still tell removed text from other text?

A row's state at a layer is the mean of the layer's output over the row's positions (layer 0: the embeddings). Logistic
regression on standardised states of training rows is tested on rows of the test split. A high AUC alone says little:
words tell topics apart in a model that never learned anything. So it is read against an untrained model, against a
model that was never given the text, and against shuffled labels, whose AUC is about 0.5.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from sgtm.data.mixture import Rows
from sgtm.evaluate.loss import evaluating, numbered_batches

_ENDS = (0.025, 0.975)  # of 95 % intervals
_BATCH = 64
States = NDArray[np.float32]  # (layers + 1, rows, hidden)


@dataclass(frozen=True)
class Probe:
    """Held-out quality of one probe.

    Args:
        accuracy: at the threshold 1/2.
        auc: chance that a row of the domain gets a higher score than another row; ties count half.
        low, high: percentile bootstrap over test rows, 95 %.
    """

    accuracy: float
    auc: float
    low: float
    high: float


@torch.no_grad()
def mean_states(model: PreTrainedModel, rows: Rows) -> States:
    """Mean hidden states of each row at each layer; (layers + 1, rows, hidden)."""
    found: dict[int, NDArray[np.float32]] = {}
    with evaluating(model, None):
        for numbers, input_ids, labels in numbered_batches(model, rows, _BATCH):
            states = model.base_model(input_ids=input_ids, use_cache=False, output_hidden_states=True).hidden_states
            there = (labels != -100)[..., None]
            means = torch.stack([(s.float() * there).sum(1) / there.sum(1).clamp_min(1) for s in states], 1)
            found |= dict(zip(numbers.tolist(), means.cpu().numpy(), strict=True))
    return np.stack([found[i] for i in range(len(rows))], 1)


def probe_layers(
    train: tuple[States, States],
    test: tuple[States, States],
    resamples: int,
    rng: np.random.Generator,
    shuffles: int = 0,
) -> Iterator[Probe]:
    """A probe for each layer.

    Args:
        train, test: states of rows of the domain, and of other rows.
        resamples: draws of the bootstrap.
        shuffles: instead, the control: so many probes of labels in random order, their mean, and the interval over
            them.
    """
    learned, true = (np.repeat([1, 0], [yes.shape[1], no.shape[1]]) for yes, no in (train, test))
    for layer in range(len(train[0])):
        x, test_x = (np.concatenate([yes[layer], no[layer]]) for yes, no in (train, test))
        if not shuffles:
            yield probe(x, learned, test_x, true, resamples, rng)
            continue
        found = [probe(x, rng.permutation(learned), test_x, true, 1, rng) for _ in range(shuffles)]
        aucs = [p.auc for p in found]
        low, high = np.quantile(aucs, _ENDS)
        yield Probe(fmean(p.accuracy for p in found), fmean(aucs), float(low), float(high))


def probe(
    train_x: NDArray[np.float32],
    train_y: NDArray[np.int64],
    test_x: NDArray[np.float32],
    test_y: NDArray[np.int64],
    resamples: int,
    rng: np.random.Generator,
) -> Probe:
    """Logistic regression on standardised features (rows, features), labels 1 and 0."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train_x, train_y)
    scores = fitted.decision_function(test_x)
    accuracy = float(((scores > 0) == (test_y == 1)).mean())
    return Probe(accuracy, *auc_interval(scores[test_y == 1], scores[test_y == 0], resamples, rng))


def auc_interval(
    positive: NDArray[np.float64], negative: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """(AUC, low, high): the interval draws both kinds of rows with replacement, as many as there are."""
    wins = (positive[:, None] > negative).astype(np.float32) + 0.5 * (positive[:, None] == negative)
    drawn = [rng.multinomial(n, np.full(n, 1 / n), resamples).astype(np.float32) for n in wins.shape]
    aucs = ((drawn[0] @ wins) * drawn[1]).sum(1) / wins.size
    low, high = np.quantile(aucs, _ENDS)
    return float(wins.mean(dtype=np.float64)), float(low), float(high)
