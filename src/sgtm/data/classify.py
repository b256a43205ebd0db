"""A classifier of texts from a few hundred examples: log tf-idf of hashed n-grams, or an encoder, and one linear layer.

Logistic regression (a weight against each class's rarity), calibrated by Platt's method on cross-validated decisions:
the two together are again linear, so a classifier is a matrix, and is stored as safetensors.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sgtm.config import ConfigError, check_shape
from sgtm.plain import from_json

Floats: TypeAlias = NDArray[np.float64]
NO_DOMAIN = -1  # the code of an example that belongs to none
LEAST_EXAMPLES = 4  # of each class, to fit and calibrate
_NUM_FEATURES = 2**18
_NGRAMS: dict[str, dict[str, Any]] = {
    "words": {"analyzer": "word", "ngram_range": (1, 1)},
    "characters": {"analyzer": "char_wb", "ngram_range": (1, 3)},
}
_FOLDS = 5
_INVERSE_RIDGE = 100.0  # rows have unit norm
_ENCODER_BATCH = 32


@dataclass(frozen=True)
class Classifier:
    """score of domain d = sigmoid(x . weight[d] + bias[d]): the chance that a text with features x belongs to it.

    Args:
        domains: one against all others, each.
        features: ``words``, ``characters``, or the name or folder of a Hugging Face encoder.
        idf: (features,) of n-grams; (0,) for an encoder.
        weight: (domains, features).
        bias: (domains,).
    """

    domains: tuple[str, ...]
    features: str
    idf: Floats
    weight: Floats
    bias: Floats

    def scores(self, texts: Sequence[str]) -> Floats:
        """(texts, domains), each 0 to 1."""
        return _sigmoid(self._x(texts) @ self.weight.T + self.bias)

    def shifted(self, shares: Floats, prevalences: Floats) -> "Classifier":
        """For data where domains are as frequent as ``prevalences`` (domains,), not as ``shares`` in the examples."""
        return replace(self, bias=self.bias + _log_odds(prevalences) - _log_odds(shares))

    def save(self, file: Path) -> None:
        from safetensors.numpy import save_file

        about = json.dumps({"domains": self.domains, "features": self.features})
        tensors = {"idf": self.idf, "weight": self.weight, "bias": self.bias}
        save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, file, {"classifier": about})

    @classmethod
    def load(cls, file: Path) -> "Classifier":
        """Read what ``save`` wrote.

        Raises:
            ConfigError: it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "np") as stored:
                about = from_json((stored.metadata() or {})["classifier"])
                tensors = [stored.get_tensor(name) for name in ("idf", "weight", "bias")]
            check_shape(about, {"domains": [str], "features": str}, file, "label anew")
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ConfigError(f"{file} holds no classifier ({error}); label anew, into another --out") from error
        return cls(tuple(about["domains"]), about["features"], *tensors)

    def _x(self, texts: Sequence[str]) -> Any:
        x = featurise(self.features)(texts)
        return self._tfidf.transform(x) if len(self.idf) else x

    @cached_property
    def _tfidf(self) -> Any:
        transformer = _tfidf()
        transformer.n_features_in_ = len(self.idf)
        transformer.idf_ = self.idf
        return transformer


def fit(
    texts: Sequence[str], codes: NDArray[np.int64], domains: tuple[str, ...], features: str, seed: int = 0
) -> tuple[Classifier, Floats]:
    """A calibrated classifier, and the cross-validated scores (texts, domains) of its own examples.

    Args:
        texts: the examples.
        codes: (texts,) index into ``domains``, or ``NO_DOMAIN``.
        features: see ``Classifier``.

    Raises:
        ConfigError: too few examples of a domain or of none, examples that cannot be told apart, or no such encoder.
    """
    x, idf = featurise(features)(texts), np.zeros(0)
    if features in _NGRAMS:
        tfidf = _tfidf().fit(x)
        x, idf = tfidf.transform(x), tfidf.idf_
    # N-grams that no example has get no weight; without them the fit is many times faster.
    used = np.flatnonzero(np.asarray(abs(x).sum(0)).ravel())
    weight, bias = np.zeros((len(domains), x.shape[1])), np.zeros(len(domains))
    scores = np.zeros((len(texts), len(domains)))
    for code, domain in enumerate(domains):
        weight[code, used], bias[code], decisions = _fit_one(x[:, used], codes == code, domain, seed)
        scores[:, code] = _sigmoid(decisions)
    return Classifier(domains, features, idf, weight, bias), scores


def _fit_one(x: Any, is_domain: NDArray[np.bool_], domain: str, seed: int) -> tuple[Floats, float, Floats]:
    """Weight (features,), bias and cross-validated decisions (texts,) of one domain against the rest, calibrated."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    fewest = int(min(is_domain.sum(), (~is_domain).sum()))
    if fewest < LEAST_EXAMPLES:
        raise ConfigError(
            f"{is_domain.sum()} examples of {domain} and {(~is_domain).sum()} of others to train on: too few; label "
            f"more (at least {LEAST_EXAMPLES} of each; a few hundred make a good classifier)"
        )
    model = LogisticRegression(C=_INVERSE_RIDGE, class_weight="balanced", max_iter=1000)
    folds = StratifiedKFold(min(_FOLDS, fewest), shuffle=True, random_state=seed)
    decisions = cross_val_predict(model, x, is_domain, cv=folds, method="decision_function")
    slope, offset = platt(decisions, is_domain)
    if slope <= 0:
        raise ConfigError(
            f"the examples of {domain} cannot be told from the others by these features (cross-validated decisions are "
            "no better than chance); label more examples, or use other features"
        )
    model.fit(x, is_domain)
    return slope * model.coef_[0], slope * model.intercept_[0] + offset, slope * decisions + offset


def platt(decisions: Floats, is_domain: NDArray[np.bool_]) -> tuple[float, float]:
    """(slope, offset) of sigmoid(slope x decision + offset), fitted to Platt's smoothed targets (n + 1) / (n + 2)."""
    from sklearn.linear_model import LogisticRegression

    num_domain, num_other = int(is_domain.sum()), int((~is_domain).sum())
    target = np.where(is_domain, (num_domain + 1) / (num_domain + 2), 1 / (num_other + 2))
    twice = np.concatenate([decisions, decisions])[:, None]
    says = np.repeat([True, False], len(decisions))
    model = LogisticRegression(C=1e6).fit(twice, says, np.concatenate([target, 1 - target]))
    return float(model.coef_[0, 0]), float(model.intercept_[0])


@lru_cache(maxsize=1)
def featurise(features: str) -> Callable[[Sequence[str]], Any]:
    """Texts -> matrix (texts, features): sparse counts of n-grams, or an encoder's embeddings of unit norm."""
    if features not in _NGRAMS:
        return _encoder(features)
    from sklearn.feature_extraction.text import HashingVectorizer

    # Counts, not signed: idf needs to know how many texts have an n-gram.
    vectorizer = HashingVectorizer(n_features=_NUM_FEATURES, alternate_sign=False, norm=None, **_NGRAMS[features])
    transform: Callable[[Sequence[str]], Any] = vectorizer.transform
    return transform


def _tfidf() -> Any:
    from sklearn.feature_extraction.text import TfidfTransformer

    return TfidfTransformer(sublinear_tf=True)


def _encoder(name: str) -> Callable[[Sequence[str]], Floats]:
    """Mean of the last hidden states over a text's tokens (as many as the encoder takes), of unit norm."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"features={name!r} is none of {list(_NGRAMS)}, and no encoder in a folder or on the Hub "
            f"({str(error).splitlines()[0]})"
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.eval().to(device)
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> Floats:
        found = []
        for i in range(0, len(texts), _ENCODER_BATCH):
            batch = tokenizer(
                list(texts[i : i + _ENCODER_BATCH]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            ).to(device)
            hidden = model(**batch).last_hidden_state.float()  # (batch, seq, hidden)
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            found.append(torch.nn.functional.normalize(mean, dim=-1).double().cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, model.config.hidden_size))

    return embed


def shift(scores: Floats, shares: Floats, prevalences: Floats) -> Floats:
    """Scores (texts, domains) as ``Classifier.shifted`` would give them."""
    return _sigmoid(_log_odds(scores) + _log_odds(prevalences) - _log_odds(shares))


def _log_odds(share: Floats) -> Floats:
    return np.log(share) - np.log1p(-share)


def _sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(x / 2))
