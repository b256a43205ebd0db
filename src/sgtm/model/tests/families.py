"""Tiny models of each family and, written out by hand, which of their features belong to forget units.

Nothing here looks at ``sgtm``: the laws compare the package with these tables.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoConfig, LlamaConfig, PretrainedConfig

RETAIN, FORGET, JOINT = 0, 1, 2
IDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
Joint = tuple[str, ...]

# What a forget batch still changes of the retain slices. An output bias is added behind the units.
REACHED: dict[str, set[str]] = {
    "parameter_masking": set(),
    "parameter_masking_no_mlp_proj": {"mlp.out", "mlp.out bias"},
    "parameter_masking_no_attn_proj": {"attn.out", "attn.out bias"},
    "parameter_masking_no_proj": {"attn.out", "attn.out bias", "mlp.out", "mlp.out bias"},
    "parameter_masking_no_proj_no_attn": {"attn.in", "attn.out", "attn.out bias", "mlp.out", "mlp.out bias"},
    "gradient_routing": {"attn.out", "attn.out bias", "mlp.out", "mlp.out bias"},
    "activation_masking": {"attn.out bias", "mlp.out bias"},
}


@dataclass(frozen=True, eq=False)
class Family:
    """A configuration, the units to forget, and the features (rows, columns) that these own.

    Args:
        blocks: path of the decoder blocks.
        ins, outs: projections below a block -> how many of the last rows (columns) are the forget units'.
        norms: the block's norms, in front of attention and in front of the MLP.
        embeddings: names of the embeddings' parameters.
    """

    config: PretrainedConfig
    heads: int
    neurons: int
    blocks: str
    ins: Mapping[str, int]
    outs: Mapping[str, int]
    norms: tuple[str, str]
    embeddings: tuple[str, ...]
    layers: tuple[int, ...] | None = None

    @property
    def units(self) -> dict[str, Any]:
        return {"heads": self.heads, "neurons": self.neurons, "layers": self.layers}

    @property
    def chosen(self) -> Sequence[int]:
        return range(self.config.num_hidden_layers) if self.layers is None else self.layers

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A copy of one random model in which no parameter is zero or one."""
        return copy.deepcopy(_random_model(self, dtype))

    def owners(self, model: nn.Module) -> dict[str, Tensor]:
        """RETAIN, FORGET or JOINT for each element of each parameter."""
        owners = {name: torch.full(p.shape, JOINT) for name, p in model.named_parameters()}
        for name, k in self._each(self.ins):
            for owner in (owners[p] for p in (f"{name}.weight", f"{name}.bias") if p in owners):
                owner[:] = RETAIN
                owner[len(owner) - k :] = FORGET
        for name, k in self._each(self.outs):
            weight = owners[f"{name}.weight"]
            weight[:] = RETAIN
            weight[:, weight.shape[1] - k :] = FORGET
            if f"{name}.bias" in owners:
                owners[f"{name}.bias"][:] = RETAIN
        return owners

    def sites(self) -> dict[str, str]:
        """The site of each projection, and ``site bias`` of an output bias."""
        kinds = {True: "attn", False: "mlp"}
        ins = {f"{n}.{p}": f"{kinds['attn' in n]}.in" for n, _ in self._each(self.ins) for p in ("weight", "bias")}
        outs = {f"{n}.weight": f"{kinds['attn' in n]}.out" for n, _ in self._each(self.outs)}
        return ins | outs | {f"{n}.bias": f"{kinds['attn' in n]}.out bias" for n, _ in self._each(self.outs)}

    def forget_inputs(self) -> dict[str, int]:
        """Output projections -> how many of the last features of their input the forget units write."""
        return dict(self._each(self.outs))

    def may_change(self, model: nn.Module, mode: str, strategy: str, joint: Joint) -> dict[str, Tensor]:
        """For each element of each parameter whether a batch of ``mode`` may change it."""
        sites, owners = self.sites(), self.owners(model)
        if mode == "default":
            return {name: torch.ones_like(owner, dtype=torch.bool) for name, owner in owners.items()}
        if mode == "retain":
            return {name: owner != FORGET for name, owner in owners.items()}
        kept = {name for name in owners if sites.get(name) in REACHED[strategy]}
        kept |= {n for n in owners if n not in sites} - self.joint_names(model, joint)
        return {name: (owner == FORGET) | (name in kept) for name, owner in owners.items()}

    def joint_names(self, model: nn.Module, joint: Joint) -> set[str]:
        names = set(self.embeddings) if "embeddings" in joint else set()
        if "norms" in joint:
            norms = {f"{self.blocks}.{i}.{norm}" for i in self.chosen for norm in self.norms}
            names |= {name for name, _ in model.named_parameters() if name.rpartition(".")[0] in norms}
        return names

    def cut_off(self, model: nn.Module, mode: str, strategy: str) -> set[str]:
        """Norms that no gradient comes back to: all units behind them are retain units, detached or silent."""
        if mode != "forget" or strategy not in ("gradient_routing", "activation_masking"):
            return set()
        silent = [norm for norm, k in zip(self.norms, (self.heads, self.neurons), strict=True) if not k]
        norms = {f"{self.blocks}.{i}.{norm}" for i in self.chosen for norm in silent}
        return {name for name, _ in model.named_parameters() if name.rpartition(".")[0] in norms}

    def _each(self, paths: Mapping[str, int]) -> list[tuple[str, int]]:
        return [(f"{self.blocks}.{i}.{path}", k) for i in self.chosen for path, k in paths.items()]


@cache
def _random_model(family: Family, dtype: torch.dtype) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(family.config)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0.0, 0.4, generator=generator).add_(0.5 if "norm" in name or "ln_" in name else 0.1)
    return model.to(dtype)


def tokens(seed: int = 0, rows: int = 3) -> dict[str, Tensor]:
    """A batch (rows, 8) with its labels."""
    ids = torch.randint(2, 24, (rows, 8), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def logits(model: nn.Module, seed: int = 0) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(seed)["input_ids"]).logits


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """A copy of each parameter's gradient, zeros where there is none."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def _gpt_neo(heads: int = 1, layers: tuple[int, ...] | None = None, attention: Any = None) -> Family:
    """Tied head, biases in all but queries, keys and values; by default a global and a local layer."""
    attention = attention or [[["global", "local"], 1]]
    config = GPTNeoConfig(
        vocab_size=24,
        hidden_size=16,
        num_layers=sum(len(kinds) * repeats for kinds, repeats in attention),
        attention_types=attention,
        num_heads=4,
        intermediate_size=12,
        max_position_embeddings=16,
        window_size=3,
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
        **IDS,
    )
    return Family(
        config,
        heads=heads,
        neurons=3,
        layers=layers,
        blocks="transformer.h",
        ins={f"attn.attention.{x}_proj": 4 * heads for x in "qkv"} | {"mlp.c_fc": 3},
        outs={"attn.attention.out_proj": 4 * heads, "mlp.c_proj": 3},
        norms=("ln_1", "ln_2"),
        embeddings=("transformer.wte.weight", "transformer.wpe.weight"),
    )


def _llama(
    heads: int = 1,
    neurons: int = 3,
    queries: int = 4,
    keys: int = 4,
    layers: tuple[int, ...] | None = None,
    **changes: Any,
) -> Family:
    """``queries`` and ``keys``: forget rows of the queries' projection, and of the keys' and values'."""
    settings: dict[str, Any] = {
        "vocab_size": 24,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 12,
        "max_position_embeddings": 16,
        "tie_word_embeddings": True,
    }
    attention = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
    return Family(
        LlamaConfig(**(settings | changes), **IDS),
        heads=heads,
        neurons=neurons,
        layers=layers,
        blocks="model.layers",
        ins=attention | {"mlp.gate_proj": neurons, "mlp.up_proj": neurons},
        outs={"self_attn.o_proj": queries, "mlp.down_proj": neurons},
        norms=("input_layernorm", "post_attention_layernorm"),
        embeddings=("model.embed_tokens.weight",),
    )


FAMILIES: dict[str, Family] = {
    "gpt_neo": _gpt_neo(),
    "gpt_neo_no_heads": _gpt_neo(heads=0),
    "gpt_neo_layers": _gpt_neo(layers=(2, 0), attention=[[["global", "local", "global"], 1]]),
    "llama": _llama(),
    "llama_no_neurons": _llama(neurons=0),
    "llama_grouped": _llama(heads=2, queries=8, keys=4, num_key_value_heads=2),
    "llama_biases": _llama(
        queries=6, keys=6, head_dim=6, attention_bias=True, mlp_bias=True, tie_word_embeddings=False
    ),
    "llama_layers": _llama(layers=(1,), num_hidden_layers=3),
}
