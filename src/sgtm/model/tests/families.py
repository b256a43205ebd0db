"""Tiny models of each family and, written out by hand, which of their features belong to forget units.

Nothing here looks at ``sgtm``: the laws compare the package with these tables.
"""

import copy
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

RETAIN, FORGET, JOINT = 0, 1, 2
DEVICE = os.environ.get("SGTM_TEST_DEVICE", "cpu")  # what the laws are tried on
Joint = tuple[str, ...]
FROZEN: Joint = ("embeddings", "norms")

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


class Part(NamedTuple):
    """Attention or MLP of a block: how many units are forget units, and which features they own.

    Args:
        ins, outs: projections below a block -> their output (input) features that forget units own: "8:16 20:24".
        still: features of ``ins`` whose bias no gradient reaches: what is added to all keys of a head changes no
            softmax (rotary embeddings make it reach one, and so do norms).
    """

    units: int
    ins: Mapping[str, str]
    outs: Mapping[str, str]
    still: str = ""


@dataclass(frozen=True, eq=False)
class Family:
    """A configuration, the units to forget, and the features (rows, columns) that these own.

    Args:
        blocks: path of the decoder blocks.
        norms: the block's norms.
        embeddings: paths of the embeddings.
        conv1d: weights are input x output features.
        cut_off: modules of a block that only retain units read, or are read by: gradient routing and activation
            masking let no gradient of a forget batch back to them.
        at_zero: how large a gradient a zeroed unit still gets, as its activation function is not zero at zero.
    """

    config: PretrainedConfig
    attn: Part
    mlp: Part
    blocks: str
    norms: tuple[str, ...]
    embeddings: tuple[str, ...]
    layers: tuple[int, ...] | None = None
    conv1d: bool = False
    cut_off: tuple[str, ...] = ()
    at_zero: float = 0.0

    @property
    def heads(self) -> int:
        return self.attn.units

    @property
    def neurons(self) -> int:
        return self.mlp.units

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
        owners = {name: torch.full(p.shape, JOINT, device=p.device) for name, p in model.named_parameters()}
        for site, name, forget in self._projections():
            weight, bias = owners[f"{name}.weight"], owners.get(f"{name}.bias")
            for owner in (weight,) if bias is None else (weight, bias):
                owner[:] = RETAIN
            if site.endswith(".in"):
                _paint(weight, forget, 1 if self.conv1d else 0)
                if bias is not None:
                    _paint(bias, forget, 0)
            else:
                _paint(weight, forget, 0 if self.conv1d else 1)
        return owners

    def sites(self) -> dict[str, str]:
        """The site of each projection, and ``site bias`` of an output bias."""
        sites = {}
        for site, name, _ in self._projections():
            sites |= {f"{name}.weight": site, f"{name}.bias": site if site.endswith(".in") else f"{site} bias"}
        return sites

    def forget_inputs(self, model: nn.Module) -> dict[str, Tensor]:
        """Output projections -> for each feature of their input whether forget units write it."""
        dim = 0 if self.conv1d else 1
        owners = self.owners(model)
        return {
            name: owners[f"{name}.weight"].select(1 - dim, 0) == FORGET
            for site, name, _ in self._projections()
            if site.endswith(".out")
        }

    def still(self, model: nn.Module) -> dict[str, Tensor]:
        """For each element of each parameter whether it is a bias that no gradient reaches."""
        still = {name: torch.zeros_like(p, dtype=torch.int) for name, p in model.named_parameters()}
        for site, name, _ in self._projections():
            if site == "attn.in" and (name.endswith("k_proj") or len(self.attn.ins) == 1):
                _paint(still.get(f"{name}.bias", torch.empty(0)), self.attn.still, 0)
        return {name: mark == FORGET for name, mark in still.items()}

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
        embeddings = _parameters(model, self.embeddings) if "embeddings" in joint else set()
        return embeddings | (self.in_blocks(model, self.norms) | self._head_norms(model) if "norms" in joint else set())

    def _head_norms(self, model: nn.Module) -> set[str]:
        """What norms there are inside the chosen blocks' attention."""
        inside = tuple(f"{self.blocks}.{i}.self_attn." for i in self.chosen)
        norms = [n for n, m in model.named_modules() if n.startswith(inside) and "norm" in type(m).__name__.lower()]
        return _parameters(model, norms)

    def in_blocks(self, model: nn.Module, paths: Sequence[str]) -> set[str]:
        """The parameters of the chosen blocks' modules ``paths``."""
        return _parameters(model, [f"{self.blocks}.{i}.{path}" for i in self.chosen for path in paths])

    def _projections(self) -> Iterator[tuple[str, str, str]]:
        """(site, path, features of the forget units) of each projection."""
        for i in self.chosen:
            for kind, part in (("attn", self.attn), ("mlp", self.mlp)):
                for side, features in (("in", part.ins), ("out", part.outs)):
                    for path, forget in features.items():
                        yield f"{kind}.{side}", f"{self.blocks}.{i}.{path}", forget


def spans(features: str) -> list[tuple[int, int]]:
    """ "8:16 20:24" as pairs."""
    return [(int(start), int(stop)) for start, stop in (span.split(":") for span in features.split())]


def _paint(owner: Tensor, features: str, dim: int) -> None:
    for start, stop in spans(features):
        assert stop <= owner.shape[dim], (features, owner.shape)
        owner.narrow(dim, start, stop - start).fill_(FORGET)


def _parameters(model: nn.Module, paths: Collection[str]) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.rpartition(".")[0] in paths}


@cache
def _random_model(family: Family, dtype: torch.dtype) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    # The default implementation of experts (grouped_mm) has no fp64.
    model = AutoModelForCausalLM.from_config(copy.deepcopy(family.config), experts_implementation="eager").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0.0, 0.4, generator=generator).add_(0.5 if "norm" in name or "ln_" in name else 0.1)
    return model.to(DEVICE, dtype)


def tokens(seed: int = 0, rows: int = 3) -> dict[str, Tensor]:
    """A batch (rows, 8) with its labels."""
    ids = torch.randint(2, 24, (rows, 8), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids.to(DEVICE), "labels": ids.to(DEVICE)}


def logits(model: nn.Module, seed: int = 0) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(seed)["input_ids"]).logits


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """A copy of each parameter's gradient, zeros where there is none."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


# ---- Parts: 4 heads of 4 features, of which the last is forgotten (the last two, if two share a key and a value);
# ---- 12 neurons, of which the last 3 are.


def _attention(q: str, kv: str, where: str = "self_attn", out: str = "o_proj", still: str = "") -> Part:
    """Queries, keys and values in projections of their own."""
    ins = {f"{where}.q_proj": q, f"{where}.k_proj": kv, f"{where}.v_proj": kv}
    return Part(0 if not q else 2 if kv != q else 1, ins, {f"{where}.{out}": q}, still)


def _fused(units: int, path: str, qkv: str, out: str, columns: str, still: str = "") -> Part:
    return Part(units, {path: qkv}, {out: columns}, still)


def _mlp(ins: str, out: str, neurons: str = "9:12") -> Part:
    return Part(3, dict.fromkeys(ins.split(), neurons), {out: "9:12"})


HEAD = _attention("12:16", "12:16")
GROUP = _attention("8:16", "4:8")
NO_HEADS = _attention("", "")
GATED = _mlp("mlp.gate_proj mlp.up_proj", "mlp.down_proj")
GATED_IN_ONE = _mlp("mlp.gate_up_proj", "mlp.down_proj", "9:12 21:24")
UP = _mlp("mlp.up_proj", "mlp.down_proj")
UP_AND_BACK = _mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
GPT = _mlp("mlp.c_fc", "mlp.c_proj")
EXPERTS = Part(0, {}, {})  # joint: router and experts

# Keys of all heads, where queries, keys and values lie head by head.
KEYS = "4:8 16:20 28:32 40:44"

SIZES = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GPT_SIZES = SIZES | {"n_inner": 12}
LLAMA_SIZES = SIZES | {"intermediate_size": 12, "num_key_value_heads": 2, "head_dim": 4}
EXPERT_SIZES = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 12,
}


def _gpt(
    model_type: str,
    attn: Part,
    mlp: Part = GPT,
    norms: str = "ln_1 ln_2",
    embeddings: str = "wte wpe",
    root: str = "transformer",
    blocks: str = "h",
    layers: tuple[int, ...] | None = None,
    conv1d: bool = False,
    cut_off: str = "",
    **changes: Any,
) -> Family:
    """Families in the line of GPT-2: each head has a key and a value, or all share one."""
    config = AutoConfig.for_model(model_type, **(GPT_SIZES | changes))
    paths = tuple(f"{root}.{path}" for path in embeddings.split())
    norm_paths, cut_off_paths = tuple(norms.split()), tuple(cut_off.split())
    return Family(config, attn, mlp, f"{root}.{blocks}", norm_paths, paths, layers, conv1d, cut_off_paths)


def _llama(
    model_type: str = "llama",
    attn: Part = GROUP,
    mlp: Part = GATED,
    norms: str = "input_layernorm post_attention_layernorm",
    layers: tuple[int, ...] | None = None,
    cut_off: str = "",
    at_zero: float = 0.0,
    **changes: Any,
) -> Family:
    """Families in the line of Llama."""
    config = AutoConfig.for_model(model_type, **(LLAMA_SIZES | changes))
    embeddings = ("model.embed_tokens",)
    norm_paths, cut_off_paths = tuple(norms.split()), tuple(cut_off.split())
    return Family(
        config, attn, mlp, "model.layers", norm_paths, embeddings, layers, cut_off=cut_off_paths, at_zero=at_zero
    )


def _neo(attn: Part, kinds: tuple[str, ...] = ("global", "local"), **changes: Any) -> Family:
    """GPT-Neo, by default with a global and a local layer."""
    sizes = {"num_layers": len(kinds), "num_hidden_layers": len(kinds), "intermediate_size": 12, "window_size": 3}
    return _gpt("gpt_neo", attn, attention_types=[[list(kinds), 1]], **sizes, **changes)


def _falcon(rows: str, units: int = 1, norms: str = "", **changes: Any) -> Family:
    columns = {0: "", 1: "12:16", 2: "8:16"}[units]
    attn = _fused(units, "self_attention.query_key_value", rows, "self_attention.dense", columns)
    return _gpt("falcon", attn, UP_AND_BACK, norms, "word_embeddings", ffn_hidden_size=12, **changes)


_NEO_HEAD, _NEO_NO_HEADS = (_attention(rows, rows, "attn.attention", "out_proj") for rows in ("12:16", ""))
_OPT_HEAD = _attention("12:16", "12:16", out="out_proj", still="0:16")
_NORMS_AFTER = "post_attention_layernorm post_feedforward_layernorm"
_SANDWICH = "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm"
_QK_NORMS = "self_attn.q_norm self_attn.k_norm"
_BIASES = {"attention_bias": True, "mlp_bias": True}
_GEMMA = {"query_pre_attn_scalar": 4}
# Rotary embeddings reach all features of a head, so that a gradient reaches the biases of all keys.
_ROTARY = {"partial_rotary_factor": 1.0}

# Those that the whole table of strategies is tried on.
VARIANTS: dict[str, Family] = {
    "gpt_neo": _neo(_NEO_HEAD),
    "gpt_neo_no_heads": _neo(_NEO_NO_HEADS, cut_off="ln_1"),
    "gpt_neo_layers": _neo(_NEO_HEAD, ("global", "local", "global"), layers=(2, 0)),
    "llama": _llama(attn=HEAD, num_key_value_heads=4, tie_word_embeddings=True),
    "llama_no_neurons": _llama(
        attn=HEAD,
        mlp=Part(0, {"mlp.gate_proj": "", "mlp.up_proj": ""}, {"mlp.down_proj": ""}),
        cut_off="post_attention_layernorm",
        num_key_value_heads=4,
        tie_word_embeddings=True,
    ),
    "llama_grouped": _llama(tie_word_embeddings=True),
    "llama_biases": _llama(
        attn=Part(1, dict.fromkeys(HEAD.ins, "18:24"), {"self_attn.o_proj": "18:24"}),
        num_key_value_heads=4,
        head_dim=6,
        **_BIASES,
    ),
    "llama_layers": _llama(
        attn=HEAD, layers=(1,), num_hidden_layers=3, num_key_value_heads=4, tie_word_embeddings=True
    ),
}
FAMILIES: dict[str, Family] = VARIANTS | {
    "gpt2": _gpt(
        "gpt2", _fused(1, "attn.c_attn", "12:16 28:32 44:48", "attn.c_proj", "12:16", still="16:32"), conv1d=True
    ),
    "gpt_bigcode": _gpt("gpt_bigcode", _fused(0, "attn.c_attn", "", "attn.c_proj", "", still="16:20"), cut_off="ln_1"),
    "gpt_bigcode_heads": _gpt(
        "gpt_bigcode", _fused(1, "attn.c_attn", "36:48", "attn.c_proj", "12:16", still=KEYS), multi_query=False
    ),
    "gptj": _gpt(
        "gptj",
        _attention("12:16", "12:16", "attn", "out_proj"),
        _mlp("mlp.fc_in", "mlp.fc_out"),
        norms="ln_1",
        embeddings="wte",
        rotary_dim=4,
    ),
    "gpt_neox": _gpt(
        "gpt_neox",
        _fused(1, "attention.query_key_value", "36:48", "attention.dense", "12:16"),
        UP_AND_BACK,
        "input_layernorm post_attention_layernorm",
        "embed_in",
        "gpt_neox",
        "layers",
        intermediate_size=12,
        rotary_pct=1.0,
    ),
    "persimmon": _gpt(
        "persimmon",
        _fused(1, "self_attn.query_key_value", "36:48", "self_attn.dense", "12:16"),
        UP_AND_BACK,
        "input_layernorm post_attention_layernorm",
        "embed_tokens",
        "model",
        "layers",
        intermediate_size=12,
        hidden_act="gelu",
    ),
    "falcon": _falcon("", units=0, norms="input_layernorm"),
    "falcon_heads": _falcon(
        "36:48", norms="input_layernorm post_attention_layernorm", multi_query=False, parallel_attn=False, bias=True
    ),
    "falcon_groups": _falcon(
        "16:32", units=2, norms="ln_attn ln_mlp", new_decoder_architecture=True, num_kv_heads=2, bias=True
    ),
    "bloom": _gpt(
        "bloom",
        _fused(1, "self_attention.query_key_value", "36:48", "self_attention.dense", "12:16", still=KEYS),
        Part(3, {"mlp.dense_h_to_4h": "61:64"}, {"mlp.dense_4h_to_h": "61:64"}),
        "input_layernorm post_attention_layernorm",
        "word_embeddings word_embeddings_layernorm",
    ),
    "opt": _gpt(
        "opt",
        _OPT_HEAD,
        _mlp("fc1", "fc2"),
        "self_attn_layer_norm final_layer_norm",
        "embed_tokens embed_positions",
        "model.decoder",
        "layers",
        ffn_dim=12,
        word_embed_proj_dim=16,
        activation_function="gelu",
    ),
    "biogpt": _gpt(
        "biogpt",
        _OPT_HEAD,
        _mlp("fc1", "fc2"),
        "self_attn_layer_norm final_layer_norm",
        "embed_tokens embed_positions",
        "biogpt",
        "layers",
        intermediate_size=12,
    ),
    "phi": _llama(
        "phi", _attention("8:16", "4:8", out="dense"), _mlp("mlp.fc1", "mlp.fc2"), "input_layernorm", **_ROTARY
    ),
    "phi3": _llama(
        "phi3", _fused(2, "self_attn.qkv_proj", "8:16 20:24 28:32", "self_attn.o_proj", "8:16"), GATED_IN_ONE
    ),
    "mistral": _llama("mistral"),
    "ministral": _llama("ministral"),
    "ministral3": _llama("ministral3"),
    "qwen2": _llama("qwen2"),
    "qwen3": _llama("qwen3", _attention("12:24", "6:12"), head_dim=6, attention_bias=True),
    "gemma": _llama("gemma", _attention("12:24", "6:12"), head_dim=6),
    "olmo": _llama("olmo"),
    "granite": _llama("granite", attention_multiplier=0.3, residual_multiplier=0.5, logits_scaling=2.0, **_BIASES),
    "smollm3": _llama("smollm3", **_BIASES),
    "seed_oss": _llama("seed_oss", attention_out_bias=True, mlp_bias=True),
    "hunyuan_v1_dense": _llama("hunyuan_v1_dense", attention_bias=True),
    "ernie4_5": _llama("ernie4_5", use_bias=True),
    "helium": _llama("helium"),
    "stablelm": _llama("stablelm", use_qkv_bias=True, **_ROTARY),
    "cohere": _llama("cohere", norms="input_layernorm", attention_bias=True, logit_scale=1.0),
    "cohere2": _llama("cohere2", norms="input_layernorm", logit_scale=1.0),
    "gemma2": _llama("gemma2", norms=_SANDWICH, **_GEMMA),
    "gemma3_text": _llama("gemma3_text", norms=_SANDWICH, **_GEMMA),
    "vaultgemma": _llama("vaultgemma", norms="input_layernorm pre_feedforward_layernorm", **_GEMMA),
    "exaone4": _llama("exaone4", norms=_NORMS_AFTER),
    "nemotron": _llama("nemotron", mlp=UP, hidden_act="gelu", **_BIASES, **_ROTARY),
    "arcee": _llama("arcee", mlp=UP, hidden_act="gelu", **_BIASES),
    # xIELU(0) is about -1e-6.
    "apertus": _llama(
        "apertus",
        mlp=UP,
        norms="attention_layernorm feedforward_layernorm",
        at_zero=1e-6,
    ),
    "starcoder2": _llama("starcoder2", mlp=GPT),
    "glm": _llama("glm", mlp=GATED_IN_ONE, **_ROTARY),
    "glm4": _llama(
        "glm4",
        mlp=GATED_IN_ONE,
        norms="input_layernorm post_attention_layernorm post_self_attn_layernorm post_mlp_layernorm",
        **_ROTARY,
    ),
    "olmo2": _llama("olmo2", NO_HEADS, norms=_NORMS_AFTER, cut_off=_QK_NORMS, attention_bias=True),
    "olmo3": _llama("olmo3", NO_HEADS, norms=_NORMS_AFTER, cut_off=_QK_NORMS, attention_bias=True),
    "mixtral": _llama("mixtral", mlp=EXPERTS, **EXPERT_SIZES),
    "qwen2_moe": _llama("qwen2_moe", mlp=EXPERTS, **EXPERT_SIZES),
    "qwen3_moe": _llama("qwen3_moe", mlp=EXPERTS, **EXPERT_SIZES),
    "granitemoe": _llama("granitemoe", mlp=EXPERTS, attention_bias=True, **EXPERT_SIZES),
    "phimoe": _llama("phimoe", mlp=EXPERTS, router_jitter_noise=1.0, **EXPERT_SIZES),
}


class Case(NamedTuple):
    """A family, and what forget batches change of it."""

    family: Family
    strategy: str
    joint: Joint

    def may_change(self, model: nn.Module, mode: str) -> dict[str, Tensor]:
        return self.family.may_change(model, mode, self.strategy, self.joint)

    def cut_off(self, model: nn.Module, mode: str) -> set[str]:
        """Joint parameters that no gradient comes back to."""
        if mode != "forget" or self.strategy not in ("gradient_routing", "activation_masking"):
            return set()
        return self.family.in_blocks(model, self.family.cut_off)


def _cases() -> Iterator[tuple[str, Case]]:
    """Every strategy and choice of joint parameters for ``VARIANTS``, a few for the other families."""
    few = (("parameter_masking", FROZEN), ("gradient_routing", ()), ("activation_masking", ()))
    every = tuple((strategy, joint) for strategy in REACHED for joint in ((), FROZEN))
    for name, family in FAMILIES.items():
        for strategy, joint in every if name in VARIANTS else few:
            yield f"{name}-{strategy}-joint_{'frozen' if joint else 'updated'}", Case(family, strategy, joint)


CASES: dict[str, Case] = dict(_cases())
