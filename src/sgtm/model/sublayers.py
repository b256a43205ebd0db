"""A decoder layer as *input projections -> units -> output projection*, twice: where units lie in each parameter."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sgtm.model.architectures import Architecture
from sgtm.model.split_linear import SplitLinearOut

UNITS = {"attn": "heads", "mlp": "neurons"}  # what a sublayer's units are called, by its kind


class Run(NamedTuple):
    """``units`` units of ``width`` features each, one after the other from feature ``first`` on."""

    first: int
    units: int
    width: int


@dataclass(frozen=True)
class Projection:
    """One projection, and how the units lie in those of its features that they own.

    An input projection has them among its outputs, perhaps in several runs (queries, keys, values); an output
    projection among its inputs.
    """

    module: nn.Module
    site: Literal["in", "out"]
    runs: tuple[Run, ...]

    def features(self, low: int, high: int, units: int) -> Iterator[tuple[int, int]]:
        """Features of units ``low:high`` of the sublayer's ``units``; a run has fewer if key/value heads are shared."""
        for run in self.runs:
            start, stop = (run.first + run.width * (unit * run.units // units) for unit in (low, high))
            yield start, stop

    def elements(self, start: int, stop: int) -> Iterator[tuple[str, int, int, int]]:
        """(parameter, dim, start, stop) of the elements that hold features ``start:stop``."""
        for name, dim, first in self.parameters():
            size = self.module.get_parameter(name).shape[dim]
            low, high = max(start - first, 0), min(stop - first, size)
            if low < high:
                yield name, dim, low, high

    def parameters(self) -> Iterator[tuple[str, int, int]]:
        """(parameter, dimension, first feature) of the parameters that hold the features in order."""
        module: Any = self.module
        if isinstance(module, SplitLinearOut) and self.site == "in":
            yield "weight_retain", 0, 0
            yield "weight_forget", 0, module.retain_features
            if module.bias_retain is not None:
                yield "bias_retain", 0, 0
                yield "bias_forget", 0, module.retain_features
            return
        yield "weight", int((self.site == "out") != isinstance(module, Conv1D)), 0
        if self.site == "in" and module.bias is not None:
            yield "bias", 0, 0


@dataclass(frozen=True)
class Sublayer:
    """Attention or MLP of one layer: ``units`` units, each of which writes ``width`` features.

    Args:
        group: units that stand or fall together: the heads that share a key and value head.
    """

    kind: Literal["attn", "mlp"]
    ins: tuple[Projection, ...]
    out: Projection
    units: int
    width: int
    group: int

    @property
    def projections(self) -> tuple[Projection, ...]:
        return (*self.ins, self.out)


def layers_of(model: PreTrainedModel, architecture: Architecture) -> nn.ModuleList:
    """The decoder blocks."""
    layers: nn.ModuleList = model.base_model.get_submodule(architecture.layers)  # type: ignore[assignment]
    return layers


def sublayers(model: PreTrainedModel, block: nn.Module, architecture: Architecture) -> Iterator[Sublayer]:
    """Attention and MLP of one block."""
    heads: int = model.config.num_attention_heads
    out = block.get_submodule(architecture.attn_out)
    width = _features(out, "out") // heads
    ins = []
    for path in architecture.attn_in:
        module = block.get_submodule(path)
        ins.append(Projection(module, "in", _attention_runs(module, architecture.attn_layout, heads, width)))
    fewest = min(run.units for projection in ins for run in projection.runs)
    yield Sublayer("attn", tuple(ins), Projection(out, "out", (Run(0, heads, width),)), heads, width, heads // fewest)
    if not architecture.mlp_out:
        return
    out = block.get_submodule(architecture.mlp_out)
    neurons = _features(out, "out")
    ins = []
    for path in architecture.mlp_in:
        module = block.get_submodule(path)
        repeats = _features(module, "in") // neurons  # 2 where gate and up projections are one
        ins.append(Projection(module, "in", tuple(Run(i * neurons, neurons, 1) for i in range(repeats))))
    yield Sublayer("mlp", tuple(ins), Projection(out, "out", (Run(0, neurons, 1),)), neurons, 1, 1)


def _attention_runs(module: nn.Module, layout: str, heads: int, width: int) -> tuple[Run, ...]:
    features = _features(module, "in")
    if layout == "separate":
        return (Run(0, features // width, width),)
    shared = (features // width - heads) // 2  # key heads, and as many value heads
    if layout == "interleaved":  # each key and value head behind the query heads that share it
        return (Run(0, shared, features // shared),)
    queries, keys = heads * width, shared * width
    return Run(0, heads, width), Run(queries, shared, width), Run(queries + keys, shared, width)


def _features(module: Any, site: Literal["in", "out"]) -> int:
    """How many features units have on their side of the projection."""
    if isinstance(module, SplitLinearOut):
        features: int = module.out_features if site == "in" else module.in_features
        return features
    return int(module.weight.shape[int((site == "out") != isinstance(module, Conv1D))])
