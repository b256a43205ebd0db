"""A domain's units as a file of their own, and back into the model that they were taken from."""

import hashlib
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from sgtm.config import ConfigError
from sgtm.model.export import on_stock
from sgtm.model.partition import Partition, Units
from sgtm.model.surgery import Plans, num_units, resized, stock

_FORMAT = "sgtm.module"
_KINDS = ("attn", "mlp")


@torch.no_grad()
def export_module(model: PreTrainedModel, partition: Partition, domain: str, file: Path) -> int:
    """Write the units of one domain as safetensors, with the fingerprint of the model that they belong to.

    Returns:
        how many parameters were written.

    Raises:
        ConfigError: the file exists, or an unknown domain.
    """
    if file.exists():
        raise ConfigError(f"{file} exists already; remove it or choose another --out")
    try:
        partition.select_domains([domain])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    own = on_stock(stock(model), partition)
    parts: dict[str, list[Tensor]] = {}
    for s in own.forget_of(domain):
        parts.setdefault(s.name, []).append(s.of(s.param.detach()).cpu().transpose(0, s.dim))
    tensors = {name: torch.cat(found).contiguous() for name, found in parts.items()}  # (units' features, other side)
    about = {
        "format": _FORMAT,
        "domain": domain,
        "domains": json.dumps({name: [u.heads, u.neurons] for name, u in own.domains.items()}),
        "units": json.dumps(num_units(own.model)),
        "layers": json.dumps(own.layers),
        "model_type": own.model.config.model_type,
        "fingerprint": _fingerprint(own),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, about)
    return sum(t.numel() for t in tensors.values())


@torch.no_grad()
def attach(model: PreTrainedModel, file: str | Path) -> PreTrainedModel:
    """Put a domain's units back.

    Args:
        model: the ablated model (units zero: changed in place), or an export that they were cut out of.
        file: what ``export_module`` or ``sgtm export --module`` wrote.

    Returns:
        the model with the units; use it in place of ``model``.

    Raises:
        ValueError: no module, other retained or joint weights than those that the units were trained with, or units
            that are there already.
    """
    about, tensors = _read(Path(file))
    model = stock(model)
    if model.config.model_type != about["model_type"]:
        raise ValueError(f"{file} belongs to a {about['model_type']}, this model is a {model.config.model_type}")
    whole, places = _with_places(model, about, file)
    layers, domain = json.loads(about["layers"]), about["domain"]
    try:
        partition = Partition.of(whole, layers=layers, domains=_neighbours(whole, places, domain))
    except ValueError as error:
        raise ValueError(f"{file} does not fit this model: {error}") from error
    if (
        _fingerprint(Partition.of(whole, layers=layers, domains=_all_forget(about, num_units(whole))))
        != about["fingerprint"]
    ):
        raise ValueError(
            f"{file} was trained with other retained weights than this model's (the fingerprints differ, dtype "
            "included); attach it to the model that it was exported from"
        )
    slices = partition.forget_of(domain)
    if any(bool(s.of(s.param).any()) for s in slices):
        raise ValueError(f"the units of {domain} are in this model already; ablate them first to replace them")
    taken = dict.fromkeys(tensors, 0)
    for s in slices:
        part = s.of(s.param).transpose(0, s.dim)
        part.copy_(tensors[s.name][taken[s.name] : taken[s.name] + len(part)])
        taken[s.name] += len(part)
    return whole


Places = dict[str, tuple[int, int]]  # kind (attn, mlp) -> first unit, number of units


def _with_places(model: PreTrainedModel, about: dict[str, str], file: Any) -> tuple[PreTrainedModel, Places]:
    """The model with units of zeros where those of the domain belong, and where that is."""
    domains: dict[str, list[int]] = json.loads(about["domains"])
    original: dict[str, int] = json.loads(about["units"])
    places: Places = {}
    plans: dict[str, Plans] = {"attn": {}, "mlp": {}}
    for kind, present in num_units(model).items():
        counts = {name: units[_KINDS.index(kind)] for name, units in domains.items()}
        count = counts[about["domain"]]
        if present == original[kind]:
            names = list(domains)
            start = original[kind] - sum(counts[n] for n in names[names.index(about["domain"]) :])
        else:
            start = _gap(present, original[kind], counts, about["domain"], kind, file)
            plan = [*range(start), *[None] * count, *range(start, present)]
            plans[kind] = dict.fromkeys(range(model.config.num_hidden_layers), plan) if count else {}
        places[kind] = (start, count)
    if not plans["attn"] and not plans["mlp"]:
        return model, places
    return resized(model, plans["attn"], plans["mlp"]), places


def _gap(present: int, original: int, counts: dict[str, int], domain: str, kind: str, file: Any) -> int:
    """The first unit of ``domain`` among the ``present`` units of a model that lacks it, and perhaps other domains."""
    retain = original - sum(counts.values())
    names = list(counts)
    before, after = names[: names.index(domain)], names[names.index(domain) + 1 :]
    starts = {
        retain + sum(counts[n] for n in chosen)
        for size in range(len(before) + 1)
        for chosen in combinations(before, size)
        for rest in range(len(after) + 1)
        for others in combinations(after, rest)
        if retain + sum(counts[n] for n in (*chosen, *others)) == present
    }
    name = "heads" if kind == "attn" else "neurons"
    if not starts:
        raise ValueError(
            f"{file} belongs to a model of {original} {name} a layer, {retain} of them retained; this one has {present}"
        )
    if len(starts) > 1:
        raise ValueError(
            f"the {present} {name} of this model do not tell which domains are in it; attach them in the order "
            f"{', '.join(names)}, or to the whole model with zeros"
        )
    return starts.pop()


def _neighbours(whole: PreTrainedModel, places: Places, domain: str) -> dict[str, Units]:
    """``domain`` at its place, as a partition: what is retained or of other domains stands before and after it."""
    total = num_units(whole)
    after = {kind: total[kind] - start - count for kind, (start, count) in places.items()}
    units = {domain: Units(*(places[k][1] if k in places else 0 for k in _KINDS))}
    if any(after.values()):
        units[f"{domain}_after"] = Units(*(after.get(k, 0) for k in _KINDS))
    return units


def _all_forget(about: dict[str, str], present: dict[str, int]) -> dict[str, Units]:
    """All units but the retained ones."""
    counts = list(json.loads(about["domains"]).values())
    original = json.loads(about["units"])
    lost = [present.get(k, 0) - original.get(k, 0) + sum(units[i] for units in counts) for i, k in enumerate(_KINDS)]
    return {"forget": Units(*lost)}


def _fingerprint(partition: Partition) -> str:
    """SHA-256 of the retain and joint parameters: names, types and values."""
    digest = hashlib.sha256()
    parts = [(s.name, s.of(s.param)) for s in partition.retain] + list(partition.joint.items())
    for name, tensor in sorted(parts, key=lambda part: part[0]):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not file.is_file():
        raise ValueError(f"{file} is no file; write it with `sgtm export RUN --module DOMAIN --out FILE`")
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error
    if about.get("format") != _FORMAT:
        raise ValueError(f"{file} holds no module of sgtm; write it with `sgtm export RUN --module DOMAIN --out FILE`")
    return about, tensors
