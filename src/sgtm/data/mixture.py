"""Prepared data -> what a run trains and is tested on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sgtm.config import CATEGORIES, LABELS, MODES, Category, ConfigError, DataConfig, LabelConfig
from sgtm.data.labels import Codes, draw_labels, error_rates, modes_of
from sgtm.data.tokenize import MANIFEST, load_tokenizer, tokenizer_hash

Use = Literal["modes", "filter", "everything"]


@dataclass(frozen=True)
class Rows:
    """Rows of one split: ``input_ids`` and, for each, its category, document number and (training) mode."""

    data: Dataset
    categories: Codes
    documents: NDArray[np.int64]
    modes: Codes | None = None

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Row ``key``, or row and mode where a sampler draws the mode itself."""
        index, mode = key if isinstance(key, tuple) else (key, None if self.modes is None else self.modes[key])
        ids = np.asarray(self.data[int(index)]["input_ids"])
        return {"input_ids": ids} if mode is None else {"input_ids": ids, "mode": int(mode)}

    def select(self, indices: NDArray[np.int64]) -> "Rows":
        modes = None if self.modes is None else self.modes[indices]
        return Rows(self.data.select(indices), self.categories[indices], self.documents[indices], modes)

    def of(self, category: Category, limit: int | None = None, seed: int = 0) -> "Rows":
        """Rows of one category: all of them, or ``limit`` drawn without replacement."""
        found = np.flatnonzero(self.categories == CATEGORIES.index(category))
        if limit is not None and limit < len(found):
            found = np.sort(np.random.default_rng(seed).choice(found, limit, replace=False))
        return self.select(found)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(pc.max(pc.list_value_length(c)).as_py() or 0 for c in self._chunks)

    @property
    def largest_id(self) -> int:
        return max(pc.max(c.flatten()).as_py() or 0 for c in self._chunks)

    @property
    def _chunks(self) -> list[pa.ListArray]:
        """``input_ids`` of the whole split, as they lie on disk."""
        chunks: list[pa.ListArray] = self.data.data.table["input_ids"].chunks
        return chunks

    @property
    def present(self) -> list[Category]:
        """The categories that have rows, in the order forget, adjacent, retain."""
        return [CATEGORIES[code] for code in np.unique(self.categories)]


@dataclass(frozen=True)
class PreparedData:
    """Both splits and the tokenizer of a prepared set."""

    train: Rows
    test: Rows
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, config: DataConfig) -> "PreparedData":
        """Read what ``sgtm data`` wrote, or sets that the paper's code prepared (``config.parts``).

        Raises:
            ConfigError: no data, a missing column or split, or a tokenizer that does not fit the token ids.
        """
        if config.parts:
            train, test = (_join(config.parts, split) for split in ("train", "test"))
            tokenizer = load_tokenizer(config.tokenizer)
        else:
            train, test = (
                _rows(_split(_load(config.path), config.path, split), config.path) for split in ("train", "test")
            )
            tokenizer = _own_tokenizer(Path(config.path))
        for rows in (train, test):
            _check_ids(rows, tokenizer, config.path or str(config.parts))
        return cls(train, test, tokenizer)


def training_rows(rows: Rows, labels: LabelConfig, use: Use, seed: int) -> tuple[Rows, dict[str, int]]:
    """Label the training split and choose what a method trains on, and in which mode.

    Args:
        use: ``modes`` trains each row in the mode of its label; ``filter`` drops rows labelled forget and trains the
            rest in default mode; ``everything`` trains all rows in default mode.

    Returns:
        the rows, and how many rows have each "category as label".
    """
    drawn = draw_labels(rows.categories, rows.documents, labels, seed)
    counts = {
        f"{category} as {label}": int(((rows.categories == c) & (drawn == k)).sum())
        for c, category in enumerate(CATEGORIES)
        for k, label in enumerate(LABELS)
    }
    modes = modes_of(drawn) if use == "modes" else np.zeros(len(rows), np.int8)
    labelled = Rows(rows.data, rows.categories, rows.documents, modes)
    if use == "filter":
        labelled = labelled.select(np.flatnonzero(drawn != LABELS.index("forget")))
    return labelled, {name: n for name, n in counts.items() if n}


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows padded on the right to the longest: ``input_ids`` and ``labels`` (batch, seq), ``mode`` (batch,).

    Labels are -100 at padding, which is told by its place and not by its token: end-of-text is trained on. A causal
    model never sees what stands to the right, so no attention mask is needed.
    """
    lengths = [len(e["input_ids"]) for e in examples]
    input_ids = torch.zeros(len(examples), max(lengths), dtype=torch.long)
    labels = torch.full_like(input_ids, -100)
    for i, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        input_ids[i, :length] = labels[i, :length] = torch.as_tensor(example["input_ids"])
    batch = {"input_ids": input_ids, "labels": labels}
    if "mode" in examples[0]:
        batch["mode"] = torch.tensor([e["mode"] for e in examples])
    return batch


def step_draw_chances(rows: Rows, labels: LabelConfig, use: Use) -> NDArray[np.float64]:
    """(categories, modes + 1): chances of each mode for a step of one category; the last column drops the step."""
    is_forget = np.arange(len(CATEGORIES)) == CATEGORIES.index("forget")
    tpr, fpr = error_rates(labels, rows.categories, rows.documents)
    as_forget = np.where(is_forget, tpr, fpr)
    as_retain = np.where(is_forget, 0.0, labels.retain_fraction)
    chances = np.zeros((len(CATEGORIES), len(MODES) + 1))
    if use == "modes":
        chances[:, MODES.index("forget")], chances[:, MODES.index("retain")] = as_forget, as_retain
    elif use == "filter":
        chances[:, -1] = as_forget
    chances[:, MODES.index("default")] = 1 - chances.sum(1)
    return chances


def count_modes(rows: Rows) -> dict[str, int]:
    assert rows.modes is not None
    return {mode: int((rows.modes == code).sum()) for code, mode in enumerate(MODES)}


def _load(path: str) -> Any:
    if not path:
        raise ConfigError("data.path is not set; prepare data with `sgtm data ...` and give its folder")
    try:
        return load_from_disk(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"data.path={path} holds no prepared data; write it with `sgtm data ... --out {path}`"
        ) from error
    except IndexError as error:  # what datasets gives for a split that was saved without rows
        raise ConfigError(f"{path} has a split that is empty; prepare the data anew with more documents") from error


def _split(data: Any, path: str, split: str) -> Dataset:
    if isinstance(data, Dataset) or split not in data:
        raise ConfigError(f"{path} has no split {split!r}; it must have train and test")
    return data[split]


def _rows(data: Dataset, path: str) -> Rows:
    if missing := {"input_ids", "category", "document"} - set(data.column_names):
        raise ConfigError(
            f"{path} has no column {sorted(missing)}; prepare it with `sgtm data`, or name sets prepared by the "
            "paper's code in data.parts"
        )
    table = data.data.table
    codes = pc.index_in(table["category"], value_set=pa.array(CATEGORIES))
    if codes.null_count:
        unknown = pc.unique(table["category"].filter(pc.is_null(codes))).to_pylist()
        raise ConfigError(f"{path} has the categories {unknown}; only {list(CATEGORIES)} are known")
    return Rows(data.select_columns("input_ids"), codes.to_numpy().astype(np.int8), table["document"].to_numpy())


def _join(parts: dict[str, str], split: str) -> Rows:
    """Rows of sets that the paper's code prepared: one folder a category, rows padded and with an attention mask."""
    if unknown := parts.keys() - set(CATEGORIES):
        raise ConfigError(f"data.parts has {sorted(unknown)}; its keys are categories: {list(CATEGORIES)}")
    data = {category: _split(_load(path), path, split) for category, path in parts.items()}
    joined = concatenate_datasets([d.map(_unpad, batched=True, remove_columns=d.column_names) for d in data.values()])
    codes = np.repeat([CATEGORIES.index(c) for c in data], [len(d) for d in data.values()])  # type: ignore[arg-type]
    return Rows(joined, codes.astype(np.int8), np.arange(len(joined)))


def _unpad(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    masks = batch.get("attention_mask") or [[1] * len(ids) for ids in batch["input_ids"]]
    return {"input_ids": [ids[: sum(mask)] for ids, mask in zip(batch["input_ids"], masks, strict=True)]}


def _own_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(str(path / "tokenizer"))
    if not (path / MANIFEST).is_file():
        raise ConfigError(f"{path} has no {MANIFEST}, so its tokenizer cannot be checked; prepare it with `sgtm data`")
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest["tokenizer_sha256"] != tokenizer_hash(tokenizer):
        raise ConfigError(
            f"{path / 'tokenizer'} is not the tokenizer that the data was prepared with ({MANIFEST} has another "
            "hash); put the right one back or prepare the data anew"
        )
    return tokenizer


def _check_ids(rows: Rows, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    if rows.largest_id >= len(tokenizer):
        raise ConfigError(
            f"{path} has the token id {rows.largest_id}, but its tokenizer has {len(tokenizer)} entries: they do not "
            "belong together; give the tokenizer that the data was prepared with"
        )
