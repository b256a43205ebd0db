"""Where each model family keeps the projections of its units: one row a family.

A decoder sublayer is *input projections -> units -> output projection*. A row says where these stand inside a decoder
block, and which of the remaining (joint) parameters are embeddings, norms and head. A family earns its row by passing
the laws in ``model/tests/test_laws.py``; to add one, write its row, put a tiny configuration of it into the tests'
``FAMILIES`` and run them.
"""

from dataclasses import dataclass

from torch import nn

from sgtm.config import nearest


@dataclass(frozen=True)
class Architecture:
    """Paths of one family's projections and joint parameters.

    Args:
        layers: the list of decoder blocks, below the base model.
        attn_in, attn_out, mlp_in, mlp_out: projections below a block; units write what ``*_out`` reads.
        block_norms: norms below a block.
        embeddings, final_norm, head: globs of parameter names.
        mlp_width: the configuration's key for the number of MLP neurons.
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
_LLAMA = Architecture(
    layers="layers",
    attn_in=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attn_out="self_attn.o_proj",
    mlp_in=("mlp.gate_proj", "mlp.up_proj"),
    mlp_out="mlp.down_proj",
    block_norms=("input_layernorm", "post_attention_layernorm"),
    embeddings=("embed_tokens.*",),
    final_norm="norm.*",
)

ARCHITECTURES: dict[str, Architecture] = {"gpt_neo": _GPT_NEO, "gpt_neo_sgtm": _GPT_NEO, "llama": _LLAMA}


def architecture_of(model: nn.Module) -> Architecture:
    """The row of ``model``'s family.

    Raises:
        ValueError: the family (``model.config.model_type``) has no row.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"no architecture for model_type={model_type!r}{nearest(model_type, ARCHITECTURES)} (known families: "
            f"{', '.join(sorted(ARCHITECTURES))}). "
            "A family is one row of sgtm.model.architectures.ARCHITECTURES that passes model/tests/test_laws.py."
        )
    return ARCHITECTURES[model_type]
