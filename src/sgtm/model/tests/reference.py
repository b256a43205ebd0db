"""Gradients of a batch in which every position has its own mode, by plain autograd.

Each module with parameters is replaced by one that computes every mode apart, with parameters
``where(mask, W, W.detach())``, and takes at each position what that position's mode computes. Which feature is whose is
written out by hand: nothing of ``sgtm`` is asked.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoConfig, LlamaConfig, OPTConfig, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from sgtm.model.gpt_neo import GPTNeoForCausalLMSGTM, GPTNeoSGTMConfig
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition, Units
from sgtm.model.tests.families import gradients

Owners = Sequence[str]  # retain or a domain: of each unit, or of each feature
Features = Callable[[Owners, Owners], Owners]  # owners of heads and neurons -> of a projection's features
Gradients = dict[str, Tensor]
HEADS, NEURONS, LAYERS, VOCABULARY = 8, 12, 2, 24
SITES = {"attn.in", "attn.out", "mlp.in", "mlp.out"}
FROZEN: dict[str, set[str]] = {
    "parameter_masking": SITES,
    "parameter_masking_no_mlp_proj": SITES - {"mlp.out"},
    "parameter_masking_no_attn_proj": SITES - {"attn.out"},
    "parameter_masking_no_proj": SITES - {"attn.out", "mlp.out"},
    "parameter_masking_no_proj_no_attn": {"mlp.in"},
    "gradient_routing": set(),
    "activation_masking": set(),
}
MAIN = ("parameter_masking", "gradient_routing", "activation_masking")


def _each(owners: Owners, width: int = 2) -> Owners:
    return [owner for owner in owners for _ in range(width)]


def _of_heads(heads: Owners, _: Owners) -> Owners:
    return _each(heads)


def _of_shared_heads(heads: Owners, _: Owners) -> Owners:
    return _each(heads[::2])


def _of_neurons(_: Owners, neurons: Owners) -> Owners:
    return neurons


@dataclass(frozen=True, eq=False)
class Tiny:
    """A random model of 2 layers with 8 heads of width 2 and 12 neurons each.

    Args:
        ins, outs: projections below a block -> who owns their outputs (inputs).
        joint: group -> how names of its parameters begin, or which part of them says it.
        heads: heads of the one forget domain; it has 3 neurons.
    """

    config: PretrainedConfig
    blocks: str
    ins: Mapping[str, Features]
    outs: Mapping[str, Features]
    joint: Mapping[str, tuple[str, ...]]
    heads: int = 1
    split: bool = False

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A copy of one stock model in which no parameter is zero or one."""
        return copy.deepcopy(_random(self)).to(dtype)

    def owners(self, domains: Mapping[str, Units] | None = None) -> tuple[Owners, Owners]:
        """Owners of heads and of neurons."""
        domains = domains or {"forget": Units(self.heads, 3)}
        heads = [name for name, units in domains.items() for _ in range(units.heads)]
        neurons = [name for name, units in domains.items() for _ in range(units.neurons)]
        return ["retain"] * (HEADS - len(heads)) + heads, ["retain"] * (NEURONS - len(neurons)) + neurons

    def site(self, module: str) -> tuple[str, Features] | None:
        for side, table in (("in", self.ins), ("out", self.outs)):
            for path, features in table.items():
                if module in [f"{self.blocks}.{i}.{path}" for i in range(LAYERS)]:
                    return f"{'attn' if 'attn' in path else 'mlp'}.{side}", features
        return None

    def groups(self, joint: Sequence[str]) -> tuple[str, ...]:
        return tuple(part for group in joint for part in self.joint[group])


@cache
def _random(tiny: Tiny) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(tiny.config)).eval()
    if tiny.split:  # GPTNeoForCausalLMSGTM's head has a bias
        model.lm_head.bias = nn.Parameter(torch.zeros(VOCABULARY))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0.0, 0.4, generator=generator).add_(0.5 if "norm" in name or "ln_" in name else 0.1)
    return model


def owned_by(tiny: Tiny, model: nn.Module, domains: Mapping[str, Units] | None = None) -> dict[str, Tensor]:
    """For each parameter the owner of each element, as an index into (joint, retain, *domains)."""
    names = ("joint", "retain", *(domains or {"forget": None}))
    found = {}
    for name, p in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        site = tiny.site(path)
        if site is None:
            found[name] = torch.zeros(p.shape, dtype=torch.long)
        elif site[0].endswith("out") and leaf == "bias":
            found[name] = torch.ones(p.shape, dtype=torch.long)
        else:
            index = torch.tensor([names.index(owner) for owner in site[1](*tiny.owners(domains))])
            along_rows = site[0].endswith("in") != isinstance(model.get_submodule(path), Conv1D)
            index = index[:, None] if along_rows and leaf == "weight" else index
            found[name] = index.expand(p.shape).clone()
    return found


def changeable(
    tiny: Tiny, strategy: str, joint: Sequence[str], domains: Mapping[str, Units] | None = None
) -> dict[str, Tensor]:
    """For each element whether a batch of a domain uses it as more than a constant; other domains' units are silent."""
    model = tiny.model()
    found = {}
    for name, owner in owned_by(tiny, model, domains).items():
        site = tiny.site(name.rpartition(".")[0])
        if site is None:
            frozen = any(name.startswith(part) or f".{part}." in name for part in tiny.groups(joint))
            found[name] = torch.full(owner.shape, not frozen)
        else:
            found[name] = owner != 1 if site[0] in FROZEN[strategy] else torch.ones_like(owner, dtype=torch.bool)
    return found


class _EachMode(nn.Module):
    """``inner`` computed in every mode; at each position, what is asked for there."""

    def __init__(self, inner: nn.Module, masks: list[Gradients], treat: list[Callable], codes: Tensor) -> None:
        super().__init__()
        self.inner, self.masks, self.treat, self.codes = inner, masks, treat, codes

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = None
        for code, (masks, treat) in enumerate(zip(self.masks, self.treat, strict=True)):
            p = {n: torch.where(masks[n], p, p.detach()) for n, p in self.inner.named_parameters()}
            z = functional_call(self.inner, p, (treat(x), *args), kwargs)
            at = (self.codes.flatten() if z.ndim == 2 else self.codes)[..., None] == code
            y = z if y is None else torch.where(at, z, y)
        return y


def _treatment(mode: str, strategy: str, owners: Owners, heard: Collection[str]) -> Callable[[Tensor], Tensor]:
    """What becomes of features in front of an output projection."""
    retain = torch.tensor([owner == "retain" for owner in owners])
    own = torch.tensor([owner == mode != "retain" or owner in heard for owner in owners])
    if mode == "default":
        return lambda x: x
    if mode == "retain":
        return lambda x: torch.where(own | retain, x, 0.0)
    if strategy == "activation_masking":
        return lambda x: torch.where(own, x, 0.0)
    if strategy == "gradient_routing":
        return lambda x: torch.where(own, x, torch.where(retain, x.detach(), 0.0))
    return lambda x: torch.where(own | retain, x, 0.0)


def reference(
    tiny: Tiny,
    strategy: str,
    joint: Sequence[str],
    codes: Tensor,
    batch: Mapping[str, Tensor],
    domains: Mapping[str, Units] | None = None,
    constant: Collection[int] = (),
    heard: Collection[str] = (),
) -> Gradients:
    """Gradients of the plain model in float64.

    Args:
        codes: (batch, seq), indices into (default, retain, *domains).
        constant: modes at whose positions *every* parameter is a constant.
        heard: domains whose units take part in other modes, as constants.
    """
    model = tiny.model()
    modes = ("default", "retain", *(domains or {"forget": None}))
    masks = changeable(tiny, strategy, joint, domains)
    by_id = {id(p): masks[name] for name, p in model.named_parameters()}
    owned = owned_by(tiny, model, domains)
    owner_by_id = {id(p): owned[name] for name, p in model.named_parameters()}
    for path, module in list(model.named_modules()):
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        of_domains = {name: by_id[id(p)] for name, p in own.items()}
        whole, nothing = ({n: torch.full(p.shape, to) for n, p in own.items()} for to in (True, False))
        each = [nothing if i in constant else of_domains if i > 1 else whole for i in range(len(modes))]
        for i, mode in enumerate(modes[1:], 1):
            others = torch.tensor([modes.index(d) for d in heard if d != mode], dtype=torch.long)
            each[i] = {n: each[i][n] & ~torch.isin(owner_by_id[id(p)], others) for n, p in own.items()}
        site = tiny.site(path)
        owners = site[1](*tiny.owners(domains)) if site and site[0].endswith("out") else None
        treat = [_treatment(mode, strategy, owners, heard) if owners else lambda x: x for mode in modes]
        model.set_submodule(path, _EachMode(module, each, treat, codes))
    model(**batch).loss.backward()
    return {name.replace(".inner", ""): grad for name, grad in gradients(model).items()}


# ---- The package's side


def prepare(
    tiny: Tiny,
    strategy: str = "parameter_masking",
    joint: Sequence[str] = (),
    domains: Mapping[str, Units] | None = None,
    dtype: torch.dtype = torch.float64,
) -> SGTM:
    model = tiny.model(dtype)
    if not tiny.split:
        units = {"domains": domains} if domains else {"heads": tiny.heads, "neurons": 3}
        return SGTM(Partition.of(model, **units), strategy, joint)
    settings = {
        "retain_attn_heads": HEADS - tiny.heads,
        "retain_mlp_dim": NEURONS - 3,
        "split_masked_weights": True,
        "masking_strategy": strategy,
        "joint": list(joint),
        "attn_implementation": "eager",  # as the references: it computes attention in fp32
    }
    split = GPTNeoForCausalLMSGTM(GPTNeoSGTMConfig(**(tiny.config.to_dict() | settings))).eval().to(dtype)
    values = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in split.named_parameters():
            whole = values[name.removesuffix("_retain").removesuffix("_forget")]
            p.copy_(whole[-len(p) :] if name.endswith("_forget") else whole[: len(p)])
    return split.sgtm


def joined(grads: Gradients) -> Gradients:
    """``weight_retain`` and ``weight_forget`` as one ``weight``."""
    found = {name: grad for name, grad in grads.items() if not name.endswith(("_retain", "_forget"))}
    for name in grads:
        if name.endswith("_retain"):
            whole = name.removesuffix("_retain")
            found[whole] = torch.cat((grads[name], grads[f"{whole}_forget"]))
    return found


def assert_close(actual: Gradients, expected: Gradients, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# ---- The models

_SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
_GPT_JOINT = {
    "embeddings": ("transformer.wte", "transformer.wpe"),
    "norms": ("ln_1", "ln_2"),
    "final_norm": ("transformer.ln_f",),
}
_GPT_NEO = Tiny(
    GPTNeoConfig(
        **_SIZES,
        hidden_size=16,
        num_layers=LAYERS,
        attention_types=[[["global", "local"], 1]],
        num_heads=HEADS,
        intermediate_size=NEURONS,
        max_position_embeddings=16,
        window_size=3,
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
    ),
    blocks="transformer.h",
    ins=dict.fromkeys([f"attn.attention.{x}_proj" for x in "qkv"], _of_heads) | {"mlp.c_fc": _of_neurons},
    outs={"attn.attention.out_proj": _of_heads, "mlp.c_proj": _of_neurons},
    joint=_GPT_JOINT,
)
TINY = {
    "gpt_neo": _GPT_NEO,
    "gpt_neo_sgtm": Tiny(**(vars(_GPT_NEO) | {"split": True})),
    "gpt2": Tiny(
        GPT2Config(
            **_SIZES,
            n_embd=16,
            n_layer=LAYERS,
            n_head=HEADS,
            n_inner=NEURONS,
            n_positions=16,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        ),
        blocks="transformer.h",
        ins={"attn.c_attn": lambda heads, _: 3 * _each(heads), "mlp.c_fc": _of_neurons},
        outs={"attn.c_proj": _of_heads, "mlp.c_proj": _of_neurons},
        joint=_GPT_JOINT,
    ),
    "llama": Tiny(
        LlamaConfig(
            **_SIZES,
            hidden_size=16,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            intermediate_size=NEURONS,
            max_position_embeddings=16,
            tie_word_embeddings=False,
        ),
        blocks="model.layers",
        ins={
            "self_attn.q_proj": _of_heads,
            "self_attn.k_proj": _of_shared_heads,
            "self_attn.v_proj": _of_shared_heads,
            "mlp.gate_proj": _of_neurons,
            "mlp.up_proj": _of_neurons,
        },
        outs={"self_attn.o_proj": _of_heads, "mlp.down_proj": _of_neurons},
        joint={
            "embeddings": ("model.embed_tokens",),
            "norms": ("input_layernorm", "post_attention_layernorm"),
            "final_norm": ("model.norm",),
            "head": ("lm_head",),
        },
        heads=2,
    ),
    "opt": Tiny(
        OPTConfig(
            **_SIZES,
            hidden_size=16,
            word_embed_proj_dim=16,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            ffn_dim=NEURONS,
            max_position_embeddings=16,
            dropout=0.0,
        ),
        blocks="model.decoder.layers",
        ins=dict.fromkeys([f"self_attn.{x}_proj" for x in "qkv"], _of_heads) | {"fc1": _of_neurons},
        outs={"self_attn.out_proj": _of_heads, "fc2": _of_neurons},
        joint={
            "embeddings": ("model.decoder.embed_tokens", "model.decoder.embed_positions"),
            "norms": ("self_attn_layer_norm", "layers.0.final_layer_norm", "layers.1.final_layer_norm"),
            "final_norm": ("model.decoder.final_layer_norm",),
        },
    ),
}
