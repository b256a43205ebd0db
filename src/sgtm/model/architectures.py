"""Where each model family keeps the projections of its units: one row a family.

A decoder sublayer is *input projections -> units -> output projection*. A row says where these stand inside a decoder
block, and which of the remaining (joint) parameters are embeddings, norms and head. A family earns its row by passing
the laws in ``model/tests/test_laws.py``; to add one, write its row, put a tiny configuration of it into the tests'
``FAMILIES`` and run them. ``sgtm families`` prints the table.

Units must be independent: nothing between input and output projections may mix them. What cannot pass is refused by
name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from sgtm.config import nearest

Layout = Literal["separate", "concatenated", "interleaved"]


@dataclass(frozen=True)
class Architecture:
    """Paths of one family's projections and joint parameters.

    Args:
        layers: the list of decoder blocks, below the base model.
        attn_in, attn_out, mlp_in, mlp_out: projections below a block; units write what ``*_out`` reads.
        block_norms: norms below a block; those of queries and keys (``HEAD_NORMS``) need not be named.
        embeddings, final_norm, head: globs of parameter names.
        mlp_width: the configuration's key for the number of MLP neurons; "" where it has none.
        attn_layout: how queries, keys and values lie in ``attn_in``: in projections of their own (``separate``), one
            after the other in one (``concatenated``), or by key/value group, or head (``interleaved``).
        cuts_heads: the model takes a head width (``head_dim``) of its own, so that a checkpoint can have fewer heads.
        permutes_heads: whether a head does the same at any place (not under ALiBi, whose slopes go by place).
        no_heads, no_neurons: why heads or neurons cannot be units; "" where they can.
        refused_with: configuration keys that, if true, break a law, and how.
    """

    layers: str
    attn_in: tuple[str, ...]
    attn_out: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    block_norms: tuple[str, ...]
    embeddings: tuple[str, ...]
    final_norm: str
    head: str = "lm_head.*"
    mlp_width: str = "intermediate_size"
    attn_layout: Layout = "separate"
    cuts_heads: bool = False
    permutes_heads: bool = True
    no_heads: str = ""
    no_neurons: str = ""
    refused_with: Mapping[str, str] = field(default_factory=dict)


# What families call the norms of queries and keys; all heads of a layer share one.
HEAD_NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_layernorm", "key_layernorm")
_QK_NORM = "its query and key norms span all heads, so a silent head changes the others (laws 3 and 5)"
_EXPERTS = (
    "neurons lie in experts. A whole expert is no unit that zeros remove (law 3): with its router row zero it is "
    "still chosen, as a logit of 0 wins places among the top k (2 to 6 % of tokens of tiny random models; logits are "
    "off by 0.4 to 1.4 for mixtral, qwen3_moe and olmoe)"
)

_GPT_NEO = Architecture(
    layers="h",
    attn_in=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    attn_out="attn.attention.out_proj",
    mlp_in=("mlp.c_fc",),
    mlp_out="mlp.c_proj",
    block_norms=("ln_1", "ln_2"),
    embeddings=("wte.*", "wpe.*"),
    final_norm="ln_f.*",
)
_GPT2 = replace(
    _GPT_NEO, attn_in=("attn.c_attn",), attn_out="attn.c_proj", mlp_width="n_inner", attn_layout="concatenated"
)
_GPTJ = replace(
    _GPT_NEO,
    attn_in=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    attn_out="attn.out_proj",
    mlp_in=("mlp.fc_in",),
    mlp_out="mlp.fc_out",
    block_norms=("ln_1",),
    embeddings=("wte.*",),
    mlp_width="n_inner",
)
_LLAMA = Architecture(
    layers="layers",
    attn_in=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attn_out="self_attn.o_proj",
    mlp_in=("mlp.gate_proj", "mlp.up_proj"),
    mlp_out="mlp.down_proj",
    block_norms=("input_layernorm", "post_attention_layernorm"),
    embeddings=("embed_tokens.*",),
    final_norm="norm.*",
    cuts_heads=True,
)
_UP_ALONE = replace(_LLAMA, mlp_in=("mlp.up_proj",))
_GATE_UP = replace(_LLAMA, mlp_in=("mlp.gate_up_proj",))
_NORMS_AFTER = replace(_LLAMA, block_norms=("post_attention_layernorm", "post_feedforward_layernorm"))
_SANDWICH = replace(
    _LLAMA,
    block_norms=(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
)
_MOE = replace(_LLAMA, mlp_in=(), mlp_out="", no_neurons=_EXPERTS)
_NEOX = replace(
    _LLAMA,
    attn_in=("attention.query_key_value",),
    attn_out="attention.dense",
    mlp_in=("mlp.dense_h_to_4h",),
    mlp_out="mlp.dense_4h_to_h",
    embeddings=("embed_in.*",),
    final_norm="final_layer_norm.*",
    attn_layout="interleaved",
    cuts_heads=False,
)
_FALCON = replace(
    _NEOX,
    layers="h",
    attn_in=("self_attention.query_key_value",),
    attn_out="self_attention.dense",
    block_norms=("input_layernorm", "post_attention_layernorm", "ln_attn", "ln_mlp"),
    embeddings=("word_embeddings.*",),
    final_norm="ln_f.*",
    mlp_width="ffn_hidden_size",
)
_OPT = replace(
    _LLAMA,
    layers="decoder.layers",
    attn_out="self_attn.out_proj",
    mlp_in=("fc1",),
    mlp_out="fc2",
    block_norms=("self_attn_layer_norm", "final_layer_norm"),
    embeddings=("embed_tokens.*", "embed_positions.*"),
    final_norm="decoder.final_layer_norm.*",
    mlp_width="ffn_dim",
    cuts_heads=False,
)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt_neo": _GPT_NEO,
    "gpt_neo_sgtm": _GPT_NEO,
    "gpt2": _GPT2,
    "gpt_bigcode": replace(_GPT2, attn_layout="interleaved"),
    "gptj": _GPTJ,
    "gpt_neox": _NEOX,
    "persimmon": replace(
        _NEOX,
        attn_in=("self_attn.query_key_value",),
        attn_out="self_attn.dense",
        embeddings=("embed_tokens.*",),
        final_norm="final_layernorm.*",
    ),
    "falcon": replace(_FALCON, refused_with={"alibi": "ALiBi adds a bias by the place of a head; not supported yet"}),
    "bloom": replace(
        _FALCON,
        block_norms=("input_layernorm", "post_attention_layernorm"),
        embeddings=("word_embeddings.*", "word_embeddings_layernorm.*"),
        mlp_width="",
        permutes_heads=False,
    ),
    "opt": _OPT,
    "biogpt": replace(
        _OPT,
        layers="layers",
        final_norm="layer_norm.*",
        head="output_projection.*",
        mlp_width="intermediate_size",
    ),
    "phi": replace(
        _LLAMA,
        attn_out="self_attn.dense",
        mlp_in=("mlp.fc1",),
        mlp_out="mlp.fc2",
        block_norms=("input_layernorm",),
        final_norm="final_layernorm.*",
        refused_with={"qk_layernorm": "its norms take their width from hidden_size / heads; not supported yet"},
    ),
    "phi3": replace(_GATE_UP, attn_in=("self_attn.qkv_proj",), attn_layout="concatenated"),
    **dict.fromkeys(("llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "gemma", "olmo"), _LLAMA),
    **dict.fromkeys(("granite", "smollm3", "seed_oss", "hunyuan_v1_dense", "ernie4_5"), _LLAMA),
    "helium": replace(_LLAMA, cuts_heads=False),
    "stablelm": replace(
        _LLAMA, cuts_heads=False, refused_with={"qk_layernorm": "each head has norms of its own, which no slice owns"}
    ),
    "cohere": replace(
        _LLAMA,
        block_norms=("input_layernorm",),
        refused_with={"use_qk_norm": "each head has norm weights of its own, which no slice owns"},
    ),
    "cohere2": replace(_LLAMA, block_norms=("input_layernorm",)),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "vaultgemma": replace(_LLAMA, block_norms=("input_layernorm", "pre_feedforward_layernorm")),
    "exaone4": _NORMS_AFTER,
    "nemotron": _UP_ALONE,
    "arcee": _UP_ALONE,
    # Its activation gives -1e-6 at 0: ablated neurons are not wholly without gradient there.
    "apertus": replace(_UP_ALONE, block_norms=("attention_layernorm", "feedforward_layernorm")),
    "starcoder2": replace(_LLAMA, mlp_in=("mlp.c_fc",), mlp_out="mlp.c_proj"),
    "glm": _GATE_UP,
    "glm4": replace(_GATE_UP, block_norms=(*_LLAMA.block_norms, "post_self_attn_layernorm", "post_mlp_layernorm")),
    "olmo2": replace(_NORMS_AFTER, no_heads=_QK_NORM),
    "olmo3": replace(_NORMS_AFTER, no_heads=_QK_NORM),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "granitemoe", "phimoe"), _MOE),
}
# Families that mix their units before the output projection in other ways.
REFUSED = {
    "olmoe": f"heads: {_QK_NORM}; {_EXPERTS}",
    "flex_olmo": f"heads: {_QK_NORM}; {_EXPERTS}",
    "bitnet": "norms between units and output projections mix the units (laws 3 and 5)",
    "diffllama": "differential attention subtracts one head from another (laws 3 and 5)",
    "doge": "its value gate reads all heads (laws 3 and 5)",
    "gpt_oss": "each head has a sink of its own, which no slice owns, and its neurons lie in experts",
    "codegen": "its fused projection deals queries, values and keys to four shards, a layout that is not supported",
    "mpt": "ALiBi goes by the place of a head, and nothing in its configuration sets the number of neurons",
}


def architecture_of(model: nn.Module) -> Architecture:
    """The row of ``model``'s family.

    Raises:
        ValueError: the family (``model.config.model_type``) has no row, or is known to break a law.
    """
    if type(model).__module__.partition(".")[0] == "peft":
        raise ValueError(
            f"{type(model).__name__} wraps the model: split the ranks of its adapters with "
            "sgtm.model.lora.lora_partition(model, ranks=...)"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{type(model).__name__} has adapters from add_adapter(...), which stand around its projections; use "
            "peft.get_peft_model on the plain model and sgtm.model.lora.lora_partition(model, ranks=...)"
        )
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type in REFUSED:
        raise ValueError(f"model_type={model_type!r} is refused: {REFUSED[model_type]}")
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"no architecture for model_type={model_type!r}{nearest(model_type, ARCHITECTURES)} (known families: "
            f"{', '.join(sorted(ARCHITECTURES))}). "
            "A family is one row of sgtm.model.architectures.ARCHITECTURES that passes model/tests/test_laws.py."
        )
    row = ARCHITECTURES[model_type]
    for key, reason in row.refused_with.items():
        if getattr(config, key, False):
            raise ValueError(f"{model_type} with {key}=True is refused: {reason}; use {key}=False")
    return row
