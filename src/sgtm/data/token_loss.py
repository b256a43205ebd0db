"""SLUNG: text labelled for a domain is read, and not learned to be written (Wang et al. 2025, arXiv:2505.03052).

With l_i = 1 for tokens labelled for a domain, the loss of a row x is

    L(x) = - sum_i [ (1 - l_i) log p(x_i | x_<i) + l_i f(x_i | x_<i) ]

and f = 0 (masking) or f = log(1 - p(x_i | x_<i)) (unlikelihood, computed in ``sgtm.train.unlikelihood``). Where no
tokens but whole documents are labelled, all tokens of a labelled row are. Labelled tokens stay in the context of those
that follow; of a row that is labelled as a whole, masking leaves nothing to learn: it is then a filter that takes the
row's place in its step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Masked:
    """Labelled tokens are no target: f = 0. (A filter of tokens does the same.)"""

    num_domains: int

    def __call__(self, ids: NDArray[Any], codes: NDArray[Any], document: int) -> dict[str, Any]:
        """``labels`` (tokens,): -100 where ``codes`` (tokens,), of labels, say a domain."""
        return {"input_ids": ids, "labels": np.where(codes < self.num_domains, -100, ids)}


@dataclass(frozen=True)
class Unlikely:
    """Labelled tokens are made unlikely: f = log(1 - p)."""

    num_domains: int

    def __call__(self, ids: NDArray[Any], codes: NDArray[Any], document: int) -> dict[str, Any]:
        """``unlikely`` (tokens,): true where ``codes`` (tokens,), of labels, say a domain."""
        return {"input_ids": ids, "unlikely": codes < self.num_domains}
