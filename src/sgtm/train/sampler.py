"""The order of training rows, by seed and epoch alone: every process draws the same one."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from sgtm.config import ConfigError, Stream

Order = NDArray[np.int64]


class ModeSampler(Sampler[int]):
    """Row indices, ``step_size`` of them for each optimizer step; a last step that is not full is left out.

    ``example``: every step holds each mode in about its share of the data. ``step``: all rows of a step have one mode,
    and steps come in random order (the paper's schedule).

    Args:
        modes: (rows,) mode codes.
        step_size: rows of one optimizer step over all processes and accumulated micro-batches.
    """

    def __init__(
        self, modes: NDArray[np.int8], step_size: int, mixing: Literal["example", "step"] = "example", seed: int = 0
    ) -> None:
        self.modes, self.step_size, self.mixing, self.seed, self.epoch = modes, step_size, mixing, seed, 0
        if not self._num_steps():
            raise ConfigError(
                f"batch_size={step_size} is more than the {len(modes)} training rows"
                f"{' of any one mode' if mixing == 'step' else ''}; use a smaller batch or more data"
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_steps() * self.step_size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, Stream.ORDER, self.epoch))
        groups = [rng.permutation(np.flatnonzero(self.modes == mode)) for mode in np.unique(self.modes)]
        order = _interleave(groups, rng) if self.mixing == "example" else steps_of(groups, self.step_size, rng).ravel()
        return iter(order[: len(self)].tolist())

    def _num_steps(self) -> int:
        sizes = np.unique(self.modes, return_counts=True)[1] if self.mixing == "step" else [len(self.modes)]
        return int(sum(size // self.step_size for size in sizes))


class StepDrawSampler(Sampler[tuple[int, int]]):
    """(row, mode): each step takes rows of one category and draws one mode for all of them, as the paper's code did.

    Args:
        categories: (rows,) category codes.
        chances: (num_categories, num_modes + 1) probabilities of each mode; the last column drops the step (a filter).
    """

    def __init__(
        self, categories: NDArray[np.int8], chances: NDArray[np.float64], step_size: int, seed: int = 0
    ) -> None:
        self.categories, self.chances, self.step_size, self.seed, self.epoch = categories, chances, step_size, seed, 0
        if not len(self):
            raise ConfigError(
                f"batch_size={step_size} is more than the training rows of any category, or all would be dropped; "
                "use a smaller batch or more data"
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._draw()[1]) * self.step_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        steps, modes = self._draw()
        return iter([(row, mode) for step, mode in zip(steps.tolist(), modes.tolist(), strict=True) for row in step])

    def _draw(self) -> tuple[Order, Order]:
        """(steps, step_size) rows and (steps,) modes of this epoch."""
        # The same modes in every epoch keep its length the same, which Trainer relies on.
        draws = np.random.default_rng((self.seed, Stream.DRAW))
        rng = np.random.default_rng((self.seed, Stream.ORDER, self.epoch))
        codes = np.unique(self.categories)
        groups = [rng.permutation(np.flatnonzero(self.categories == c)) for c in codes]
        num_steps = [len(group) // self.step_size for group in groups]
        drop = self.chances.shape[1] - 1
        drawn = [draws.choice(drop + 1, n, p=self.chances[c]) for c, n in zip(codes, num_steps, strict=True)]
        steps = [g[: n * self.step_size].reshape(n, self.step_size) for g, n in zip(groups, num_steps, strict=True)]
        all_steps, modes = np.concatenate(steps), np.concatenate(drawn)
        order = rng.permutation(np.flatnonzero(modes != drop))
        return all_steps[order], modes[order]


def steps_of(groups: list[Order], step_size: int, rng: np.random.Generator) -> Order:
    """(steps, step_size): whole steps of each group, in random order."""
    steps = [g[: len(g) // step_size * step_size].reshape(-1, step_size) for g in groups]
    return rng.permutation(np.concatenate(steps))


def _interleave(groups: list[Order], rng: np.random.Generator) -> Order:
    """All groups merged so that any stretch holds each in about its share."""
    places = np.concatenate([(np.arange(len(g)) + rng.random(len(g))) / len(g) for g in groups])
    merged: Order = np.concatenate(groups)[np.argsort(places, kind="stable")]
    return merged
