"""A process's share of an evaluation: together the processes take each row once."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed


class Share(NamedTuple):
    """Part ``rank`` of ``num`` of every batch of rows."""

    rank: int = 0
    num: int = 1

    @classmethod
    def of_process(cls) -> "Share":
        """This process's share among those that torchrun started; the whole where there is one."""
        if not distributed.is_initialized():
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """This part of a batch's rows; sizes differ by one at most, so some may be empty."""
        return rows[self.rank :: self.num]

    def sum(self, values: list[float], device: torch.device) -> list[float]:
        """Each value summed over all parts; every process must ask."""
        if self.num == 1:
            return values
        # Gloo and NCCL add doubles; MPS and the like have none, but no processes either.
        total = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return [float(value) for value in total]


WHOLE = Share()
