"""What a partition refuses, counts, selects and survives; that it is right is law 2."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sgtm.model.architectures import ARCHITECTURES, REFUSED
from sgtm.model.partition import Partition
from sgtm.model.split_linear import SplitLinearOut
from sgtm.model.tests.families import FAMILIES, FORGET, JOINT, RETAIN, Family, logits, spans


def partition_of(name: str) -> Partition:
    family = FAMILIES[name]
    return Partition.of(family.model(), **family.units)


def stand_in(model_type: str, **settings: bool) -> nn.Module:
    """A model that has nothing but a configuration."""
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(model_type=model_type, **settings)
    return model


def owned(partition: Partition, family: Family, owner: int) -> dict[str, int]:
    """Elements of each parameter that ``owner`` has, by the tests' table."""
    return {n: int((o == owner).sum()) for n, o in family.owners(partition.model).items() if (o == owner).any()}


def test_every_row_has_a_tiny_model() -> None:
    tested = {family.config.model_type for family in FAMILIES.values()}
    without_units = {name for name, row in ARCHITECTURES.items() if row.no_heads and row.no_neurons}
    elsewhere = {"gpt_neo_sgtm"}  # test_gpt_neo.py
    assert tested | without_units | elsewhere == set(ARCHITECTURES)


def test_tiny_models_have_all_units_that_their_family_can() -> None:
    for model_type, row in ARCHITECTURES.items():
        families = [family for family in FAMILIES.values() if family.config.model_type == model_type]
        assert any(family.heads for family in families) or row.no_heads or not families
        assert any(family.neurons for family in families) or row.no_neurons or not families


# ---- Errors: value, rule, remedy


@pytest.mark.parametrize(
    ("name", "units", "message"),
    [
        ("llama", {"heads": 4}, "heads=4 of 4: .* use 0 to 3"),
        ("llama", {"heads": -1, "neurons": 3}, "heads=-1, neurons=3. must be Units.*whole numbers from 0 on"),
        ("llama", {"neurons": 12}, "neurons=12 of 12: .* use 0 to 11"),
        ("gpt_neo", {"neurons": -1}, "neurons=-1. must be Units.*whole numbers from 0 on"),
        ("gpt_neo", {"neurons": 2.5}, "neurons=2.5. must be Units.*whole numbers"),
        ("gpt_neo", {"heads": "1"}, "heads='1'.* must be Units.*whole numbers"),
        ("gpt_neo", {"neurons": 1, "layers": 1}, "layers=1 must be a list of indices"),
        ("gpt_neo", {"domains": ["a"]}, r"domains=\['a'\] must be "),
        ("gpt_neo", {}, "heads=0 and neurons=0 leave no forget units"),
        ("llama_grouped", {"heads": 1}, "heads=1 splits a key/value group of 2 heads; use a multiple of 2"),
        ("llama_grouped", {"heads": 3}, "heads=3 splits a key/value group of 2 heads; use a multiple of 2"),
        ("phi3", {"heads": 1}, "heads=1 splits a key/value group of 2 heads; use a multiple of 2"),
        ("falcon_groups", {"heads": 3}, "heads=3 splits a key/value group of 2 heads; use a multiple of 2"),
        ("falcon", {"heads": 1}, "heads=1 splits a key/value group of 4 heads; use heads=0"),
        ("gpt_bigcode", {"heads": 1}, "heads=1 splits a key/value group of 4 heads; use heads=0"),
        ("olmo2", {"heads": 2}, "olmo2 cannot have forget heads: its query and key norms span all heads"),
        ("mixtral", {"neurons": 1}, "mixtral cannot have forget neurons: neurons lie in experts"),
        ("gpt_neo", {"heads": 1, "layers": [2]}, r"layers=\[2\] of a model with 2 layers; .* from 0 to 1"),
        ("gpt_neo", {"heads": 1, "layers": [-1]}, r"layers=\[-1\] of a model with 2 layers"),
        ("gpt_neo", {"heads": 1, "layers": [1, 1]}, r"layers=\[1, 1\] .*different indices"),
        ("gpt_neo", {"heads": 1, "layers": []}, r"layers=\[\] of a model with 2 layers"),
    ],
)
def test_bad_units(name: str, units: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Partition.of(FAMILIES[name].model(), **units)


def test_one_shared_key_has_no_forget_heads() -> None:
    family = copy.deepcopy(FAMILIES["llama"])
    family.config.num_key_value_heads = 1
    with pytest.raises(ValueError, match="heads=1 splits a key/value group of 4 heads; use heads=0"):
        Partition.of(family.model(), heads=1)


@pytest.mark.parametrize(("model_type", "near"), [("lama", "'llama'"), ("gpt_nea", "'gpt_neo'")])
def test_unknown_family_names_the_nearest(model_type: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"no architecture for model_type='{model_type}'; did you mean {near}"):
        Partition.of(stand_in(model_type), neurons=1)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bitnet", "norms between units and output projections"),
        ("diffllama", "subtracts one head from another"),
        ("doge", "reads all heads"),
        ("gpt_oss", "sink of its own"),
        ("codegen", "four shards"),
        ("mpt", "ALiBi"),
        ("olmoe", "norms span all heads.* neurons lie in experts"),
        ("flex_olmo", "norms span all heads.* neurons lie in experts"),
    ],
)
def test_families_that_mix_their_units(model_type: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"model_type='{model_type}' is refused: .*{reason}"):
        Partition.of(stand_in(model_type), neurons=1)


def test_every_refused_family_is_tested() -> None:
    (mark,) = test_families_that_mix_their_units.pytestmark
    assert {model_type for model_type, _ in mark.args[1]} == set(REFUSED)


@pytest.mark.parametrize(
    ("model_type", "setting", "reason"),
    [
        ("cohere", "use_qk_norm", "each head has norm weights of its own"),
        ("falcon", "alibi", "ALiBi"),
        ("phi", "qk_layernorm", "take their width from hidden_size"),
        ("stablelm", "qk_layernorm", "each head has norms of its own"),
    ],
)
def test_settings_that_break_a_law(model_type: str, setting: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{model_type} with {setting}=True is refused: .*{reason}.*; use {setting}=F"):
        Partition.of(stand_in(model_type, **{setting: True}), neurons=1)


def test_model_without_configuration() -> None:
    with pytest.raises(ValueError, match=r"no architecture for model_type=None .*known families: .*llama"):
        Partition.of(nn.Linear(2, 2), neurons=1)


# ---- Counts


def test_counts_add_up(family: Family) -> None:
    partition = Partition.of(family.model(), **family.units)
    counts = partition.num_parameters()
    assert sum(counts.values()) == partition.model.num_parameters()
    for side, owner in (("retain", RETAIN), ("forget", FORGET), ("joint", JOINT)):
        assert counts[side] == sum(owned(partition, family, owner).values())


def test_counts_by_hand() -> None:
    # Of each of 2 layers: 4 x 4 x 16 of q, k, v, out; 3 x (16 + 1) of c_fc; 16 x 3 of c_proj.
    assert partition_of("gpt_neo").num_parameters()["forget"] == 2 * (4 * 4 * 16 + 3 * 17 + 16 * 3)
    # Two heads of two share one key and one value.
    assert partition_of("llama_grouped").num_parameters()["forget"] == 2 * ((8 + 4 + 4 + 8) * 16 + 3 * 3 * 16)


def test_table_adds_up(family: Family) -> None:
    partition = Partition.of(family.model(), **family.units)
    title, columns, *rows = str(partition).splitlines()
    assert f"{family.heads} heads, {family.neurons} neurons" in title
    assert columns.split() == ["retain", "forget", "joint"]
    cells = [[int(cell.replace(",", "")) for cell in re.findall(r"[\d,]+", row)[-3:]] for row in rows]
    assert cells[-1] == [sum(column) for column in zip(*cells[:-1], strict=True)]
    assert cells[-1] == list(partition.num_parameters().values())
    assert len(rows) == family.config.num_hidden_layers + 2
    owners = family.owners(partition.model)
    for i, row in enumerate(cells[:-2]):
        layer = torch.cat([o.flatten() for name, o in owners.items() if name.startswith(f"{family.blocks}.{i}.")])
        assert row == [int((layer == owner).sum()) for owner in (RETAIN, FORGET, JOINT)]


def test_repr_is_short_and_says_what_is_forgotten() -> None:
    assert "Units(heads=1, neurons=3)}, layers=all, {'retain'" in repr(partition_of("llama"))
    assert "layers=[2, 0]" in repr(partition_of("gpt_neo_layers"))


# ---- Joint parameters


def test_joint_groups(family: Family) -> None:
    partition = Partition.of(family.model(), **family.units)
    for group in ("embeddings", "norms"):
        assert set(partition.select_joint([group])) == family.joint_names(partition.model, (group,))


@pytest.mark.parametrize(
    ("name", "asked", "found"),
    [
        ("gpt_neo", ["final_norm"], {"transformer.ln_f.weight", "transformer.ln_f.bias"}),
        ("llama", ["final_norm"], {"model.norm.weight"}),
        ("llama_biases", ["head"], {"lm_head.weight"}),
        ("llama", ["embeddings", "head"], {"model.embed_tokens.weight"}),
        ("gpt_neo", ["transformer.wpe.weight"], {"transformer.wpe.weight"}),
        ("gpt_neo", ["wpe.*"], {"transformer.wpe.weight"}),
        ("gpt_neo", ["h.1.ln_?.bias"], {"transformer.h.1.ln_1.bias", "transformer.h.1.ln_2.bias"}),
        ("gpt_neo_layers", ["transformer.h.1.ln_2.*"], {"transformer.h.1.ln_2.weight", "transformer.h.1.ln_2.bias"}),
        ("llama_layers", ["layers.0.mlp.up_proj.*"], {"model.layers.0.mlp.up_proj.weight"}),
        ("llama", [], set()),
    ],
)
def test_select_joint(name: str, asked: list[str], found: set[str]) -> None:
    assert set(partition_of(name).select_joint(asked)) == found


def test_select_joint_names_each_once_in_the_models_order() -> None:
    partition = partition_of("gpt_neo")
    chosen = partition.select_joint(["norms", "embeddings", "wte.weight", "ln_f.*"])
    assert list(chosen) == [name for name in partition.joint if name in chosen]


def test_unions_of_all_groups_are_all_joint_parameters() -> None:
    partition = partition_of("llama_biases")
    assert partition.select_joint(["head", "final_norm", "norms", "embeddings"]) == tuple(partition.joint)
    assert partition.select_joint(["*"]) == tuple(partition.joint)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("embedings", "joint='embedings' matches no joint parameter; did you mean 'embeddings'?"),
        ("norm", "did you mean 'norms'?"),
        ("transformer.wte.wieght", "did you mean 'transformer.wte.weight'?"),
        ("transformer.h.0.mlp.c_fc.weight", "matches no joint parameter"),  # units own it
        ("head", "a tied head is the embedding: use 'embeddings'"),
        ("zzz", r"groups: embeddings, norms, final_norm, head"),
    ],
)
def test_unknown_joint_name(asked: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        partition_of("gpt_neo").select_joint([asked])


# ---- A partition survives what happens to its model


def assert_right(partition: Partition, family: Family) -> None:
    """Slices read the model's present parameters, and ablation takes just the forget units."""
    model = partition.model
    parameters = dict(model.named_parameters())
    for s in (*partition.retain, *partition.forget):
        assert s.param is parameters[s.name]
    for name, p in partition.joint.items():
        assert p is parameters[name]
    before = {name: p.detach().clone() for name, p in parameters.items()}
    partition.ablate()
    for name, owner in family.owners(model).items():
        assert torch.equal(model.get_parameter(name), torch.where(owner == FORGET, 0.0, before[name])), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_partition_after_a_change_of_dtype(dtype: torch.dtype, family: Family) -> None:
    partition = Partition.of(family.model(), **family.units)
    partition.model.to(dtype)
    assert all(s.param.dtype == dtype for s in partition.forget)
    assert_right(partition, family)


@pytest.mark.parametrize("overwrite", [False, True])
def test_partition_after_a_change_that_replaces_parameters(overwrite: bool, family: Family) -> None:
    partition = Partition.of(family.model(), **family.units)
    torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
    try:
        partition.model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    assert_right(partition, family)


@pytest.mark.parametrize("assign", [False, True])
def test_partition_after_load_state_dict(assign: bool) -> None:
    family = FAMILIES["llama_biases"]  # untied: assigning would untie
    partition = Partition.of(family.model(), **family.units)
    other = {name: tensor + 1.0 for name, tensor in family.model().state_dict().items()}
    partition.model.load_state_dict(other, assign=assign)
    assert torch.equal(partition.forget[0].param, other[partition.forget[0].name])
    assert_right(partition, family)


def test_deep_copy_of_the_model_leaves_the_partition_with_the_original(family: Family) -> None:
    partition = Partition.of(family.model(), **family.units)
    copied = copy.deepcopy(partition.model)
    intact = logits(copied)
    assert_right(partition, family)
    assert torch.equal(logits(copied), intact)


def test_deep_copy_of_the_partition_takes_its_model_along(family: Family) -> None:
    partition = Partition.of(family.model(), **family.units)
    intact = logits(partition.model)
    copied = copy.deepcopy(partition)
    assert copied.model is not partition.model
    assert_right(copied, family)
    assert torch.equal(logits(partition.model), intact)


def test_partition_of_a_base_model(family: Family) -> None:
    model = family.model()
    whole, base = (Partition.of(m, **family.units) for m in (model, model.base_model))
    root = f"{model.base_model_prefix}."
    assert [s.name for s in base.forget] == [s.name.removeprefix(root) for s in whole.forget]
    assert [s.name for s in base.retain] == [s.name.removeprefix(root) for s in whole.retain]
    norms = base.select_joint(["embeddings", "norms"])
    assert norms == tuple(n.removeprefix(root) for n in whole.select_joint(["embeddings", "norms"]))


# ---- Split projections


@pytest.mark.parametrize("shift", [0, 2, -2])
def test_split_projections_hold_the_same_units(shift: int) -> None:
    """Also where a layer is cut elsewhere than the partition cuts it."""
    family = FAMILIES["gpt_neo"]
    whole = family.model()
    partition = Partition.of(whole, **family.units)
    split = family.model()
    for i in range(2):
        for path, forget in (family.attn.ins | family.mlp.ins).items():
            linear = split.get_submodule(f"transformer.h.{i}.{path}")
            ((start, _),) = spans(forget)
            parts = SplitLinearOut.from_linear(linear, start + shift)
            split.set_submodule(f"transformer.h.{i}.{path}", parts)
    counts = Partition.of(split, **family.units)
    assert counts.num_parameters() == partition.num_parameters()
    for side in (partition, counts):
        side.ablate()
    assert torch.equal(logits(split), logits(whole))
