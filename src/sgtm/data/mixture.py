"""Prepared data -> what a run trains and is tested on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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

from sgtm.config import DOMAINS, Category, ConfigError, DataConfig, LabelConfig, categories, modes, nearest
from sgtm.config import labels as label_names
from sgtm.data.conditional import Control, with_control_tokens
from sgtm.data.labels import Codes, draw_labels, error_rates, modes_of
from sgtm.data.scores import read_scores, sum_by_document
from sgtm.data.token_loss import Masked, Unlikely
from sgtm.data.tokenize import MANIFEST, UNLABELED, read_manifest
from sgtm.data.tokenizer import load_tokenizer, tokenizer_hash
from sgtm.plain import misfit

Use = Literal["modes", "filter", "strict_filter", "everything", "mask", "unlikelihood", "condition"]
_FILTERS = ("filter", "strict_filter")
# (input_ids, label codes of the tokens, document) -> what is read and what is learned of a row; all three by token.
Treatment = Callable[[NDArray[Any], Codes, int], dict[str, Any]]


@dataclass(frozen=True)
class Rows:
    """Rows of one split: ``input_ids`` and, for each, its category, document number and (training) mode.

    Args:
        modes: (rows,) mode codes; where tokens have labels, the highest of a row's.
        domains: what category and mode codes stand for (see ``sgtm.config``).
        labels: (rows,) label codes, where the data comes with labels of documents or ``treat`` needs them.
        token_labels: label code of each of the data's own ``token_labels``, where it comes with labels of tokens.
        treat: what a method that trains all rows in one mode makes of a row by its labels.
        folder: where the prepared data lies, with scores of its documents.
    """

    data: Dataset
    categories: Codes
    documents: NDArray[np.int64]
    modes: Codes | None = None
    domains: tuple[str, ...] = DOMAINS
    labels: Codes | None = None
    token_labels: Codes | None = None
    treat: Treatment | None = None
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Row ``key``, or row and mode where a sampler draws the mode itself."""
        index, mode = self._index_and_mode(key)
        return self._example(index, mode, self.data[int(index)])

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[dict[str, Any]]:
        """The rows of a batch, for torch's loader: read from disk together, where input_ids are all that is needed."""
        if self.treat is not None or self.token_labels is not None:
            return [self[key] for key in keys]
        found = [self._index_and_mode(key) for key in keys]
        read = self._input_ids[[int(index) for index, _ in found]]["input_ids"]
        return [  # torch warns of arrays that cannot be written to, as those in place on disk
            self._example(i, mode, {"input_ids": ids if ids.flags.writeable else ids.copy()})
            for (i, mode), ids in zip(found, read, strict=True)
        ]

    @cached_property
    def _input_ids(self) -> Dataset:
        return self.data.select_columns(["input_ids"]).with_format("numpy")

    def _index_and_mode(self, key: int | tuple[int, int]) -> tuple[int, int | None]:
        return key if isinstance(key, tuple) else (key, None if self.modes is None else self.modes[key])

    def _example(self, index: int, mode: int | None, row: dict[str, Any]) -> dict[str, Any]:
        example: dict[str, Any] = {"input_ids": np.asarray(row["input_ids"])}
        if self.treat is not None:
            document = int(self.documents[index])
            example = self.treat(example["input_ids"], self._labels_of_tokens(int(index), row), document)
        if mode is None:
            return example
        if self.token_labels is None or self.treat is not None:
            return example | {"mode": int(mode)}
        labels = self._labels_of_tokens(int(index), row)
        # A position is trained in the mode of the token that it predicts.
        return example | {"mode": modes_of(np.append(labels[1:], labels[-1:]), self.domains)}

    def _labels_of_tokens(self, index: int, row: dict[str, Any]) -> Codes:
        if self.token_labels is not None:
            found: Codes = self.token_labels[np.asarray(row["token_labels"])]
            return found
        unlabeled = label_names(self.domains).index(UNLABELED)
        return np.full(len(row["input_ids"]), unlabeled if self.labels is None else self.labels[index], np.int8)

    def select(self, indices: NDArray[np.int64]) -> "Rows":
        """The rows at ``indices``, in that order."""
        return replace(
            self,
            data=self.data.select(indices),
            categories=self.categories[indices],
            documents=self.documents[indices],
            modes=None if self.modes is None else self.modes[indices],
            labels=None if self.labels is None else self.labels[indices],
        )

    def of(self, category: Category, limit: int | None = None, seed: int = 0) -> "Rows":
        """Rows of one category: all of them, or ``limit`` drawn without replacement."""
        found = np.flatnonzero(self.categories == categories(self.domains).index(category))
        if limit is not None and limit < len(found):
            found = np.sort(np.random.default_rng(seed).choice(found, limit, replace=False))
        return self.select(found)

    def labelled_by(self, labels: LabelConfig) -> "Rows":
        """The same rows, without the labels that they come with where ``labels`` sets these aside (``own: false``)."""
        return self if labels.own else replace(self, labels=None, token_labels=None)

    @property
    def has_labels(self) -> bool:
        """Whether they come with labels, of documents or of tokens."""
        return self.labels is not None or self.token_labels is not None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(rows,) tokens of each row."""
        whole = np.concatenate([pc.list_value_length(c).to_numpy() for c in self._chunks])
        selected = self.data._indices  # a selection keeps its indices beside the whole split
        lengths: NDArray[np.int64] = whole if selected is None else whole[selected.column(0).to_numpy()]
        return lengths.astype(np.int64)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max(initial=0))

    @property
    def largest_id(self) -> int:
        return max(pc.max(c.flatten()).as_py() or 0 for c in self._chunks)

    @property
    def smallest_id(self) -> int:
        return min(pc.min(c.flatten()).as_py() or 0 for c in self._chunks)

    @property
    def _chunks(self) -> list[pa.ListArray]:
        """``input_ids`` of the whole split, as they lie on disk."""
        chunks: list[pa.ListArray] = self.data.data.table["input_ids"].chunks
        return chunks

    @property
    def present(self) -> list[Category]:
        """The categories that have rows: domains first, then adjacent, retain."""
        known = categories(self.domains)
        return [known[code] for code in np.unique(self.categories)]


@dataclass(frozen=True)
class PreparedData:
    """Both splits and the tokenizer of a prepared set; with control tokens, for conditional training."""

    train: Rows
    test: Rows
    tokenizer: PreTrainedTokenizerBase
    control: Control | None = None

    @classmethod
    def load(cls, config: DataConfig, domains: tuple[str, ...] = DOMAINS) -> "PreparedData":
        """Read what ``sgtm data`` wrote, or sets that the paper's code prepared (``config.parts``).

        Args:
            domains: the categories that are to be removed.

        Raises:
            ConfigError: no data, a missing column or split, a category or label that is not known, or a tokenizer
                that does not fit the token ids.
        """
        if config.parts:
            train, test = (_join(config.parts, split, domains) for split in ("train", "test"))
            tokenizer = load_tokenizer(config.tokenizer)
        else:
            data, path = _load(config.path), config.path
            train, test = (_rows(_split(data, path, split), path, domains) for split in ("train", "test"))
            tokenizer = _own_tokenizer(Path(path))
        for rows in (train, test):
            _check_ids(rows, tokenizer, config.path or str(config.parts))
        return cls(train, test, tokenizer)

    def with_control(self, seed: int) -> "PreparedData":
        """The same data, to be trained on conditionally; ``tokenizer`` knows the control tokens."""
        tokenizer = with_control_tokens(self.tokenizer)
        return replace(self, tokenizer=tokenizer, control=Control.of(tokenizer, self.train.domains, seed))

    def for_removed(self, rows: Rows) -> Rows:
        """``rows`` as the removed model is given them: of a conditional one, every document is asked to be good."""
        if self.control is None:
            return rows
        return replace(rows, labels=None, token_labels=None, treat=self.control.good)

    @property
    def longest(self) -> int:
        """Tokens of the longest row of either split, control tokens included."""
        if self.control is None:
            return max(self.train.longest, self.test.longest)
        return max(self.control.longest(rows.data) for rows in (self.train, self.test))


def training_rows(
    rows: Rows, labels: LabelConfig, use: Use, seed: int, control: Control | None = None
) -> tuple[Rows, dict[str, int]]:
    """Label the training split and choose what a method trains on, and in which mode.

    Args:
        use: ``modes`` trains each row in the mode of its label. All others train in default mode: ``filter`` drops
            what is labelled forget, ``strict_filter`` what is adjacent as well; ``everything`` trains all rows;
            ``mask`` and ``unlikelihood`` read what is labelled forget but do not learn it, or make it unlikely;
            ``condition`` gives rows control tokens.
        control: of ``condition``.

    Returns:
        the rows, and how many rows have each "category as label".
    """
    rows = rows.labelled_by(labels)
    if labels.is_noisy and rows.has_labels:
        raise ConfigError(
            "the data comes with labels of its own, so labels.undiscovered, tpr, fpr, precision and recall have no "
            "meaning; give `--labels.undiscovered None` (null in a file), or labels.own false, which ignores the "
            "data's own labels"
        )
    everything, treat = np.zeros(len(rows), np.int8), _treatment(use, rows, control)
    if rows.token_labels is not None:
        labelled, counts = _with_token_labels(rows, use, everything, treat)
        return (_without_adjacent(labelled) if use == "strict_filter" else labelled), counts
    drawn = rows.labels
    if drawn is None:
        scores = None if labels.depends_on == "nothing" else _scores(rows, labels.depends_on)
        drawn = draw_labels(rows.categories, rows.documents, labels, seed, rows.domains, scores)
    counts = {
        f"{category} as {label}": int(((rows.categories == c) & (drawn == k)).sum())
        for c, category in enumerate(categories(rows.domains))
        for k, label in enumerate(label_names(rows.domains))
    }
    labelled = replace(rows, modes=modes_of(drawn, rows.domains) if use == "modes" else everything)
    if use in _FILTERS:
        labelled = labelled.select(np.flatnonzero(drawn >= len(rows.domains)))
        labelled = _without_adjacent(labelled) if use == "strict_filter" else labelled
    elif treat is not None:
        labelled = replace(labelled, labels=drawn, treat=treat)
    return labelled, {name: n for name, n in counts.items() if n}


def _without_adjacent(rows: Rows) -> Rows:
    return rows.select(np.flatnonzero(rows.categories != categories(rows.domains).index("adjacent")))


def _treatment(use: Use, rows: Rows, control: Control | None) -> Treatment | None:
    """What a method makes of a row by the labels of its tokens."""
    num_domains = len(rows.domains)
    if use == "condition":
        assert control is not None
        return control
    if use == "unlikelihood":
        return Unlikely(num_domains)
    return Masked(num_domains) if use in ("mask", *_FILTERS) else None


def _scores(rows: Rows, name: str) -> NDArray[np.float64]:
    """(rows,) what the labeller's errors depend on: a number of each row's document."""
    if rows.folder is None:
        raise ConfigError(f"labels.depends_on={name} needs data.path: sets in data.parts have no scores")
    if name != "length":
        return read_scores(rows.folder, name, rows.documents)
    if read_manifest(rows.folder)["settings"]["pack"]:
        raise ConfigError(
            f"labels.depends_on=length: the rows of {rows.folder} are packed, so all are equally long; prepare the "
            "data without --pack"
        )
    return sum_by_document(rows.documents, rows.lengths)


def _with_token_labels(rows: Rows, use: Use, everything: Codes, treat: Treatment | None) -> tuple[Rows, dict[str, int]]:
    codes, starts = _token_codes(rows)
    names = label_names(rows.domains)
    counts = {f"tokens as {names[k]}": int(n) for k, n in enumerate(np.bincount(codes, minlength=len(names))) if n}
    if use == "everything":
        return replace(rows, modes=everything, token_labels=None), counts
    if treat is not None:
        return replace(rows, modes=everything, treat=treat), counts
    return replace(rows, modes=np.maximum.reduceat(modes_of(codes, rows.domains), starts)), counts


def by_topic(rows: dict[Category, Rows], levels: int) -> dict[str, Rows]:
    """Rows of each category by the first ``levels`` parts of their topics' names: ``retain/Culture``.

    Raises:
        ConfigError: rows without topics.
    """
    found: dict[str, Rows] = {}
    for category, of_category in rows.items():
        if "topic" not in of_category.data.column_names:
            raise ConfigError(
                f"evaluate.topics={levels}: the data has no topics (`sgtm data wikipedia` writes them); leave it out"
            )
        names = np.array([".".join(t.split(".")[:levels]) for t in of_category.data["topic"]])
        for name in sorted(set(names)):
            found[f"{category}/{name}"] = of_category.select(np.flatnonzero(names == name))
    return found


def rows_in_mode(rows: Rows, code: int) -> NDArray[np.int64]:
    """Indices of the rows that are trained in the mode ``code``, or that have a predicted token which is."""
    assert rows.modes is not None
    if rows.token_labels is None:
        return np.flatnonzero(rows.modes == code)
    codes, starts = _token_codes(rows)
    is_in_mode = modes_of(codes, rows.domains) == code
    is_in_mode[starts] = False  # no position predicts the first token
    return np.flatnonzero(np.logical_or.reduceat(is_in_mode, starts))


def _token_codes(rows: Rows) -> tuple[Codes, NDArray[np.int64]]:
    """Label codes of all tokens, one row after the other, and where each row starts."""
    assert rows.token_labels is not None
    column = rows.data.with_format("arrow")[:]["token_labels"].combine_chunks()
    first = column.offsets[0].as_py()
    return rows.token_labels[column.values.to_numpy()[first:]], column.offsets.to_numpy()[:-1] - first


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows padded on the right to the longest: ``input_ids`` and ``labels`` (batch, seq), ``mode`` (batch,) or, where
    an example has one for each position, (batch, seq); ``unlikely`` (batch, seq) where examples have it.

    Labels are -100 at padding, which is told by its place and not by its token: end-of-text is trained on. A causal
    model never sees what stands to the right, so no attention mask is needed.
    """
    lengths = [len(e["input_ids"]) for e in examples]
    input_ids = torch.zeros(len(examples), max(lengths), dtype=torch.long)
    labels = torch.full_like(input_ids, -100)
    for i, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        input_ids[i, :length] = torch.as_tensor(example["input_ids"])
        labels[i, :length] = torch.as_tensor(example.get("labels", example["input_ids"]))
    batch = {"input_ids": input_ids, "labels": labels}
    if "unlikely" in examples[0]:
        batch["unlikely"] = torch.zeros_like(input_ids, dtype=torch.bool)
        for i, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            batch["unlikely"][i, :length] = torch.as_tensor(example["unlikely"])
    if "mode" not in examples[0]:
        return batch
    if np.ndim(examples[0]["mode"]) == 0:
        return batch | {"mode": torch.as_tensor(np.asarray([e["mode"] for e in examples]))}
    mode = torch.zeros_like(input_ids)
    for i, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        mode[i, :length] = torch.as_tensor(example["mode"])
        mode[i, length:] = mode[i, length - 1]  # padding is no default row
    return batch | {"mode": mode}


def step_draw_chances(rows: Rows, labels: LabelConfig, use: Use) -> NDArray[np.float64]:
    """(categories, modes + 1): chances of each mode for a step of one category; the last column drops the step."""
    if rows.has_labels:
        raise ConfigError(
            "train.mixing=step_draw draws labels, and the data comes with its own; use --train.mixing example, or step"
        )
    if use not in ("modes", "everything", *_FILTERS):
        raise ConfigError(
            "train.mixing=step_draw labels whole steps, and this method needs the labels of rows; use example"
        )
    if labels.depends_on != "nothing":
        raise ConfigError(
            f"labels.depends_on={labels.depends_on}: with train.mixing=step_draw a whole step has one label; use "
            "example or step"
        )
    known, num_domains = modes(rows.domains), len(rows.domains)
    num_categories = len(categories(rows.domains))
    is_forget = np.arange(num_categories) < num_domains
    tpr, fpr = error_rates(labels, rows.categories, rows.documents, num_domains)
    chances = np.zeros((num_categories, len(known) + 1))
    if use == "modes":
        for code in range(num_domains):
            mode = known.index(rows.domains[code])
            chances[:, mode] = np.where(is_forget, tpr * (np.arange(num_categories) == code), fpr / num_domains)
        chances[:, known.index("retain")] = np.where(is_forget, 0.0, labels.retain_fraction)
    elif use in _FILTERS:
        chances[:, -1] = np.where(is_forget, tpr, fpr)
        if use == "strict_filter":
            chances[categories(rows.domains).index("adjacent"), -1] = 1.0
    chances[:, known.index("default")] = 1 - chances.sum(1)
    return chances


def count_modes(rows: Rows) -> dict[str, int]:
    """Rows of each mode."""
    assert rows.modes is not None
    return {mode: int((rows.modes == code).sum()) for code, mode in enumerate(modes(rows.domains))}


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
    except Exception as error:  # of damaged files: Arrow's and the library's own, of many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path} is damaged ({reason[:200]}); prepare the data anew") from error


def _split(data: Any, path: str, split: str) -> Dataset:
    if isinstance(data, Dataset) or split not in data:
        raise ConfigError(f"{path} has no split {split!r}; it must have train and test")
    return data[split]


def _rows(data: Dataset, path: str, domains: tuple[str, ...]) -> Rows:
    if missing := {"input_ids", "category", "document"} - set(data.column_names):
        raise ConfigError(
            f"{path} has no column {sorted(missing)}; prepare it with `sgtm data`, or name sets prepared by the "
            "paper's code in data.parts"
        )
    table = data.data.table
    _check_table(table.select(["input_ids", "category", "document"]), path)
    codes = _codes(table["category"], categories(domains), path, "categories")
    given = token_labels = None
    if "token_labels" in data.column_names:
        names = read_manifest(Path(path)).get("token_labels")
        if misfit(names, [str]):
            raise ConfigError(f"{path}: the {MANIFEST} does not name its token_labels; prepare the data anew")
        token_labels = _codes(pa.chunked_array([names]), label_names(domains), path, "labels")
    elif "label" in data.column_names:
        given = _codes(pc.fill_null(table["label"], UNLABELED), label_names(domains), path, "labels")
    columns = ["input_ids", *(["topic"] if "topic" in data.column_names else [])]
    columns += [] if token_labels is None else ["token_labels"]
    documents = table["document"].to_numpy()
    kept = data.select_columns(columns)
    return Rows(kept, codes, documents, None, domains, given, token_labels, folder=Path(path))


def _check_table(table: pa.Table, path: str) -> None:
    """Raise a ConfigError for columns of other types than ``sgtm data`` writes, and for damaged ones."""
    kinds = {
        "input_ids": lambda t: pa.types.is_list(t) and pa.types.is_integer(t.value_type),
        "category": pa.types.is_string,
        "document": pa.types.is_integer,
    }
    for name, is_right in kinds.items():
        if not is_right(table[name].type) or table[name].null_count:
            raise ConfigError(f"{path}: the column {name} is {table[name].type}, or has gaps; prepare the data anew")
    try:
        table.validate(full=True)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is damaged ({' '.join(str(error).split())}); prepare the data anew") from error
    if pc.min(pc.list_value_length(table["input_ids"])).as_py() == 0:
        raise ConfigError(f"{path} has a row without tokens; prepare the data anew")


def _codes(column: pa.ChunkedArray, known: tuple[str, ...], path: str, what: str) -> Codes:
    codes = pc.index_in(column, value_set=pa.array(known))
    if codes.null_count:
        unknown = sorted(map(str, pc.unique(column.filter(pc.is_null(codes))).to_pylist()))
        near = next(filter(None, (nearest(name, known) for name in unknown)), "")
        remedy = f"{near} Where it is misspelt, prepare the data anew with it put right" if near else ""
        raise ConfigError(
            f"{path} has the {what} {unknown}; only {list(known)} are known: name the domains in partition.domains"
            f"{remedy}"
        )
    found: Codes = codes.to_numpy().astype(np.int8)
    return found


def _join(parts: dict[str, str], split: str, domains: tuple[str, ...]) -> Rows:
    """Rows of sets that the paper's code prepared: one folder a category, rows padded and with an attention mask."""
    known = categories(domains)
    if unknown := parts.keys() - set(known):
        raise ConfigError(f"data.parts has {sorted(unknown)}; its keys are categories: {list(known)}")
    data = {category: _split(_load(path), path, split) for category, path in parts.items()}
    joined = concatenate_datasets([d.map(_unpad, batched=True, remove_columns=d.column_names) for d in data.values()])
    codes = np.repeat([known.index(c) for c in data], [len(d) for d in data.values()])  # type: ignore[arg-type]
    return Rows(joined, codes.astype(np.int8), np.arange(len(joined)), None, domains)


def _unpad(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    masks = batch.get("attention_mask") or [[1] * len(ids) for ids in batch["input_ids"]]
    return {"input_ids": [ids[: sum(mask)] for ids, mask in zip(batch["input_ids"], masks, strict=True)]}


def _own_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(str(path / "tokenizer"))
    if read_manifest(path)["tokenizer_sha256"] != tokenizer_hash(tokenizer):
        raise ConfigError(
            f"{path / 'tokenizer'} is not the tokenizer that the data was prepared with ({MANIFEST} has another "
            "hash); put the right one back or prepare the data anew"
        )
    return tokenizer


def _check_ids(rows: Rows, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    if rows.smallest_id < 0:
        raise ConfigError(f"{path} has the token id {rows.smallest_id}: it is damaged; prepare the data anew")
    if rows.largest_id >= len(tokenizer):
        raise ConfigError(
            f"{path} has the token id {rows.largest_id}, but its tokenizer has {len(tokenizer)} entries: they do not "
            "belong together; give the tokenizer that the data was prepared with"
        )
