"""A model with other units: fewer, more, or the same in another order."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    GPTNeoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from sgtm.config import nearest
from sgtm.model.architectures import architecture_of
from sgtm.model.attention import use_attention
from sgtm.model.split_linear import SplitLinearOut
from sgtm.model.sublayers import Projection, Sublayer, layers_of, sublayers

Plan = Sequence[int | None]  # the units of one layer, in order: a unit of the model's, or None for one of zeros
Plans = Mapping[int, Plan]  # by layer; layers that are not named stay as they are
Start = Literal["normal", "copy"]


def expand(
    model: PreTrainedModel,
    heads: int = 0,
    neurons: int = 0,
    init: Start = "normal",
    generator: torch.Generator | None = None,
) -> PreTrainedModel:
    """A new model with more units in every layer, which computes what ``model`` computes.

    The fresh units come last, so ``Partition.of(expanded, heads, neurons)`` makes them the forget units (Expand, Route,
    Ablate: arXiv:2410.04332). Their output side is zero, so the function is the same; their input side is not, so
    they learn.

    Args:
        heads: fresh attention heads of each layer; whole key/value groups where these are shared.
        neurons: fresh MLP neurons of each layer.
        init: ``normal`` draws the input side from N(0, initializer_range); ``copy`` copies it from units drawn at
            random.
        generator: random numbers.

    Raises:
        ValueError: nothing to add, no causal language model, a family whose configuration cannot say so, or a split
            key/value group.
    """
    if heads < 0 or neurons < 0 or heads == neurons == 0:
        raise ValueError(f"heads={heads} and neurons={neurons} add no units; give at least one of them")
    if init not in ("normal", "copy"):
        raise ValueError(f"init={init!r} is neither 'normal' nor 'copy'{nearest(init, ('normal', 'copy'))}")
    check_has_head(model)
    model = stock(model)
    plans: dict[str, dict[int, list[int | None]]] = {"attn": {}, "mlp": {}}
    for layer, sublayer in _all_sublayers(model):
        count = heads if sublayer.kind == "attn" else neurons
        if count % sublayer.group:
            raise ValueError(
                f"heads={count} splits a key/value group of {sublayer.group} heads; use a multiple of {sublayer.group}"
            )
        fresh: list[int | None] = [None] * count
        if init == "copy":
            groups = torch.randint(sublayer.units // sublayer.group, (count // sublayer.group,), generator=generator)
            fresh = [g * sublayer.group + i for g in groups.tolist() for i in range(sublayer.group)]
        plans[sublayer.kind][layer] = [*range(sublayer.units), *fresh]
    grown = resized(model, plans["attn"] if heads else {}, plans["mlp"] if neurons else {})
    _start_fresh_units(grown, {"attn": heads, "mlp": neurons}, init, generator)
    return grown


@torch.no_grad()
def _start_fresh_units(
    model: PreTrainedModel, counts: dict[str, int], init: Start, generator: torch.Generator | None
) -> None:
    std = init_std(model.config)
    for _, sublayer in _all_sublayers(model):
        last = (sublayer.units - counts[sublayer.kind], sublayer.units, sublayer.units)
        for projection in sublayer.projections:
            for start, stop in projection.features(*last):
                for name, dim, low, high in projection.elements(start, stop):
                    part = projection.module.get_parameter(name).narrow(dim, low, high - low)
                    if projection.site == "out":
                        part.zero_()
                    elif init == "normal" and part.ndim == 2:
                        part.copy_(torch.empty(part.shape).normal_(0.0, std, generator=generator))


@torch.no_grad()
def reorder(model: PreTrainedModel, heads: Plans, neurons: Plans) -> None:
    """Put the units of ``model`` in another order, in place; the function stays the same.

    Raises:
        ValueError: a family whose heads do something by their place, or weights that are split by owner already.
    """
    if any(isinstance(module, SplitLinearOut) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} holds retain and forget weights apart (split_masked_weights), in the order of its "
            "configuration; choose units before, in a stock model"
        )
    if heads and not architecture_of(model).permutes_heads:
        raise ValueError(
            f"the heads of {model.config.model_type} differ by their place (ALiBi), so they cannot change it; "
            "choose neurons, or use Partition.of with the last heads"
        )
    state = _state(model, heads, neurons)
    for name, p in model.named_parameters():
        p.copy_(state[name])


@torch.no_grad()
def resized(
    model: PreTrainedModel, heads: Plans, neurons: Plans, zero: Iterable[tuple[str, int, int, int]] = ()
) -> PreTrainedModel:
    """A new stock model whose layers have the units that the plans name; every layer, the same number in each.

    Args:
        zero: (parameter, dim, start, stop) of elements of ``model`` that are zero in the new one.

    Raises:
        ValueError: the family's configuration cannot have so many heads or neurons.
    """
    state = _state(model, heads, neurons, zero)
    attention = model.config._attn_implementation
    by = {} if model.config.model_type == "gpt_neo" else {"attn_implementation": attention}
    built: PreTrainedModel = AutoModelForCausalLM.from_config(_config(model, heads, neurons), **by)
    if not by:
        use_attention(built, attention)
    for name, p in built.named_parameters():
        p.data = p.data.to(state[name].dtype)
    built.load_state_dict(state)
    return _like(built, model)


def check_has_head(model: PreTrainedModel) -> None:
    """Raise a ValueError unless ``model`` is a causal language model: checkpoints are made and read as that."""
    wanted: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    if wanted is not None and not isinstance(model, wanted):
        raise ValueError(f"{type(model).__name__} is no causal language model; give a {wanted.__name__}")


def can_resize(model: PreTrainedModel, heads: Plans, neurons: Plans) -> bool:
    """Whether the family's configuration can have so many heads and neurons."""
    try:
        _config(model, heads, neurons)
    except ValueError:
        return False
    return True


def stock(model: PreTrainedModel) -> PreTrainedModel:
    """``model``, or, of the GPT-Neo classes of this package, a copy as the stock model (without a bias of the head)."""
    if model.config.model_type != "gpt_neo_sgtm":
        return model
    config = GPTNeoConfig(**{f.name: getattr(model.config, f.name) for f in dataclasses.fields(GPTNeoConfig) if f.init})
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(model.dtype)
    state = model.state_dict()
    whole = {}
    for name in plain.state_dict():
        parts = [state[key] for key in (name, f"{name}_retain", f"{name}_forget") if key in state]
        whole[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    plain.load_state_dict(whole)
    return _like(plain, model)


def _like(built: PreTrainedModel, model: PreTrainedModel) -> PreTrainedModel:
    """``built`` on the device and in the state of training of ``model``."""
    built.generation_config = copy.deepcopy(model.generation_config)
    built.to(model.device)  # type: ignore[arg-type]
    built.train(model.training)
    return built


def num_units(model: PreTrainedModel) -> dict[str, int]:
    """Heads (``attn``) and neurons (``mlp``) of the first layer."""
    architecture = architecture_of(model)
    return {s.kind: s.units for s in sublayers(model, layers_of(model, architecture)[0], architecture)}


def init_std(config: PreTrainedConfig) -> float:
    """Standard deviation of new weights."""
    found: float | None = getattr(config, "initializer_range", None) or getattr(config, "init_std", None)
    return found or 0.02


def _all_sublayers(model: PreTrainedModel) -> list[tuple[int, Sublayer]]:
    architecture = architecture_of(model)
    blocks = layers_of(model, architecture)
    return [(layer, s) for layer, block in enumerate(blocks) for s in sublayers(model, block, architecture)]


def _state(
    model: PreTrainedModel, heads: Plans, neurons: Plans, zero: Iterable[tuple[str, int, int, int]] = ()
) -> dict[str, Tensor]:
    """The model's state with the units of the plans."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, dim, start, stop in zero:
        state[name] = state[name].clone()
        state[name].narrow(dim, start, stop - start).zero_()
    paths = {id(module): name for name, module in model.named_modules()}
    for layer, sublayer in _all_sublayers(model):
        plan = (heads if sublayer.kind == "attn" else neurons).get(layer)
        if plan is None:
            continue
        for projection in sublayer.projections:
            index = _features(projection, plan, sublayer)
            for name, dim, _ in projection.parameters():
                key = f"{paths[id(projection.module)]}.{name}"
                state[key] = _select(state[key], dim, index)
    return state


def _features(projection: Projection, plan: Plan, sublayer: Sublayer) -> list[int]:
    """The features of the plan's units, run by run; -1 for those of fresh units."""
    group = sublayer.group
    groups = [plan[i : i + group] for i in range(0, len(plan), group)]
    for units in groups:
        first = units[0]
        whole = [None] * group if first is None else list(range(first, first + group))
        if list(units) != whole or (first or 0) % group:
            raise ValueError(f"units {list(units)} split a key/value group of {group} heads; choose whole groups")
    index: list[int] = []
    for run in projection.runs:
        width = run.width * group * run.units // sublayer.units
        for units in groups:
            first = units[0]
            start = -1 if first is None else run.first + width * (first // group)
            index += [-1] * width if first is None else range(start, start + width)
    return index


def _select(tensor: Tensor, dim: int, index: list[int]) -> Tensor:
    chosen = torch.tensor(index, device=tensor.device)
    found = tensor.index_select(dim, chosen.clamp(min=0))
    fresh = (chosen < 0).reshape([-1 if i == dim else 1 for i in range(tensor.ndim)])
    return found.masked_fill(fresh, 0.0)


def _config(model: PreTrainedModel, heads: Plans, neurons: Plans) -> PreTrainedConfig:
    architecture = architecture_of(model)
    config: Any = copy.deepcopy(model.config)
    sublayer = {s.kind: s for s in sublayers(model, layers_of(model, architecture)[0], architecture)}
    if heads:
        if not architecture.cuts_heads:
            raise ValueError(
                f"{config.model_type} has no head width of its own in its configuration, so its number of heads is "
                "fixed; use heads=0"
            )
        attention, count = sublayer["attn"], len(next(iter(heads.values())))
        config.head_dim = attention.width
        config.num_attention_heads = count
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = count // attention.group
    if neurons:
        if not architecture.mlp_width:
            raise ValueError(f"{config.model_type} has no number of neurons in its configuration; use neurons=0")
        setattr(config, architecture.mlp_width, len(next(iter(neurons.values()))))
    try:
        checked: PreTrainedConfig = type(config).from_dict(config.to_dict())
        return checked
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{config.model_type} refuses a configuration of that size: {error}") from error
