"""Laws 1 to 7 of architectures that nobody chose: sizes, groups, biases, layers, units and family are drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from sgtm.config import MODES
from sgtm.model.partition import Partition
from sgtm.model.tests import test_laws as laws
from sgtm.model.tests.families import FROZEN, REACHED, Case, Family, Part, _random_model

Sizes = dict[str, Any]


def last(total: int, chosen: int, width: int, start: int = 0) -> str:
    """The features of the last ``chosen`` of ``total`` units, each ``width`` wide, from feature ``start`` on."""
    return f"{start + (total - chosen) * width}:{start + total * width}" if chosen else ""


def beside(*features: str) -> str:
    return " ".join(filter(None, features))


def llama(model_type: str, s: Sizes, **changes: Any) -> Family:
    """Keys and values by group; a gate."""
    q, kv = last(s["heads"], s["forget_heads"], s["width"]), last(s["groups"], s["forget_groups"], s["width"])
    neurons = last(s["neurons"], s["forget_neurons"], 1)
    attn = Part(
        s["forget_heads"],
        {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv},
        {"self_attn.o_proj": q},
    )
    mlp = Part(s["forget_neurons"], {"mlp.gate_proj": neurons, "mlp.up_proj": neurons}, {"mlp.down_proj": neurons})
    norms = ("input_layernorm", "post_attention_layernorm")
    return family(model_type, s, attn, mlp, "model.layers", norms, ("model.embed_tokens",), changes)


def phi3(s: Sizes) -> Family:
    """Queries, keys and values one after the other in one projection, gate and up in another."""
    d, heads, groups = s["width"], s["heads"], s["groups"]
    q = last(heads, s["forget_heads"], d)
    k, v = (last(groups, s["forget_groups"], d, (heads + i * groups) * d) for i in (0, 1))
    gate, up = (last(s["neurons"], s["forget_neurons"], 1, i * s["neurons"]) for i in (0, 1))
    attn = Part(s["forget_heads"], {"self_attn.qkv_proj": beside(q, k, v)}, {"self_attn.o_proj": q})
    mlp = Part(s["forget_neurons"], {"mlp.gate_up_proj": beside(gate, up)}, {"mlp.down_proj": gate})
    norms = ("input_layernorm", "post_attention_layernorm")
    return family("phi3", s, attn, mlp, "model.layers", norms, ("model.embed_tokens",), {})


def gpt2(s: Sizes) -> Family:
    """Transposed weights; queries, keys and values of all heads one after the other."""
    d, heads = s["width"], s["heads"]
    q, k, v = (last(heads, s["forget_heads"], d, i * heads * d) for i in range(3))
    keys = f"{heads * d}:{2 * heads * d}"
    attn = Part(s["forget_heads"], {"attn.c_attn": beside(q, k, v)}, {"attn.c_proj": q}, still=keys)
    return gpt("gpt2", s, attn, {"n_inner": s["neurons"]}, conv1d=True)


def gpt_neo(s: Sizes) -> Family:
    """Projections of their own, each head with its key and value; the layers take turns with a window."""
    q = last(s["heads"], s["forget_heads"], s["width"])
    ins = {f"attn.attention.{name}_proj": q for name in "qkv"}
    attn = Part(s["forget_heads"], ins, {"attn.attention.out_proj": q})
    kinds = [("global", "local")[i % 2] for i in range(s["layers"])]
    return gpt(
        "gpt_neo",
        s,
        attn,
        {
            "intermediate_size": s["neurons"],
            "window_size": 3,
            "attention_types": [[kinds, 1]],
            "num_layers": s["layers"],
        },
    )


def gpt(model_type: str, s: Sizes, attn: Part, changes: Sizes, conv1d: bool = False) -> Family:
    neurons = last(s["neurons"], s["forget_neurons"], 1)
    mlp = Part(s["forget_neurons"], {"mlp.c_fc": neurons}, {"mlp.c_proj": neurons})
    embeddings = ("transformer.wte", "transformer.wpe")
    return family(model_type, s, attn, mlp, "transformer.h", ("ln_1", "ln_2"), embeddings, changes, conv1d)


def gpt_neox(s: Sizes) -> Family:
    """Queries, keys and values head by head in one projection."""
    qkv = last(s["heads"], s["forget_heads"], 3 * s["width"])
    q, neurons = last(s["heads"], s["forget_heads"], s["width"]), last(s["neurons"], s["forget_neurons"], 1)
    attn = Part(s["forget_heads"], {"attention.query_key_value": qkv}, {"attention.dense": q})
    mlp = Part(s["forget_neurons"], {"mlp.dense_h_to_4h": neurons}, {"mlp.dense_4h_to_h": neurons})
    norms = ("input_layernorm", "post_attention_layernorm")
    return family("gpt_neox", s, attn, mlp, "gpt_neox.layers", norms, ("gpt_neox.embed_in",), {"rotary_pct": 1.0})


def family(
    model_type: str,
    s: Sizes,
    attn: Part,
    mlp: Part,
    blocks: str,
    norms: tuple[str, str],
    embeddings: tuple[str, ...],
    changes: Sizes,
    conv1d: bool = False,
) -> Family:
    sizes = {
        "vocab_size": 24,
        "hidden_size": s["hidden"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["heads"],
        "num_key_value_heads": s["groups"],
        "head_dim": s["width"],
        "intermediate_size": s["neurons"],
        "max_position_embeddings": 16,
        "tie_word_embeddings": s["tied"],
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(model_type, **(sizes | changes))
    # Where a kind has no forget units, only retain units read its norms.
    of_kind = ((attn, (norms[0], "self_attn.q_norm", "self_attn.k_norm")), (mlp, norms[1:]))
    cut_off = tuple(norm for part, own in of_kind if not part.units for norm in own)
    chosen = s["chosen"]
    return Family(config, attn, mlp, blocks, norms, embeddings, chosen, conv1d=conv1d, cut_off=cut_off)


def with_groups(model_type: str, *biases: str) -> Callable[[Sizes], Family]:
    return lambda s: llama(model_type, s, **dict.fromkeys(biases, s["biases"]))


# name -> (how it is written, whether heads share keys and values, whether heads are as wide together as the model)
KINDS: dict[str, tuple[Callable[[Sizes], Family], bool, bool]] = {
    "llama": (with_groups("llama", "attention_bias", "mlp_bias"), True, False),
    "mistral": (with_groups("mistral"), True, False),
    "qwen2": (with_groups("qwen2"), True, False),
    "qwen3": (with_groups("qwen3", "attention_bias"), True, False),
    "gemma": (with_groups("gemma", "attention_bias"), True, False),
    "phi3": (phi3, True, False),
    "gpt2": (gpt2, False, True),
    "gpt_neo": (gpt_neo, False, True),
    "gpt_neox": (gpt_neox, False, True),
}


@st.composite
def cases(draw: Any) -> Case:
    write, shares, as_wide = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    groups, width = draw(st.integers(1, 3)), 2 * draw(st.integers(1, 3))
    queries = draw(st.integers(1, 3)) if shares else 1
    forget_groups, neurons = draw(st.integers(0, groups - 1)), draw(st.integers(2, 9))
    forget_neurons = draw(st.integers(0 if forget_groups else 1, neurons - 1))  # some are retained
    layers = draw(st.integers(1, 3))
    some = st.lists(st.sampled_from(range(layers)), unique=True, min_size=1).map(tuple)
    sizes = {
        "groups": groups,
        "heads": groups * queries,
        "width": width,
        "hidden": groups * queries * width if as_wide else groups * queries * draw(st.integers(1, 4)),
        "forget_groups": forget_groups,
        "forget_heads": forget_groups * queries,
        "neurons": neurons,
        "forget_neurons": forget_neurons,
        "layers": layers,
        "chosen": draw(st.one_of(st.none(), some)),
        "tied": draw(st.booleans()),
        "biases": draw(st.booleans()),
    }
    return Case(write(sizes), draw(st.sampled_from(sorted(REACHED))), draw(st.sampled_from(((), FROZEN))))


def check_laws(case: Case, folder: Path) -> None:
    found = case.family
    laws.test_default_mode_is_the_untouched_model(case)
    laws.test_partition_owns_every_element_once(found)
    laws.test_slices_name_their_parameter_and_site(found)
    laws.test_blocks_tile_every_parameter_once(case)
    laws.test_retain_pass_is_the_ablated_model(case)
    for mode in MODES:
        laws.test_batch_changes_what_it_may_and_all_of_it(mode, case)
        laws.test_exception_before_backward(mode, case)
    laws.test_exception_after_backward(True, case)
    check_ablation(found, folder)
    with pytest.MonkeyPatch.context() as patch:
        laws.use_double(case, patch)
        for mode in ("retain", "forget"):
            laws.test_gradients_equal_the_plain_reference(mode, case)
    _random_model.cache_clear()


def check_ablation(found: Family, folder: Path) -> None:
    partition = Partition.of(found.model(), **found.units)
    partition.ablate()
    laws.test_ablation_zeroes_the_forget_slices_alone(found, partition)
    laws.test_ablation_is_idempotent(partition)
    laws.test_ablation_survives_save_and_load(found, partition, folder)


@pytest.mark.parametrize("examples", [25, pytest.param(600, marks=pytest.mark.slow)])
def test_laws_1_to_7_of_random_architectures(examples: int, tmp_path: Path) -> None:
    how = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    how(given(cases())(lambda case: check_laws(case, tmp_path)))()


def test_every_kind_is_drawn() -> None:
    drawn: set[str] = set()
    how = settings(max_examples=100, deadline=None, derandomize=True, database=None)
    how(given(cases())(lambda case: drawn.add(case.family.config.model_type)))()
    assert drawn == set(KINDS)
    assert torch.get_default_dtype() == torch.float32
