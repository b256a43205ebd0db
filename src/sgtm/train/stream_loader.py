"""The loader of a stream, which says in each checkpoint where every process stands and goes on from there."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sgtm.config import ConfigError
from sgtm.data.stream import ModeStream

_SNAPSHOT = 32  # batches between two states that workers send; a resumed run reads as many again, at most


class StreamLoader(TrainerCallback):
    """Batches of this process's share of a ``ModeStream``.

    Without workers the stream itself is asked where it stands; workers need torchdata's ``StatefulDataLoader``.
    """

    def __init__(self, stream: ModeStream, args: TrainingArguments, collate: Callable[[list[Any]], Any]) -> None:
        self.stream, self.process, self.processes = stream, args.process_index, args.world_size
        stream.rank, stream.world = args.process_index, args.world_size
        workers, pinned = args.dataloader_num_workers, args.dataloader_pin_memory and args.device.type == "cuda"
        settings: dict[str, Any] = {"num_workers": workers, "snapshot_every_n_steps": _SNAPSHOT} if workers else {}
        kind: Any = _stateful_loader() if workers else DataLoader
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*set_vital.*")  # torchdata still calls what torch 2.13 deprecates
            loader: Any = kind(stream, args.train_batch_size, collate_fn=collate, pin_memory=pinned, **settings)
        self.loader: Any = loader if args.device.type == "cpu" else OnDevice(loader, args.device, pinned)
        self.state: Any = loader if workers else stream

    @classmethod
    def of(cls, rows: Any, args: TrainingArguments, collate: Callable[[list[Any]], Any]) -> "StreamLoader | None":
        """The loader of ``rows`` if they are a stream; then a resumed Trainer has nothing to skip."""
        if not isinstance(rows, ModeStream):
            return None
        args.ignore_data_skip = True
        return cls(rows, args, collate)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        torch.save(self.state.state_dict(), self._file(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"))

    def go_on_from(self, checkpoint: Path) -> None:
        """Let the next batch be the one that followed ``checkpoint``.

        Raises:
            ConfigError: it was written by another number of processes.
        """
        file = self._file(checkpoint)
        if not file.is_file():
            raise ConfigError(f"{checkpoint} has no {file.name}; go on with as many processes as wrote it")
        self.state.load_state_dict(torch.load(file, weights_only=True))

    def _file(self, checkpoint: Path) -> Path:
        return checkpoint / f"stream-{self.process}-of-{self.processes}.pt"


class OnDevice:
    """A loader whose batches are on ``device`` when they come, as accelerate's are; for pinned ones nothing waits."""

    def __init__(self, loader: Any, device: torch.device, pinned: bool) -> None:
        self._loader, self._device, self._pinned = loader, device, pinned

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield send_to_device(batch, self._device, non_blocking=self._pinned)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _stateful_loader() -> type[Any]:
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError as error:
        raise ConfigError(
            "dataloader_num_workers > 0 with a stream needs torchdata, to resume it: pip install torchdata"
        ) from error
    return StatefulDataLoader  # type: ignore[no-any-return]
