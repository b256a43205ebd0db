"""Every parameter is retain, of a forget domain, or joint: a partition is a list of slices.

A **unit** is an attention head or an MLP neuron. It owns rows of the input projections and columns of the output
projection. Units can be permuted without changing the function of the model, so "the last k units of a layer" is the
general case: all slices are contiguous.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, SupportsIndex

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sgtm.config import ConfigError, check_domain_name, modes, nearest
from sgtm.model.architectures import HEAD_NORMS, Architecture, architecture_of
from sgtm.model.sharding import has_shards, local, local_range
from sgtm.model.sublayers import UNITS, Projection, Sublayer, layers_of, sublayers
from sgtm.model.surgery import init_std, num_units, reorder

Site = Literal["attn.in", "attn.out", "mlp.in", "mlp.out"]
JOINT_GROUPS = ("embeddings", "norms", "final_norm", "head")


@dataclass(frozen=True)
class Units:
    """How many units of each layer."""

    heads: int = 0
    neurons: int = 0


Choice = Mapping[int, Sequence[int]]  # layer -> units


@dataclass(frozen=True)
class Chosen:
    """Existing units, by layer."""

    heads: Choice = field(default_factory=dict)
    neurons: Choice = field(default_factory=dict)

    def of(self, kind: str) -> Choice:
        choice: Choice = getattr(self, UNITS[kind])
        return choice

    def units(self, layers: Sequence[int], domain: str) -> Units:
        """How many units of each layer.

        Raises:
            ValueError: not as many in each of ``layers``.
        """
        for name, choice in (("heads", self.heads), ("neurons", self.neurons)):
            counts = {layer: len(choice.get(layer, ())) for layer in layers}
            if len(set(counts.values())) > 1:
                raise ValueError(f"{domain}: {name} of each layer {counts}; choose as many in every layer")
        first = layers[0] if layers else 0
        return Units(len(self.heads.get(first, ())), len(self.neurons.get(first, ())))


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
    domain: str | None  # None: retain

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
        shape = self.param.shape
        return shape.numel() // shape[self.dim] * (self.stop - self.start)

    def of(self, tensor: Tensor) -> Tensor:
        """The same elements of a ``tensor`` shaped like the parameter (weight, gradient, an optimizer's state)."""
        return tensor.narrow(self.dim, self.start, self.stop - self.start)

    def local(self, tensor: Tensor) -> Tensor:
        """The same elements, as far as this process holds them: a view to write to, whether or not it is sharded."""
        start, stop = local_range(tensor, self.dim, self.start, self.stop)
        return local(tensor).narrow(self.dim, start, stop - start)


class Span(NamedTuple):
    """Features ``start:stop`` in front of an output projection, which units of one ``domain`` write (None: retain)."""

    domain: str | None
    start: int
    stop: int


class Writer(NamedTuple):
    """An output projection, and who writes which features of its input, in order."""

    module: nn.Module
    spans: tuple[Span, ...]


@dataclass(frozen=True, eq=False)
class Partition:
    """``retain`` and ``forget`` slices of ``model``; all other parameters are ``joint``.

    The last attention heads and MLP neurons of each layer in ``layers`` are forget units (h_forget and d_forget of
    arXiv:2512.05648 section 3), in one block for each of the ``domains``, in their order. The biases of output
    projections are added whether or not a unit is there: they are retain.
    """

    model: PreTrainedModel
    architecture: Architecture
    domains: Mapping[str, Units]
    layers: tuple[int, ...]
    retain: tuple[Slice, ...]
    forget: tuple[Slice, ...]
    writers: tuple[Writer, ...]

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        heads: int = 0,
        neurons: int = 0,
        layers: Sequence[int] | None = None,
        domains: Mapping[str, Units] | None = None,
    ) -> "Partition":
        """Partition a supported Hugging Face decoder.

        ::

            Partition.of(model, heads=1, neurons=64)  # one domain, "forget"
            Partition.of(model, domains={"biology": Units(heads=1, neurons=64), "cyber": Units(heads=1, neurons=32)})

        Args:
            model: a causal language model, or its base model.
            heads: forget heads of each layer; whole key/value groups where these are shared.
            neurons: forget neurons of each layer.
            layers: indices of the layers that have forget units; all by default.
            domains: the units of each domain, where there are several (or one with a name).

        Raises:
            ValueError: an unknown family, a domain without units, more units than there are, or a split key/value
                group.
        """
        if domains is not None and (heads or neurons):
            raise ValueError("give domains={name: Units(...)}, or heads and neurons of the one domain, not both")
        domains = {"forget": Units(heads, neurons)} if domains is None else domains
        if not isinstance(domains, Mapping):
            raise ValueError(f"domains={domains!r} must be {{name: Units(heads=..., neurons=...)}}")
        domains = dict(domains)
        _check_domains(domains)
        architecture = architecture_of(model)
        for units, reason in (("heads", architecture.no_heads), ("neurons", architecture.no_neurons)):
            if reason and any(getattr(u, units) for u in domains.values()):
                raise ValueError(f"{model.config.model_type} cannot have forget {units}: {reason}; use {units}=0")
        blocks = layers_of(model, architecture)
        if layers is not None and not isinstance(layers, Iterable):
            raise ValueError(f"layers={layers!r} must be a list of indices")
        chosen = tuple(range(len(blocks))) if layers is None else tuple(layers)
        _check_layers(chosen, len(blocks))
        names = {id(module): name for name, module in model.named_modules()}
        slices: list[Slice] = []
        writers: list[Writer] = []
        for layer in chosen:
            for sublayer in sublayers(model, blocks[layer], architecture):
                owners = _owners(sublayer, domains)
                for projection in sublayer.projections:
                    slices += _slices(projection, names[id(projection.module)], sublayer, owners, layer)
                writers.append(Writer(sublayer.out.module, _spans(sublayer, owners)))
        retain, forget = (tuple(s for s in slices if (s.domain is None) is kept) for kept in (True, False))
        return cls(model, architecture, domains, chosen, retain, forget, tuple(writers))

    @classmethod
    def choose(
        cls,
        model: PreTrainedModel,
        heads: Choice | None = None,
        neurons: Choice | None = None,
        domains: Mapping[str, "Chosen"] | None = None,
    ) -> "Partition":
        """Make *existing* units the forget units: they become the last of their layers, **in place**.

        One permutation of each layer's units; the function of the model stays the same.

        ::

            Partition.choose(model, heads={0: [2], 1: [0]}, neurons={0: [5, 9], 1: [1, 2]})

        Args:
            heads: layer -> heads; whole key/value groups where these are shared.
            neurons: layer -> neurons.
            domains: the same for each domain, where there are several.

        Raises:
            ValueError: as ``Partition.of``; units that do not exist or are chosen twice, or not as many in each layer.
        """
        if domains is not None and (heads or neurons):
            raise ValueError("give domains={name: Chosen(...)}, or heads and neurons of the one domain, not both")
        domains = {"forget": Chosen(heads or {}, neurons or {})} if domains is None else domains
        layers = sorted({layer for chosen in domains.values() for layer in (*chosen.heads, *chosen.neurons)})
        units = {name: chosen.units(layers, name) for name, chosen in domains.items()}
        partition = cls.of(model, domains=units, layers=layers)  # what is wrong is found before anything is changed
        orders: dict[str, dict[int, list[int]]] = {"attn": {}, "mlp": {}}
        for kind, units_of_layer in num_units(model).items():
            for layer in layers if any(c.of(kind) for c in domains.values()) else ():
                moved = [sorted(c.of(kind).get(layer, ())) for c in domains.values()]
                orders[kind][layer] = _last(moved, units_of_layer, kind)
        reorder(model, orders["attn"], orders["mlp"])
        return partition

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the modes; a mode's code is its index."""
        return modes(self.domains)

    @property
    def heads(self) -> int:
        """Forget heads of a layer, of all domains."""
        return sum(units.heads for units in self.domains.values())

    @property
    def neurons(self) -> int:
        """Forget neurons of a layer, of all domains."""
        return sum(units.neurons for units in self.domains.values())

    @property
    def joint(self) -> dict[str, nn.Parameter]:
        """Parameters that no unit owns: embeddings, norms, head, and layers without forget units."""
        owned = {s.name for s in (*self.retain, *self.forget)}
        return {name: p for name, p in self.named_parameters() if name not in owned}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's parameters, by the names that ``get_parameter`` knows whatever its layers are wrapped in."""
        for name, p in self.model.named_parameters():
            yield name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", ""), p

    def select_joint(self, names: Iterable[str]) -> tuple[str, ...]:
        """Names of the joint parameters meant by ``names``.

        Args:
            names: groups (``embeddings``, ``norms`` of the blocks with forget units, those of queries and keys
                included, ``final_norm``, ``head``) or globs of parameter names such as ``transformer.wte.*``; a leading
                path may be left out.

        Raises:
            ValueError: a name that matches no joint parameter.
        """
        chosen: set[str] = set()
        joint, names = tuple(self.joint), (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            globs = self._globs(name)
            found = [j for j in joint if any(fnmatchcase(j, g) or fnmatchcase(j, f"*.{g}") for g in globs)]
            # A tied head is the embedding: asking for it as well is no mistake, asking for nothing else is. Some
            # families' norms have no parameters.
            if not found and name not in ("norms", "final_norm") and (name != "head" or set(names) == {"head"}):
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
            "norms": tuple(
                f"{a.layers}.{i}.{norm}.*"
                for i in self.layers
                for norm in (*a.block_norms, *(f"*.{n}" for n in HEAD_NORMS))
            ),
            "final_norm": (a.final_norm,),
            "head": (a.head,),
        }
        return groups.get(name, (name,))

    def select_domains(self, names: Iterable[str]) -> tuple[str, ...]:
        """``names`` in the partition's order; all domains if there is none.

        Raises:
            ConfigError: a name that is no domain.
        """
        wanted = tuple(names) or tuple(self.domains)
        for name in wanted:
            if name not in self.domains:
                raise ConfigError(
                    f"{name!r} is no domain{nearest(name, self.domains)} (domains: {', '.join(self.domains)})"
                )
        return tuple(d for d in self.domains if d in wanted)

    def forget_of(self, *domains: str) -> tuple[Slice, ...]:
        """The forget slices of ``domains``; of all, if none is named."""
        chosen = self.select_domains(domains)
        return tuple(s for s in self.forget if s.domain in chosen)

    @torch.no_grad()
    def ablate(self, *domains: str, reinit: bool = False, generator: torch.Generator | None = None) -> None:
        """Remove what the forget units know: theta_forget := 0.

        Args:
            domains: whose units; those of all domains by default.
            reinit: with zeros on both sides a unit gets no gradient and never learns again. ``True`` draws its input
                side anew from N(0, initializer_range) (biases stay zero): the function is the ablated one all the
                same, as the output side is zero, but the unit can learn (a fairer start for relearning attacks).
            generator: random numbers for ``reinit``.

        Raises:
            ValueError: a name that is no domain; or ``reinit`` of a sharded model.
        """
        if reinit and has_shards(self.model):
            raise ValueError(
                "reinit=True would draw the same numbers for every shard; do it before the model is sharded"
            )
        std = init_std(self.model.config)
        for s in self.forget_of(*domains):
            part = s.local(s.param)
            if reinit and s.site.endswith(".in") and s.param.ndim == 2:
                part.normal_(0.0, std, generator=generator)
            else:
                part.zero_()

    def num_parameters(self) -> dict[str, int]:
        """Parameters by owner: ``retain``, each domain (``forget``), ``joint``; they add up to the model's."""
        counts = dict.fromkeys(("retain", *self.domains), 0)
        for s in (*self.retain, *self.forget):
            counts[s.domain or "retain"] += s.numel
        return counts | {"joint": sum(p.numel() for p in self.joint.values())}

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "retain", *self.domains, "joint")]
        counts = Counter[tuple[int, str]]()
        for s in (*self.retain, *self.forget):
            counts[s.layer, s.domain or "retain"] += s.numel
        joint = self.joint_of_layers()
        owners = rows[0][1:-1]
        for layer in sorted(joint.keys() - {-1}):
            rows.append((f"layer {layer}", *(f"{counts[layer, o]:,}" for o in owners), f"{joint[layer]:,}"))
        rows.append(("embeddings, head", *("0" for _ in owners), f"{joint[-1]:,}"))
        rows.append(("total", *(f"{n:,}" for n in self.num_parameters().values())))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join((r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:]))) for r in rows]
        units = "; ".join(f"{name}: {u.heads} heads, {u.neurons} neurons a layer" for name, u in self.domains.items())
        return "\n".join((f"Partition of {type(self.model).__name__}: {units}", *lines))

    def __repr__(self) -> str:
        layers = "all" if len(self.layers) == len(layers_of(self.model, self.architecture)) else list(self.layers)
        return f"Partition({type(self.model).__name__}, {dict(self.domains)}, layers={layers}, {self.num_parameters()})"

    def joint_of_layers(self) -> Counter[int]:
        """Joint parameters of each layer; -1 for those outside the layers."""
        layers = layers_of(self.model, self.architecture)
        layer_of = {id(p): i for i, layer in enumerate(layers) for p in layer.parameters()}
        counts = Counter(dict.fromkeys(range(len(layers)), 0))
        counts[-1] = 0
        for p in self.joint.values():
            counts[layer_of.get(id(p), -1)] += p.numel()
        return counts


_Owners = list[tuple[str | None, int, int]]  # (domain or None, first unit, last unit + 1), in order


def _owners(sublayer: Sublayer, domains: Mapping[str, Units]) -> _Owners:
    """Who owns which units of the sublayer: retain first, then the domains."""
    name = UNITS[sublayer.kind]
    forget = {domain: getattr(units, name) for domain, units in domains.items()}
    total = sum(forget.values())
    if not 0 <= total < sublayer.units or min(forget.values()) < 0:
        raise ValueError(
            f"{name}={total} of {sublayer.units}: a layer has {sublayer.units} {name}; use 0 to {sublayer.units - 1}"
            f"{' in all' if len(domains) > 1 else ''}, so that some are retained"
        )
    for count in forget.values():
        if count % sublayer.group:
            remedy = "heads=0, as all heads share one group"
            if sublayer.group < sublayer.units:
                remedy = f"a multiple of {sublayer.group}"
            raise ValueError(f"heads={count} splits a key/value group of {sublayer.group} heads; use {remedy}")
    bounds = (0, *accumulate(forget.values(), initial=sublayer.units - total))
    return [
        (owner, low, high) for owner, (low, high) in zip((None, *forget), pairwise(bounds), strict=True) if low < high
    ]


def _last(chosen: Sequence[Sequence[int]], units: int, kind: str) -> list[int]:
    """All units of a layer in order, but for the ``chosen`` ones of each domain, which come last."""
    moved = [unit for of_domain in chosen for unit in of_domain]
    name = UNITS[kind]
    if len(set(moved)) < len(moved) or any(not 0 <= unit < units for unit in moved):
        raise ValueError(f"{name} {moved} of a layer with {units}: choose different ones from 0 to {units - 1}")
    return [unit for unit in range(units) if unit not in set(moved)] + moved


def _spans(sublayer: Sublayer, owners: _Owners) -> tuple[Span, ...]:
    return tuple(Span(owner, sublayer.width * low, sublayer.width * high) for owner, low, high in owners)


def _slices(projection: Projection, path: str, sublayer: Sublayer, owners: _Owners, layer: int) -> Iterator[Slice]:
    site: Site = f"{sublayer.kind}.{projection.site}"  # type: ignore[assignment]
    for owner, low, high in owners:
        for start, stop in projection.features(low, high, sublayer.units):
            for name, dim, first, last in projection.elements(start, stop):
                yield Slice(projection.module, f"{path}.{name}", dim, first, last, site, layer, owner)
    if projection.site == "out" and projection.module.bias is not None:
        size: int = len(projection.module.bias)  # type: ignore[arg-type]
        yield Slice(projection.module, f"{path}.bias", 0, 0, size, site, layer, None)


def _check_domains(domains: Mapping[str, Units]) -> None:
    if not domains:
        raise ValueError("domains={} leaves no forget units; name at least one domain and its Units")
    for name, units in domains.items():
        check_domain_name(name)
        if not isinstance(units, Units) or any(
            not isinstance(n, SupportsIndex) or n < 0 for n in (units.heads, units.neurons)
        ):
            raise ValueError(f"{name}: {units!r} must be Units(heads=..., neurons=...), whole numbers from 0 on")
        if units.heads == units.neurons == 0:
            raise ValueError(f"heads=0 and neurons=0 leave no forget units ({name}); give at least one of them")


def _check_layers(layers: tuple[int, ...], num_layers: int) -> None:
    wrong = [i for i in layers if not 0 <= i < num_layers]
    if wrong or len(set(layers)) != len(layers) or not layers:
        raise ValueError(
            f"layers={list(layers)} of a model with {num_layers} layers; use different indices from 0 to "
            f"{num_layers - 1}"
        )
