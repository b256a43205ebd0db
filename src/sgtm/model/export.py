"""Removal for real: the retained model as a stock checkpoint that loads without sgtm."""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPTNeoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sgtm.config import ConfigError
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition

_PROBE = (4, 32)  # rows and tokens of the verification
_ROUNDING_STEPS = 1000  # tolerated difference, in rounding steps of the largest logit ...
_TOLERANCE = 0.02  # ... and at most this share of it: low precision is no licence


@dataclass(frozen=True)
class Export:
    """What was written.

    Args:
        max_difference: largest difference between logits of the checkpoint and of the ablated model.
        cut: whether forget neurons were cut out; otherwise they are zero.
    """

    folder: Path
    parameters_before: int
    parameters_after: int
    max_difference: float
    cut: bool

    def __str__(self) -> str:
        how = "neurons cut out, heads zeroed" if self.cut else "all zeroed"
        return (
            f"written to {self.folder}: forget units removed ({how}), {self.parameters_before:,} -> "
            f"{self.parameters_after:,} parameters; loaded again by stock transformers, its logits differ from the "
            f"ablated model's by at most {self.max_difference:.2g}"
        )


def export(
    model: PreTrainedModel, sgtm: SGTM, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> Export:
    """Write ``model`` without its forget units as a stock checkpoint, and check it against the retain pass.

    Forget neurons are cut out where every layer has them, as the configuration has one width for all; other forget
    units are zeroed. ``model`` stays as it is.

    Raises:
        ConfigError: the folder exists, or the head has a bias that a stock checkpoint cannot hold.
        RuntimeError: the checkpoint, loaded again, does not compute what the ablated model computes.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists already; remove it or choose another --out")
    _check_head_bias(model)
    stock = _without_forget_units(model, sgtm.partition)
    stock.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    difference = _difference(model, sgtm, folder)
    before, after = model.num_parameters(), stock.num_parameters()
    return Export(folder, before, after, difference, _cuts_neurons(sgtm.partition))


@torch.no_grad()
def _without_forget_units(model: PreTrainedModel, partition: Partition) -> PreTrainedModel:
    cut = _cuts_neurons(partition)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for s in partition.forget:
        if cut and s.site.startswith("mlp"):
            state[s.name] = state[s.name].narrow(s.dim, 0, s.start).clone()  # forget units are the last ones
        else:
            s.of(state[s.name]).zero_()
    config = _stock_config(model.config)
    if cut:
        width = config.intermediate_size or 4 * config.hidden_size
        setattr(config, partition.architecture.mlp_width, width - partition.neurons)
    stock: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(model.dtype)
    stock.load_state_dict(_joined(state, stock))
    return stock


def _joined(state: dict[str, Tensor], stock: nn.Module) -> dict[str, Tensor]:
    """``state`` under the names of the stock model: split layers joined, a zero head bias left out."""
    whole = {}
    for name in stock.state_dict():
        parts = [state[key] for key in (name, f"{name}_retain", f"{name}_forget") if key in state]
        whole[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return whole


def _stock_config(config: PreTrainedConfig) -> PreTrainedConfig:
    if config.model_type == "gpt_neo_sgtm":
        return GPTNeoConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(GPTNeoConfig) if f.init})
    return copy.deepcopy(config)


def _cuts_neurons(partition: Partition) -> bool:
    every_layer = len(partition.layers) == partition.model.config.num_hidden_layers
    return partition.neurons > 0 and every_layer


def _check_head_bias(model: PreTrainedModel) -> None:
    bias = model.get_output_embeddings().bias
    if bias is not None and bool(bias.any()):
        raise ConfigError(
            "the head's bias is not zero, and a stock checkpoint has no place for it: train without "
            "model.head_bias (the default), or keep the model as it is with save_pretrained and load it with sgtm"
        )


@torch.no_grad()
def _difference(model: PreTrainedModel, sgtm: SGTM, folder: Path) -> float:
    """Largest difference between logits of the checkpoint and of the ablated model."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    loaded = loaded.to(model.device).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, _PROBE, generator=generator).to(model.device)
    tokens = tokens[:, : model.config.max_position_embeddings]
    was_training = model.training
    model.eval()
    try:
        with sgtm.forward("retain"):
            expected = model(input_ids=tokens).logits.float()
    finally:
        model.train(was_training)
    difference = (loaded(input_ids=tokens).logits.float() - expected).abs().max()
    if difference > min(_ROUNDING_STEPS * torch.finfo(model.dtype).eps, _TOLERANCE) * expected.abs().max():
        raise RuntimeError(
            f"{folder} does not compute what the ablated model computes: logits differ by {float(difference):.3g}; "
            "do not use it, and please report this model's family"
        )
    return float(difference)
