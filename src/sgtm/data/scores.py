"""Numbers of documents that a labeller's errors may depend on: ``DATA/scores/NAME.parquet``, beside prepared data.

Columns: ``document`` (its number in the training split) and ``score``. The file's metadata say how they were made.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sgtm.config import ConfigError

FOLDER = "scores"
_ABOUT = b"sgtm"


def write_scores(folder: Path, name: str, documents: NDArray[np.int64], scores: Any, about: dict[str, Any]) -> Path:
    """Write one score a document, and what was done; returns the file.

    Raises:
        ConfigError: there are such scores already.
    """
    file = score_file(folder, name)
    file.parent.mkdir(exist_ok=True)
    table = pa.table({"document": documents, "score": np.asarray(scores, np.float64)})
    partial = file.with_suffix(".partial")
    pq.write_table(table.replace_schema_metadata({_ABOUT: json.dumps(about)}), partial)
    partial.rename(file)
    return file


def score_file(folder: Path, name: str) -> Path:
    """Where new scores go.

    Raises:
        ConfigError: there are some already.
    """
    file = folder / FOLDER / f"{name}.parquet"
    if file.exists():
        about = (pq.read_schema(file).metadata or {}).get(_ABOUT, b"{}").decode()
        raise ConfigError(f"{file} exists already (made with {about}); remove it for other scores")
    return file


def read_scores(folder: Path, name: str, documents: NDArray[np.int64]) -> NDArray[np.float64]:
    """(rows,) the score of each row's document.

    Raises:
        ConfigError: no such scores, or not of these documents.
    """
    file = folder / FOLDER / f"{name}.parquet"
    if not file.is_file():
        raise ConfigError(f"{folder} has no scores {name!r}; make them with `sgtm data score {folder} --by {name}`")
    table = pq.read_table(file).sort_by("document")
    known, scores = (table[column].to_numpy() for column in ("document", "score"))
    places = np.minimum(np.searchsorted(known, documents), max(len(known) - 1, 0))
    if not len(known) or (known[places] != documents).any():
        raise ConfigError(f"{file} lacks documents of {folder}: it belongs to other data; remove it and score anew")
    found: NDArray[np.float64] = scores[places]
    return found


def sum_by_document(documents: NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.float64]:
    """(rows,) the sum of ``values`` (rows,) over all rows of each row's document."""
    row_of = np.unique(documents, return_inverse=True)[1]
    return np.bincount(row_of, values)[row_of].astype(np.float64)
