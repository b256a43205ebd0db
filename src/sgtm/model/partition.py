"""Every parameter is retain, forget or joint: a partition is a list of slices.

A **unit** is an attention head or an MLP neuron. It owns rows of the input projections and columns of the output
projection. Units can be permuted without changing the function of the model, so "the last k units of a layer" is the
general case: all slices are contiguous.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sgtm.config import nearest
from sgtm.model.architectures import Architecture, architecture_of
from sgtm.model.split_linear import SplitLinearOut

Site = Literal["attn.in", "attn.out", "mlp.in", "mlp.out"]
Side = Literal["in", "out"]
JOINT_GROUPS = ("embeddings", "norms", "final_norm", "head")


class Slice(NamedTuple):
    """Elements ``start:stop`` along ``dim`` of one parameter.

    The parameter is looked up at each use: loading, moving and sharding a model replace its parameters.
    """

    module: nn.Module
    name: str  # of the parameter, from the model's root
    dim: int
    start: int
    stop: int
    site: Site
    layer: int

    @property
    def param(self) -> nn.Parameter:
        return self.module.get_parameter(self.name.rpartition(".")[2])

    @property
    def is_whole(self) -> bool:
        return self.stop - self.start == self.param.shape[self.dim]

    @property
    def is_output_bias(self) -> bool:
        """Whether it is the bias of an output projection: retain, but of no unit."""
        return self.site.endswith(".out") and self.param.ndim == 1

    @property
    def numel(self) -> int:
        return self.of(self.param).numel()

    def of(self, tensor: Tensor) -> Tensor:
        """The same elements of a ``tensor`` shaped like the parameter (weight, gradient, an optimizer's state)."""
        return tensor.narrow(self.dim, self.start, self.stop - self.start)


class Writer(NamedTuple):
    """An output projection, and which of its input features forget units write: ``split:``."""

    module: nn.Module
    split: int


@dataclass(frozen=True, eq=False)
class Partition:
    """``retain`` and ``forget`` slices of ``model``; all other parameters are ``joint``.

    The last ``heads`` attention heads and ``neurons`` MLP neurons of each layer in ``layers`` are forget units
    (h_forget and d_forget of arXiv:2512.05648 section 3). The biases of output projections are added whether or not
    a unit is there: they are retain.
    """

    model: PreTrainedModel
    architecture: Architecture
    heads: int
    neurons: int
    layers: tuple[int, ...]
    retain: tuple[Slice, ...]
    forget: tuple[Slice, ...]
    writers: tuple[Writer, ...]

    @classmethod
    def of(
        cls, model: PreTrainedModel, heads: int = 0, neurons: int = 0, layers: Sequence[int] | None = None
    ) -> "Partition":
        """Partition a supported Hugging Face decoder.

        Args:
            model: a causal language model, or its base model.
            heads: forget heads of each layer; whole key/value groups where these are shared.
            neurons: forget neurons of each layer.
            layers: indices of the layers that have forget units; all by default.

        Raises:
            ValueError: an unknown family, no forget units, more than there are, or a split key/value group.
        """
        architecture = architecture_of(model)
        blocks = _layers(model, architecture)
        chosen = tuple(range(len(blocks))) if layers is None else tuple(layers)
        _check_layers(chosen, len(blocks))
        if heads == neurons == 0:
            raise ValueError("heads=0 and neurons=0 leave no forget units; give at least one of them")
        names = {id(module): name for name, module in model.named_modules()}
        retain: list[Slice] = []
        forget: list[Slice] = []
        writers: list[Writer] = []
        for layer in chosen:
            for sublayer in _sublayers(model, blocks[layer], architecture, heads, neurons):
                for site, module, side, runs in sublayer.projections():
                    where = (module, names[id(module)], side, site, layer)
                    retain += _slices(*where, *runs[0])
                    forget += _slices(*where, *runs[1])
                retain += _output_bias(sublayer.out, names[id(sublayer.out)], sublayer.kind, layer)
                writers.append(Writer(sublayer.out, sublayer.width * (sublayer.units - sublayer.forget)))
        return cls(model, architecture, heads, neurons, chosen, tuple(retain), tuple(forget), tuple(writers))

    @property
    def joint(self) -> dict[str, nn.Parameter]:
        """Parameters that no unit owns: embeddings, norms, head, and layers without forget units."""
        owned = {s.name for s in (*self.retain, *self.forget)}
        return {name: p for name, p in self.model.named_parameters() if name not in owned}

    def select_joint(self, names: Iterable[str]) -> tuple[str, ...]:
        """Names of the joint parameters meant by ``names``.

        Args:
            names: groups (``embeddings``, ``norms`` of the blocks with forget units, ``final_norm``, ``head``) or
                globs of parameter names such as ``transformer.wte.*``; a leading path may be left out.

        Raises:
            ValueError: a name that matches no joint parameter.
        """
        chosen: set[str] = set()
        joint, names = tuple(self.joint), (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            globs = self._globs(name)
            found = [j for j in joint if any(fnmatchcase(j, g) or fnmatchcase(j, f"*.{g}") for g in globs)]
            # A tied head is the embedding: asking for it as well is no mistake, asking for nothing else is.
            if not found and (name != "head" or set(names) == {"head"}):
                hint = nearest(name, (*JOINT_GROUPS, *joint))
                hint = "; a tied head is the embedding: use 'embeddings'" if name == "head" else hint
                raise ValueError(
                    f"joint={name!r} matches no joint parameter{hint} (groups: {', '.join(JOINT_GROUPS)}; "
                    "or a glob of parameter names)"
                )
            chosen.update(found)
        return tuple(j for j in joint if j in chosen)

    def _globs(self, name: str) -> tuple[str, ...]:
        a = self.architecture
        groups = {
            "embeddings": a.embeddings,
            "norms": tuple(f"{a.layers}.{i}.{norm}.*" for i in self.layers for norm in a.block_norms),
            "final_norm": (a.final_norm,),
            "head": (a.head,),
        }
        return groups.get(name, (name,))

    @torch.no_grad()
    def ablate(self, reinit: bool = False, generator: torch.Generator | None = None) -> None:
        """Remove what the forget units know: theta_forget := 0.

        Args:
            reinit: with zeros on both sides a unit gets no gradient and never learns again. ``True`` draws its input
                side anew from N(0, initializer_range) (biases stay zero): the function is the ablated one all the
                same, as the output side is zero, but the unit can learn (a fairer start for relearning attacks).
            generator: random numbers for ``reinit``.
        """
        std = self.model.config.initializer_range
        for s in self.forget:
            part = s.of(s.param)
            if reinit and s.site.endswith(".in") and s.param.ndim == 2:
                part.normal_(0.0, std, generator=generator)
            else:
                part.zero_()

    def num_parameters(self) -> dict[str, int]:
        """Parameters by owner: ``{"retain": ..., "forget": ..., "joint": ...}``; they add up to the model's."""
        retain, forget = (sum(s.numel for s in side) for side in (self.retain, self.forget))
        return {"retain": retain, "forget": forget, "joint": sum(p.numel() for p in self.joint.values())}

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "retain", "forget", "joint")]
        retain, forget = (_count(side) for side in (self.retain, self.forget))
        joint = self._joint_of_layers()
        for layer in sorted(joint.keys() - {-1}):
            rows.append((f"layer {layer}", f"{retain[layer]:,}", f"{forget[layer]:,}", f"{joint[layer]:,}"))
        rows.append(("embeddings, head", "0", "0", f"{joint[-1]:,}"))
        rows.append(("total", *(f"{n:,}" for n in self.num_parameters().values())))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join((r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:]))) for r in rows]
        head = f"Partition of {type(self.model).__name__}: {self.heads} heads, {self.neurons} neurons a layer to forget"
        return "\n".join((head, *lines))

    def __repr__(self) -> str:
        layers = "all" if len(self.layers) == len(_layers(self.model, self.architecture)) else list(self.layers)
        return (
            f"Partition({type(self.model).__name__}, heads={self.heads}, neurons={self.neurons}, layers={layers}, "
            f"{self.num_parameters()})"
        )

    def _joint_of_layers(self) -> Counter[int]:
        """Joint parameters of each layer; -1 for those outside the layers."""
        layers = _layers(self.model, self.architecture)
        layer_of = {id(p): i for i, layer in enumerate(layers) for p in layer.parameters()}
        counts = Counter(dict.fromkeys(range(len(layers)), 0))
        counts[-1] = 0
        for p in self.joint.values():
            counts[layer_of.get(id(p), -1)] += p.numel()
        return counts


def _layers(model: PreTrainedModel, architecture: Architecture) -> nn.ModuleList:
    layers: nn.ModuleList = model.base_model.get_submodule(architecture.layers)  # type: ignore[assignment]
    return layers


class _Sublayer(NamedTuple):
    """One attention or MLP: ``units`` units of ``width`` features each, the last ``forget`` of them to forget."""

    kind: Literal["attn", "mlp"]
    ins: list[nn.Module]
    out: nn.Module
    units: int
    forget: int
    width: int

    def projections(self) -> Iterator[tuple[Site, nn.Module, Side, tuple[tuple[int, int], tuple[int, int]]]]:
        """Each projection with its site, the side on which the units lie, and (retain, forget) runs of features."""
        for module in self.ins:
            features = _features(module, "out")
            units = features // self.width  # fewer than ``self.units`` where key/value heads are shared
            if self.forget * units % self.units:
                group = self.units // units
                remedy = f"a multiple of {group}" if units > 1 else "heads=0, as all heads share one group"
                raise ValueError(f"heads={self.forget} splits a key/value group of {group} heads; use {remedy}")
            split = self.width * (units - self.forget * units // self.units)
            yield f"{self.kind}.in", module, "out", ((0, split), (split, features))  # type: ignore[misc]
        features = _features(self.out, "in")
        split = self.width * (self.units - self.forget)
        yield f"{self.kind}.out", self.out, "in", ((0, split), (split, features))  # type: ignore[misc]


def _sublayers(
    model: PreTrainedModel, block: nn.Module, architecture: Architecture, heads: int, neurons: int
) -> Iterator[_Sublayer]:
    for kind, ins, out, units, forget in (
        ("attn", architecture.attn_in, architecture.attn_out, model.config.num_attention_heads, heads),
        ("mlp", architecture.mlp_in, architecture.mlp_out, None, neurons),
    ):
        writer = block.get_submodule(out)
        features = _features(writer, "in")
        units = features if units is None else units
        if not 0 <= forget < units:
            name = "heads" if kind == "attn" else "neurons"
            raise ValueError(
                f"{name}={forget} of {units}: a layer has {units} {name}; use 0 to {units - 1}, so that some are "
                "retained"
            )
        yield _Sublayer(kind, [block.get_submodule(p) for p in ins], writer, units, forget, features // units)  # type: ignore[arg-type]


def _check_layers(layers: tuple[int, ...], num_layers: int) -> None:
    wrong = [i for i in layers if not 0 <= i < num_layers]
    if wrong or len(set(layers)) != len(layers) or not layers:
        raise ValueError(
            f"layers={list(layers)} of a model with {num_layers} layers; use different indices from 0 to "
            f"{num_layers - 1}"
        )


def _parts(module: nn.Module, side: Side) -> Iterator[tuple[str, int, int]]:
    """(parameter, dimension, first feature) of the parameters that hold the module's ``side`` features in order."""
    if isinstance(module, SplitLinearOut) and side == "out":
        yield "weight_retain", 0, 0
        yield "weight_forget", 0, module.retain_features
        if module.bias_retain is not None:
            yield "bias_retain", 0, 0
            yield "bias_forget", 0, module.retain_features
        return
    yield "weight", int(side == "in"), 0
    if side == "out" and module.bias is not None:
        yield "bias", 0, 0


def _features(module: nn.Module, side: Side) -> int:
    if isinstance(module, SplitLinearOut):
        return module.out_features if side == "out" else module.in_features
    weight: Tensor = module.get_parameter("weight")
    return weight.shape[int(side == "in")]


def _slices(module: nn.Module, path: str, side: Side, site: Site, layer: int, start: int, stop: int) -> Iterator[Slice]:
    """Slices that hold features ``start:stop`` of the module's ``side``."""
    for name, dim, first in _parts(module, side):
        size = module.get_parameter(name).shape[dim]
        low, high = max(start - first, 0), min(stop - first, size)
        if low < high:
            yield Slice(module, f"{path}.{name}", dim, low, high, site, layer)


def _output_bias(out: nn.Module, path: str, kind: str, layer: int) -> Iterator[Slice]:
    if out.bias is not None:
        yield Slice(out, f"{path}.bias", 0, 0, len(out.bias), f"{kind}.out", layer)  # type: ignore[arg-type]


def _count(slices: tuple[Slice, ...]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for s in slices:
        counts[s.layer] += s.numel
    return counts
