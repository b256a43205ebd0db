"""Scores of prepared documents from their texts: topics, and how sure a real classifier is."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sgtm.config import ConfigError, DataConfig, Stream
from sgtm.data.classify import LEAST_EXAMPLES, NO_DOMAIN, featurise, fit
from sgtm.data.mixture import PreparedData, Rows
from sgtm.data.scores import score_file, write_scores
from sgtm.data.tokenize import read_manifest

_BATCH = 1024  # documents that are decoded together
_SAMPLE = 20_000  # documents that topics are found on
_LATENT = 50  # dimensions that texts are clustered in


def load_training(folder: Path) -> PreparedData:
    """Prepared data with the domains that it has, whatever their names."""
    found = read_manifest(folder)["counts"]["train"]
    domains = tuple(name for name in found if name not in ("adjacent", "retain"))
    if not domains:
        raise ConfigError(f"{folder} has no documents of a domain, so nothing can be missed; it has {list(found)}")
    return PreparedData.load(DataConfig(str(folder)), domains)


def score_by_topic(folder: Path, topics: int, seed: int = 0) -> Path:
    """Write the topic of every training document: each domain, and all other documents, are cut into ``topics``.

    k-means on the leading singular vectors of tf-idf weighted words. A labeller that errs by topic misses some parts of
    a domain as a whole.

    Raises:
        ConfigError: fewer documents than topics, or topics that are there already.
    """
    score_file(folder, "topic")
    data = load_training(folder)
    texts = _Texts(data)
    found = np.zeros(len(texts.numbers))
    for i, group in enumerate(np.unique(texts.groups)):
        where = np.flatnonzero(texts.groups == group)
        if topics < 2 or len(where) < topics:
            raise ConfigError(f"topics={topics}: use at least 2 and at most the {len(where)} documents of one group")
        found[where] = i * topics + _cluster(texts, where, topics, seed)
    return write_scores(folder, "topic", texts.numbers, found, {"topics": topics, "seed": seed})


def score_by_classifier(folder: Path, examples: int, features: str = "words", seed: int = 0) -> Path:
    """Write the scores of a classifier that was trained on ``examples`` random training documents and their categories.

    Each domain's documents get the score of their own domain, all others their highest; the examples themselves get
    cross-validated ones.

    Raises:
        ConfigError: too few examples, or scores that are there already.
    """
    score_file(folder, "classifier")
    data = load_training(folder)
    texts = _Texts(data)
    num_domains = len(data.train.domains)
    if not 2 * LEAST_EXAMPLES <= examples < len(texts.numbers):
        raise ConfigError(f"examples={examples}: use {2 * LEAST_EXAMPLES} to {len(texts.numbers) - 1} documents")
    rng = np.random.default_rng((seed, Stream.EXAMPLES))
    chosen = np.sort(rng.choice(len(texts.numbers), examples, replace=False))
    codes = np.where(texts.groups < num_domains, texts.groups, NO_DOMAIN)
    shown = [text for batch in texts.batches(chosen) for text in batch]
    classifier, own = fit(shown, codes[chosen], data.train.domains, features, seed)
    scores = np.concatenate([classifier.scores(batch) for batch in texts.batches(np.arange(len(texts.numbers)))])
    scores[chosen] = own
    mine = np.where(codes < 0, scores.max(1), scores[np.arange(len(codes)), codes])
    about = {"examples": examples, "features": features, "seed": seed}
    return write_scores(folder, "classifier", texts.numbers, mine, about)


class _Texts:
    """The training documents of prepared data as texts.

    Args:
        numbers: (documents,) document numbers.
        groups: (documents,) index of the document's domain; one more for all others.
    """

    def __init__(self, data: PreparedData) -> None:
        self.rows: Rows = data.train
        self.tokenizer = data.tokenizer
        order = np.argsort(self.rows.documents, kind="stable")
        self.numbers, first = np.unique(self.rows.documents[order], return_index=True)
        self.rows_of = np.split(order, first[1:])
        self.groups = np.minimum(self.rows.categories[order][first], len(self.rows.domains)).astype(np.int64)

    def batches(self, chosen: NDArray[np.int64]) -> Iterator[list[str]]:
        """Texts of the documents at the places ``chosen``, in that order."""
        for start in range(0, len(chosen), _BATCH):
            places = chosen[start : start + _BATCH]
            rows = np.concatenate([self.rows_of[i] for i in places])
            decoded = self.tokenizer.batch_decode(self.rows.data.select(rows)["input_ids"][:], skip_special_tokens=True)
            ends = np.cumsum([len(self.rows_of[i]) for i in places])
            yield [" ".join(part) for part in np.split(np.array(decoded, object), ends[:-1])]


def _cluster(texts: _Texts, where: NDArray[np.int64], topics: int, seed: int) -> NDArray[np.int64]:
    """(documents,) topics of the documents at the places ``where``."""
    from scipy.sparse import vstack
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    rng = np.random.default_rng((seed, Stream.TOPICS))
    sample = np.sort(rng.choice(where, min(_SAMPLE, len(where)), replace=False))
    count = featurise("words")
    x = vstack([count(batch) for batch in texts.batches(sample)]).tocsr()
    used = np.unique(x.indices)  # of very many hashed words
    latent = min(_LATENT, len(sample) - 1, len(used))
    kmeans = MiniBatchKMeans(topics, random_state=seed, n_init=10)
    model = make_pipeline(
        TfidfTransformer(sublinear_tf=True), TruncatedSVD(latent, random_state=seed), Normalizer(), kmeans
    )
    model.fit(x[:, used])
    found: NDArray[np.int64] = np.concatenate([model.predict(count(batch)[:, used]) for batch in texts.batches(where)])
    return found
