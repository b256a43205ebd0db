"""accelerate shards on accelerators alone: let it shard over gloo on the CPU too, by its own code. `... COMMAND` is
`sgtm COMMAND` with that.

``AcceleratorState`` reads the FSDP plugin only where processes have accelerators, and trains with DDP elsewhere without
a word. Nothing else in it, or in ``transformers.Trainer``, minds.
"""

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def shard_on_cpu() -> None:
    """From now on ``TrainingArguments(fsdp=True)`` shards in processes of torchrun without accelerators."""
    plain = AcceleratorState.__init__

    def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = with_fsdp


if __name__ == "__main__":
    from sgtm.cli import main

    shard_on_cpu()
    main()
