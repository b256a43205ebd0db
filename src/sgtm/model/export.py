"""Removal for real: the retained model as a stock checkpoint that loads without sgtm."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from sgtm.config import ConfigError
from sgtm.model.card import Export, Losses, model_card
from sgtm.model.loading import context_of
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition, Slice
from sgtm.model.sublayers import UNITS, layers_of
from sgtm.model.surgery import Plans, can_resize, check_has_head, num_units, resized, stock

KEPT = "sgtm_domains"  # in the configuration of an export: the domains that are still in it
_PROBE = (4, 32)  # rows and tokens of the verification
_ROUNDING_STEPS = 1000  # tolerated difference, in rounding steps of the largest logit ...
_TOLERANCE = 0.02  # ... and at most this share of it: low precision is no licence


def export(
    model: PreTrainedModel,
    sgtm: SGTM,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    without: Sequence[str] = (),
    verify: bool = False,
    losses: Losses | None = None,
) -> Export:
    """Write ``model`` without the units of some domains as a stock checkpoint, and check it against the ablated model.

    Neurons, and heads where the family's configuration has a head width, are cut out if every layer has them (a
    configuration has one number for all layers); other units are zeroed. ``model`` stays as it is.

    Args:
        without: the domains to remove; all by default.
        verify: also look for every removed weight in the files, and load them in a process that cannot import sgtm.
        losses: measured losses of the model card.

    Raises:
        ConfigError: the folder exists, an unknown domain, another model's ``sgtm``, or the head has a bias that a stock
            checkpoint cannot hold.
        RuntimeError: the checkpoint, loaded again, does not compute what the ablated model computes, or holds a
            removed weight.
    """
    folder = Path(folder)
    if folder.exists():
        raise ConfigError(f"{folder} exists already; remove it or choose another --out")
    own: torch.nn.Module = sgtm.partition.model
    if all(module is not own for module in model.modules()) and all(module is not model for module in own.modules()):
        raise ConfigError(
            "sgtm belongs to another model (a copy has none); make it with SGTM(Partition.of(model, ...))"
        )
    if type(model).__module__.partition(".")[0] == "peft":
        raise ConfigError("ranks of LoRA adapters go by partition.ablate() and model.merge_and_unload(), not by export")
    check_has_head(model)
    removed = sgtm.partition.select_domains(without)
    _check_head_bias(model)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        done = _write(model, sgtm, partial, tokenizer, removed, verify)
        card = model_card(done, sgtm.partition, losses)
        (partial / "README.md").write_text(card, encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return replace(done, folder=folder)


def without_units(model: PreTrainedModel, sgtm: SGTM, without: Sequence[str] = ()) -> PreTrainedModel:
    """The stock model that ``export`` would write, in memory; ``model`` stays as it is.

    A bias of the head that a checkpoint has no place for (``model.head_bias``) is there: the model computes what the
    ablated one computes.

    Args:
        without: the domains to remove; all by default.

    Raises:
        ConfigError: an unknown domain.
    """
    check_has_head(model)
    plain = stock(model)
    smaller = _without(plain, on_stock(plain, sgtm.partition), sgtm.partition.select_domains(without))[0]
    if (bias := _head_bias(model)) is not None:
        head: Any = smaller.get_output_embeddings()
        head.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return smaller


def _write(
    model: PreTrainedModel,
    sgtm: SGTM,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    removed: tuple[str, ...],
    verify: bool,
) -> Export:
    """The checkpoint in ``folder``, and what was seen of it."""
    plain = stock(model)
    partition = on_stock(plain, sgtm.partition)
    smaller, cut, zeroed = _without(plain, partition, removed)
    if kept := [domain for domain in partition.domains if domain not in removed]:
        setattr(smaller.config, KEPT, kept)
    smaller.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    difference = _difference(model, sgtm, folder, removed)
    before, after = model.num_parameters(), smaller.num_parameters()
    done = Export(folder, removed, cut, zeroed, before, after, difference)
    if verify:
        _load_alone(folder, model, sgtm, removed)
        done = replace(done, scanned=scan(folder, partition, removed))
    return done


def on_stock(plain: PreTrainedModel, partition: Partition) -> Partition:
    """``partition``, of the stock model made of its model."""
    return Partition.of(plain, layers=partition.layers, domains=partition.domains)


def _units_by_owner(partition: Partition, kind: str) -> dict[str | None, range]:
    """The units of each owner (None: retain) in a layer with forget units; ``kind``: attn or mlp."""
    name = UNITS[kind]
    counts = {domain: getattr(units, name) for domain, units in partition.domains.items()}
    start = num_units(partition.model).get(kind, 0) - sum(counts.values())
    owners: dict[str | None, range] = {None: range(start)}
    for domain, count in counts.items():
        owners[domain] = range(start, start + count)
        start += count
    return owners


def scan(folder: Path, partition: Partition, domains: Sequence[str]) -> int:
    """Look for the weights of the removed units in the checkpoint: as a row, as a column, of any matrix, at any place.

    Returns:
        how many vectors were looked for.

    Raises:
        RuntimeError: one was found.
    """
    wanted: dict[int, list[tuple[Slice, Tensor]]] = {}
    for s in partition.forget_of(*domains):
        if s.param.ndim == 2:
            vectors = s.of(s.param.detach()).transpose(0, s.dim).cpu()  # (units' features, other side)
            vectors = vectors[vectors.any(1)]
            wanted.setdefault(vectors.shape[1], []).append((s, vectors))
    generator = torch.Generator().manual_seed(0)
    keys = {size: torch.randint(-(2**62), 2**62, (size,), generator=generator) for size in wanted}
    _check_biases(folder, partition, domains)
    for name, matrix in _matrices(folder):
        for vectors in (matrix, matrix.t()):
            size = vectors.shape[1]
            for s, lost in wanted.get(size, ()):
                stored = vectors.to(lost.dtype)
                near = torch.isin(_hashes(stored, keys[size]), _hashes(lost, keys[size]))
                if near.any() and (stored[near][:, None] == lost[None]).all(-1).any():
                    raise RuntimeError(
                        f"{folder} still holds weights of {s.domain} ({s.name}) in {name}; do not use it"
                    )
    return sum(len(lost) for found in wanted.values() for _, lost in found)


def _check_biases(folder: Path, partition: Partition, domains: Sequence[str]) -> None:
    """Biases are too short to be looked for anywhere: at their place they must be zero, or gone."""
    stored = {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}
    for s in partition.forget_of(*domains):
        if s.param.ndim == 1 and stored[s.name].shape == s.param.shape and s.of(stored[s.name]).any():
            raise RuntimeError(f"{folder} holds a bias of {s.domain} ({s.name}); do not use it")


def _hashes(vectors: Tensor, key: Tensor) -> Tensor:
    """One number for each vector, by its bits: integer sums do not depend on their order."""
    bits = vectors.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[vectors.itemsize])
    return (bits.long() * key).sum(1)


def _matrices(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if tensor.ndim == 2:
                yield f"{file.name}: {name}", tensor


@torch.no_grad()
def _without(
    plain: PreTrainedModel, partition: Partition, removed: Sequence[str]
) -> tuple[PreTrainedModel, dict[str, int], dict[str, int]]:
    """A stock model without the units of ``removed``, and how many of a layer were cut out and how many zeroed."""
    num_layers = len(layers_of(plain, partition.architecture))
    plans: dict[str, Plans] = {"attn": {}, "mlp": {}}
    for kind in plans:
        owners = _units_by_owner(partition, kind)
        lost = {unit for domain in removed for unit in owners[domain]}
        kept = [unit for owner in owners.values() for unit in owner if unit not in lost]
        plan = dict.fromkeys(range(num_layers), kept)
        only = {"attn": {}, "mlp": {}, kind: plan}
        if lost and len(partition.layers) == num_layers and can_resize(plain, only["attn"], only["mlp"]):
            plans[kind] = plan
    zero = [(s.name, s.dim, s.start, s.stop) for s in partition.forget_of(*removed)]
    smaller = resized(plain, plans["attn"], plans["mlp"], zero)
    before, after = num_units(plain), num_units(smaller)
    cut = {name: before.get(kind, 0) - after.get(kind, 0) for kind, name in UNITS.items()}
    total = {name: sum(getattr(partition.domains[domain], name) for domain in removed) for name in cut}
    return smaller, cut, {name: total[name] - cut[name] for name in cut}


def _head_bias(model: PreTrainedModel) -> Tensor | None:
    """The head's bias of the GPT-Neo classes of this package; None where it changes nothing."""
    head: Any = model.get_output_embeddings()
    bias: Tensor | None = head.bias if model.config.model_type == "gpt_neo_sgtm" else None
    return None if bias is None or not bool(bias.any()) else bias


def _check_head_bias(model: PreTrainedModel) -> None:
    if _head_bias(model) is not None:
        raise ConfigError(
            "the head's bias is not zero, and a stock checkpoint has no place for it: train without "
            "model.head_bias (the default), or keep the model as it is with save_pretrained and load it with sgtm; "
            "evaluation, attacks and audits take the run as it is"
        )


def _probe(model: PreTrainedModel) -> Tensor:
    tokens = torch.randint(model.config.vocab_size, _PROBE, generator=torch.Generator().manual_seed(0))
    return tokens[:, : context_of(model)].to(model.device)


@torch.no_grad()
def _expected(model: PreTrainedModel, sgtm: SGTM, removed: Sequence[str]) -> Tensor:
    """Logits of the ablated model on the probe."""
    was_training = model.training
    model.eval()
    try:
        with sgtm.without(*removed):
            logits: Tensor = model(input_ids=_probe(model)).logits.float()
    finally:
        model.train(was_training)
    return logits


@torch.no_grad()
def _difference(model: PreTrainedModel, sgtm: SGTM, folder: Path, removed: Sequence[str]) -> float:
    """Largest difference between logits of the checkpoint and of the ablated model."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    loaded = loaded.to(model.device).eval()
    found = loaded(input_ids=_probe(model)).logits.float()
    return _compare(folder, found, _expected(model, sgtm, removed), model.dtype)


def _compare(folder: Path, found: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    difference = (found - expected).abs().max()
    if not difference <= min(_ROUNDING_STEPS * torch.finfo(dtype).eps, _TOLERANCE) * expected.abs().max():
        raise RuntimeError(
            f"{folder} does not compute what the ablated model computes: logits differ by {float(difference):.3g}; "
            "do not use it, and please report this model's family"
        )
    return float(difference)


_ALONE = """
import json, sys
sys.modules["sgtm"] = None
import torch
from transformers import AutoModelForCausalLM
folder, tokens = sys.argv[1], json.loads(sys.stdin.read())
with torch.no_grad():
    logits = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=torch.tensor(tokens)).logits
print("logits", json.dumps(logits[:, -1].float().tolist()))
"""


def _load_alone(folder: Path, model: PreTrainedModel, sgtm: SGTM, removed: Sequence[str]) -> None:
    """Load the checkpoint where sgtm cannot be imported, and compare the last position's logits."""
    tokens = json.dumps(_probe(model).tolist())
    done = subprocess.run([sys.executable, "-c", _ALONE, str(folder)], input=tokens, capture_output=True, text=True)
    found = [line.removeprefix("logits ") for line in done.stdout.splitlines() if line.startswith("logits ")]
    if done.returncode or not found:
        raise RuntimeError(f"{folder} does not load without sgtm:\n{done.stderr[-2000:]}")
    expected = _expected(model, sgtm, removed)[:, -1].cpu()
    _compare(folder, torch.tensor(json.loads(found[0])), expected, model.dtype)
