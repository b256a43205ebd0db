"""LoRA adapters (peft) as a partition: their ranks are the units.

An adapter adds ``scaling * B A x`` to a frozen projection. Rank r owns row r of A (in front of it) and column r of B
(behind it); its activation is the input of B. Ranks do not see each other, so they are units like neurons are, and all
that works on a partition works here: strategies, modes for each example and position, ``SGTMTrainer``, ablation. With
ablated ranks ``merge_and_unload()`` gives a stock model without them.

What can be removed is what the adapters have learned. The base model is joint, and keeps what it knew before. Where
B A starts as a part of the base weights (``init_lora_weights`` of PiSSA, OLoRA, CorDA, LoftQ), the forget ranks hold
some of these, and ablation takes it away: use the default initialisation.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from sgtm.config import check_domain_name
from sgtm.model.architectures import Architecture, architecture_of
from sgtm.model.partition import Partition, Site, Slice, Span, Units, Writer
from sgtm.model.sublayers import layers_of

try:
    from peft import PeftModel, PeftType
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.lora import LoraLayer
except ImportError as error:
    raise ImportError("sgtm.model.lora needs peft; install it with `pip install peft`") from error

# They compute lora_B(lora_A(x)) as well, on quantised base weights. Tried by hand on a CPU: with 4 bits (nf4) examples
# in retain mode equal the ablated model, bit for bit, also beside other modes. With 8 bits a batch of one mode does;
# beside other modes logits are off by 0.002, where ablation moves them by 0.8.
_QUANTISED = ("Linear4bit", "Linear8bitLt")
# peft computes the norm through lora_B, hooks included: a batch of one mode would be right. One with two is not.
_DORA = (
    "it divides by the norm of W + BA, which all ranks share, so that positions of one batch cannot have ranks of "
    "their own (laws 3 and 5; with two modes in one batch, a tiny random model's logits of up to 1.7 were off by 0.31 "
    "in retain mode and by 0.48 in default mode); use use_dora=False"
)


@dataclass(frozen=True)
class Ranks(Units):
    """How many ranks of each adapter."""

    ranks: int = 0


class LoraPartition(Partition):
    """A partition of a ``PeftModel``: see ``lora_partition``."""

    def ablate(self, *domains: str, reinit: bool = False, generator: torch.Generator | None = None) -> None:
        """Remove what the forget ranks know; see ``Partition.ablate``.

        Raises:
            ValueError: a name that is no domain; adapters that are merged, whose ranks are in the base weights by now.
        """
        adapters = {name: module for name, module in self.model.named_modules() if isinstance(module, LoraLayer)}
        if not adapters:
            raise ValueError("the model has no adapters any more; ablate before merge_and_unload(), not after")
        for name, module in adapters.items():
            _check_unmerged(name, module)
        super().ablate(*domains, reinit=reinit, generator=generator)

    def __str__(self) -> str:
        _, table = super().__str__().split("\n", 1)
        ranks = {name: units.ranks for name, units in self.domains.items() if isinstance(units, Ranks)}
        units = "; ".join(f"{name}: {count} ranks an adapter" for name, count in ranks.items())
        return f"Partition of {type(self.model).__name__}: {units}\n{table}"


def lora_partition(model: Any, ranks: int = 0, domains: Mapping[str, int] | None = None) -> Partition:
    """Split the ranks of every LoRA adapter of ``model``: the last ones are forget units.

    ::

        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        sgtm = SGTM(lora_partition(model, ranks=4))  # or domains={"biology": 2, "cyber": 2}
        ...
        sgtm.partition.ablate()
        model.merge_and_unload().save_pretrained(folder)

    Adapters may have different ranks; each gives its last ``ranks``. Adapters of attention are the sites ``attn.in``
    (A) and ``attn.out`` (B), those of MLPs ``mlp.in`` and ``mlp.out``. Biases of B (``lora_bias``) are retain, as those
    of output projections are. All else is joint: the base weights, which peft has frozen, and what it leaves trainable
    (``bias``, ``modules_to_save``); name that in ``SGTM(joint=...)`` if forget batches are to leave it alone.

    Args:
        model: a ``PeftModel`` of a supported family, with one active LoRA adapter on attention or MLP projections.
        ranks: forget ranks of each adapter, of the one domain "forget".
        domains: the ranks of each domain, where there are several (or one with a name); blocks, in their order.

    Raises:
        ValueError: another model, tuner or kind of adapter (DoRA, embeddings, merged, several active ones), adapters
            outside attention and MLPs, an unknown family, or more ranks than an adapter has.
    """
    if domains is not None and ranks:
        raise ValueError(f"ranks={ranks} and domains={dict(domains)}: give one of them")
    counts = {"forget": ranks} if domains is None else dict(domains)
    _check_domains(counts)
    adapter = _active_adapter(model)
    architecture = _below_peft(model)
    adapters = list(_adapters(model, adapter, architecture))
    if not adapters:
        raise ValueError(f"the adapter {adapter!r} stands on no projection; name some in LoraConfig(target_modules=)")
    slices: list[Slice] = []
    writers: list[Writer] = []
    for one in adapters:
        owners = _owners(one, counts)
        slices += _slices(one, owners)
        writers.append(Writer(one.b, owners))
    retain, forget = (tuple(s for s in slices if (s.domain is None) is kept) for kept in (True, False))
    units = {name: Ranks(ranks=count) for name, count in counts.items()}
    layers = tuple(sorted({one.layer for one in adapters}))
    return LoraPartition(model, architecture, units, layers, retain, forget, tuple(writers))


class _Adapter(NamedTuple):
    """Weights ``a`` (ranks, in) and ``b`` (out, ranks) of the adapter ``key`` at the projection ``name``."""

    name: str
    key: str
    a: nn.Linear
    b: nn.Linear
    kind: Literal["attn", "mlp"]
    layer: int

    @property
    def ranks(self) -> int:
        return int(self.a.weight.shape[0])


def _check_domains(counts: Mapping[str, int]) -> None:
    if not counts:
        raise ValueError("domains={} leaves no forget ranks; name at least one domain and its ranks")
    for name, count in counts.items():
        check_domain_name(name)
        if count < 1:
            raise ValueError(f"{count} ranks leave no forget units ({name}); give at least 1")


def _active_adapter(model: Any) -> str:
    """Name of the one active adapter."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{type(model).__name__} has adapters from model.add_adapter(...), and is no PeftModel; use "
            "peft.get_peft_model(model, LoraConfig(...)) on the plain model instead"
        )
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"{type(model).__name__} is no PeftModel; wrap the model with peft.get_peft_model(model, LoraConfig(...)), "
            "or split its own heads and neurons with Partition.of"
        )
    active = list(model.active_adapters)
    if len(active) != 1:
        raise ValueError(
            f"the adapters {active} are active; a partition is of one: choose it with model.set_adapter(name)"
        )
    kind = model.peft_config[active[0]].peft_type
    if kind != PeftType.LORA:
        raise ValueError(f"the adapter {active[0]!r} is of type {kind}, which has no ranks to split; use LoraConfig")
    return active[0]


def _below_peft(model: Any) -> Architecture:
    """The row of the wrapped model's family, with the path of the blocks below peft's own ``base_model``."""
    base = model.get_base_model()
    row = architecture_of(base)
    blocks = layers_of(base, row)
    path = next(name for name, module in model.base_model.named_modules() if module is blocks)
    return replace(row, layers=path)


def _adapters(model: Any, adapter: str, architecture: Architecture) -> Iterator[_Adapter]:
    attention = {*architecture.attn_in, architecture.attn_out}
    blocks = f"base_model.{architecture.layers}."
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        _check_layer(name, module, adapter)
        if adapter not in module.lora_A:
            continue
        layer, _, path = name.removeprefix(blocks).partition(".")
        if not name.startswith(blocks) or path not in attention | {*architecture.mlp_in, architecture.mlp_out}:
            raise ValueError(
                f"the adapter at {name} is in no attention or MLP projection of a layer, so it has no site; leave it "
                "out of LoraConfig(target_modules=), or exclude it with exclude_modules="
            )
        a: Any = module.lora_A[adapter]
        b: Any = module.lora_B[adapter]
        yield _Adapter(name, adapter, a, b, "attn" if path in attention else "mlp", int(layer))


def _check_layer(name: str, module: Any, adapter: str) -> None:
    _check_unmerged(name, module)
    if adapter in module.lora_embedding_A:
        raise ValueError(
            f"the adapter at {name} is of an embedding, which is in no layer, so it has no site; leave embeddings out "
            "of LoraConfig(target_modules=)"
        )
    variant = type(module.lora_variant[adapter]).__name__ if adapter in module.lora_variant else ""
    if variant:
        reason = _DORA if "Dora" in variant else "only plain LoRA has passed the laws; use LoraConfig without it"
        raise ValueError(f"the adapter at {name} is of the variant {variant}, which is refused: {reason}")
    if type(module) is not LoraLinear and type(module).__name__ not in _QUANTISED:
        raise ValueError(
            f"the adapter at {name} is a {type(module).__name__}, which need not compute B(A(x)) at each position; "
            "name linear projections in LoraConfig(target_modules=), and no target_parameters"
        )


def _check_unmerged(name: str, module: Any) -> None:
    if module.merged:
        raise ValueError(
            f"the adapters {module.merged_adapters} at {name} are merged: their ranks are in the base weights; call "
            "model.unmerge_adapter() before"
        )


def _owners(one: _Adapter, counts: Mapping[str, int]) -> tuple[Span, ...]:
    """Who owns which ranks: retain first, then the domains."""
    total = sum(counts.values())
    if total >= one.ranks:
        raise ValueError(
            f"ranks={total} of {one.ranks} of the adapter at {one.name}: use at most {one.ranks - 1}"
            f"{' in all' if len(counts) > 1 else ''}, so that some are retained, or a larger r (rank_pattern)"
        )
    bounds = (0, *accumulate(counts.values(), initial=one.ranks - total))
    return tuple(Span(owner, low, high) for owner, (low, high) in zip((None, *counts), pairwise(bounds), strict=True))


def _slices(one: _Adapter, owners: tuple[Span, ...]) -> Iterator[Slice]:
    a, b = (f"{one.name}.lora_{side}.{one.key}" for side in "AB")
    sites: tuple[Site, Site] = ("attn.in", "attn.out") if one.kind == "attn" else ("mlp.in", "mlp.out")
    for domain, start, stop in owners:
        yield Slice(one.a, f"{a}.weight", 0, start, stop, sites[0], one.layer, domain)
        yield Slice(one.b, f"{b}.weight", 1, start, stop, sites[1], one.layer, domain)
    if one.b.bias is not None:
        yield Slice(one.b, f"{b}.bias", 0, 0, len(one.b.bias), sites[1], one.layer, None)
