"""A domain's units as a file of their own, and back into the model that they were taken from."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from sgtm.config import ConfigError
from sgtm.model.export import KEPT, on_stock
from sgtm.model.partition import Partition, Slice, Units
from sgtm.model.sublayers import UNITS
from sgtm.model.surgery import Plans, num_units, resized, stock

_FORMAT = "sgtm.module"
_COSMETIC = {"transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "model_type", KEPT}


@torch.no_grad()
def export_module(model: PreTrainedModel, partition: Partition, domain: str, file: str | Path) -> int:
    """Write the units of one domain as safetensors, with the fingerprint of the model that they belong to.

    Returns:
        how many parameters were written.

    Raises:
        ConfigError: the file exists, or an unknown domain.
    """
    file = Path(file)
    if file.exists():
        raise ConfigError(f"{file} exists already; remove it or choose another --out")
    partition.select_domains([domain])
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
        "others": json.dumps({d: _digest(own.forget_of(d)) for d in own.domains if d != domain}),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, about | {"sha256": _content(about, tensors)})
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
    layers, domain = json.loads(about["layers"]), about["domain"]
    domains = {name: Units(*counts) for name, counts in json.loads(about["domains"]).items()}
    whole = _in_full(model, about, domains, file)
    partition = Partition.of(whole, layers=layers, domains=domains)
    if _fingerprint(partition) != about["fingerprint"]:
        raise ValueError(
            f"{file} was trained with other retained weights than this model's (the fingerprints differ, dtype "
            "included); attach it to the model that it was exported from"
        )
    for other, digest in json.loads(about["others"]).items():
        found = partition.forget_of(other)
        if any(bool(s.of(s.param).any()) for s in found) and _digest(found) != digest:
            raise ValueError(
                f"{file} was trained beside other weights of {other} than this model's; ablate {other} first"
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


def _in_full(
    model: PreTrainedModel, about: dict[str, str], domains: dict[str, Units], file: str | Path
) -> PreTrainedModel:
    """The model with units of zeros for every domain that was cut out of it."""
    original: dict[str, int] = json.loads(about["units"])
    kept = getattr(model.config, KEPT, ())
    plans: dict[str, Plans] = {"attn": {}, "mlp": {}}
    for kind, present in num_units(model).items():
        if present == original[kind]:
            continue
        name = UNITS[kind]
        retain = original[kind] - sum(getattr(units, name) for units in domains.values())
        if present != retain + sum(getattr(domains[domain], name) for domain in kept if domain in domains):
            raise ValueError(
                f"{file} belongs to a model of {original[kind]} {name} a layer, {retain} of them retained; this one "
                f"has {present}"
            )
        plan: list[int | None] = [*range(retain)]
        for domain, units in domains.items():
            count = getattr(units, name)
            first = sum(unit is not None for unit in plan)
            plan += range(first, first + count) if domain in kept else [None] * count
        plans[kind] = dict.fromkeys(range(model.config.num_hidden_layers), plan)
    if not plans["attn"] and not plans["mlp"]:
        return model
    whole = resized(model, plans["attn"], plans["mlp"])
    if hasattr(whole.config, KEPT):
        delattr(whole.config, KEPT)
    return whole


def _fingerprint(partition: Partition) -> str:
    """SHA-256 of what the units were trained with: the configuration but for sizes, retain and joint parameters."""
    config = partition.model.config.to_dict()
    sizes = {partition.architecture.mlp_width, "num_attention_heads", "num_heads", "num_key_value_heads", "head_dim"}
    kept = {k: v for k, v in config.items() if k not in sizes | _COSMETIC and not k.startswith("_")}
    joint = list(partition.joint.items())
    return _digest(partition.retain, joint, json.dumps(kept, default=str, sort_keys=True))


def _digest(slices: Sequence[Slice], joint: Sequence[tuple[str, Tensor]] = (), about: str = "") -> str:
    """SHA-256 of names, types and values."""
    return _sha256([(s.name, s.of(s.param)) for s in slices] + list(joint), about)


def _content(about: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of all that a module's file holds."""
    return _sha256(list(tensors.items()), json.dumps(about, sort_keys=True))


def _sha256(parts: Sequence[tuple[str, Tensor]], about: str) -> str:
    digest = hashlib.sha256(about.encode())
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
    if about.pop("sha256", "") != _content(about, tensors):
        raise ValueError(f"{file} is damaged: it is not what was written; restore it from a copy, or export it anew")
    return about, tensors
