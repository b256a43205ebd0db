"""Units are added, reordered, cut out and put back, and the function is what it should be."""

import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM

from sgtm import SGTM, Partition, Units, attach, expand, export
from sgtm.config import ConfigError
from sgtm.model.architectures import ARCHITECTURES
from sgtm.model.attach import export_module
from sgtm.model.gpt_neo import GPTNeoForCausalLMSGTM, GPTNeoSGTMConfig
from sgtm.model.partition import Chosen
from sgtm.model.surgery import num_units
from sgtm.model.tests.families import FAMILIES, Family, logits, tokens

WHOLE = {name: f for name, f in FAMILIES.items() if f.layers is None}  # forget units in every layer
whole_family = pytest.mark.parametrize("name", WHOLE)
# Their configurations want a hidden size that is a multiple of the heads: 16 is none of 5 or 6.
HIDDEN_SIZE_BY_HEADS = {"llama", "gemma2", "gemma3_text", "vaultgemma", "arcee"}
TWO = {"biology": Units(heads=1, neurons=2), "cyber": Units(heads=1, neurons=3)}


def row_of(family: Family) -> Any:
    return ARCHITECTURES[family.config.model_type]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# ---- expand


@whole_family
@pytest.mark.parametrize("init", ["normal", "copy"])
def test_expansion_keeps_the_function(name: str, init: Any) -> None:
    family = WHOLE[name]
    model = family.model()
    heads, neurons = family.heads if row_of(family).cuts_heads else 0, 3 if row_of(family).mlp_width else 0
    neurons = 0 if row_of(family).no_neurons else neurons
    if heads and family.config.model_type in HIDDEN_SIZE_BY_HEADS:
        with pytest.raises(ValueError, match="refuses a configuration"):
            expand(model, heads)
        heads = 0
    if not heads and not neurons:
        return
    before = num_units(model)
    grown = expand(model, heads, neurons, init, torch.Generator().manual_seed(0))
    after = num_units(grown)
    assert (after["attn"], after.get("mlp", 0)) == (before["attn"] + heads, before.get("mlp", 0) + neurons)
    torch.testing.assert_close(logits(grown), logits(model))
    for s in Partition.of(grown, heads, neurons).forget:
        part = s.of(s.param)
        assert not part.any() if s.site.endswith(".out") else part.any() or part.ndim == 1, s


def test_expanded_units_learn_from_forget_data_and_can_be_removed_again() -> None:
    model = WHOLE["llama_grouped"].model()
    intact = logits(model)
    grown = expand(model, heads=4, neurons=3, generator=torch.Generator().manual_seed(0))
    sgtm = SGTM(Partition.of(grown, heads=4, neurons=3), joint=("embeddings", "norms", "final_norm"))
    losses = []
    for _ in range(8):
        grown.zero_grad()
        with sgtm.batch("forget"):
            loss = grown(**tokens()).loss
            loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for p in grown.parameters():
                p.sub_(0.05 * p.grad.sign())  # what is masked has no sign
    sgtm.partition.ablate()
    torch.testing.assert_close(logits(grown), intact)


def test_copied_units_have_the_input_side_of_existing_ones() -> None:
    model = WHOLE["llama"].model()
    grown = expand(model, neurons=2, init="copy", generator=torch.Generator().manual_seed(0))
    for s in Partition.of(grown, neurons=2).forget:
        if s.site == "mlp.in":
            rows = s.of(s.param)
            old = s.param[: s.start]
            assert all((old == row).all(1).any() for row in rows)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("llama", {}, "add no units"),
        ("llama", {"heads": -1}, "add no units"),
        ("llama_grouped", {"heads": 1}, "splits a key/value group of 2 heads; use a multiple of 2"),
        ("gpt_neo", {"heads": 1}, "no head width of its own"),
        ("gpt2", {"heads": 1}, "no head width of its own"),
        ("bloom", {"neurons": 1}, "no number of neurons in its configuration"),
        ("llama", {"neurons": 1, "init": "zero"}, "neither 'normal' nor 'copy'"),
    ],
)
def test_what_cannot_be_expanded_is_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    model = WHOLE[name].model()
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        expand(model, **arguments)
    assert_same_state(model, before)


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    """Checkpoints are made, and read again, as causal language models."""
    model = WHOLE["llama"].model().model
    with pytest.raises(ValueError, match="LlamaModel is no causal language model; give a LlamaForCausalLM"):
        expand(model, neurons=1)
    with pytest.raises(ValueError, match="LlamaModel is no causal language model"):
        export(model, SGTM(Partition.of(model, neurons=2)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- choose


@whole_family
def test_chosen_units_become_the_last_and_the_function_stays(name: str) -> None:
    family = WHOLE[name]
    model = family.model(torch.float64)
    expected = logits(model)
    layers = range(family.config.num_hidden_layers)
    heads = family.heads if row_of(family).permutes_heads else 0
    neurons = 0 if row_of(family).no_neurons else 2
    if heads == neurons == 0:
        return
    partition = Partition.choose(
        model,
        heads={i: list(range(heads)) for i in layers} if heads else None,
        neurons={i: [i, i + 2] for i in layers} if neurons else None,
    )
    # Norms, softmax and rotary embeddings of many families are fp32 whatever the model's dtype: fp32's rounding.
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)
    assert (partition.heads, partition.neurons) == (heads, neurons)


def test_the_chosen_units_are_the_ones_that_are_removed() -> None:
    model = WHOLE["llama"].model()
    reference = copy.deepcopy(model)
    chosen = {0: [5, 1], 1: [0, 7]}
    with torch.no_grad():
        for i, block in enumerate(reference.model.layers):
            block.mlp.down_proj.weight[:, chosen[i]] = 0
            block.self_attn.o_proj.weight[:, 4 * i : 4 * i + 4] = 0
    partition = Partition.choose(model, heads={0: [0], 1: [1]}, neurons=chosen)
    partition.ablate()
    torch.testing.assert_close(logits(model), logits(reference))


def test_units_of_weights_that_are_split_by_owner_stay() -> None:
    small = {"hidden_size": 16, "num_layers": 1, "num_heads": 4, "attention_types": [[["global"], 1]], "vocab_size": 50}
    split = {"intermediate_size": 16, "retain_mlp_dim": 12, "retain_attn_heads": 3, "split_masked_weights": True}
    model = GPTNeoForCausalLMSGTM(GPTNeoSGTMConfig(**small, **split))
    with pytest.raises(ValueError, match="holds retain and forget weights apart"):
        Partition.choose(model, neurons={0: [1]})


def test_domains_choose_their_own_units() -> None:
    model = WHOLE["llama"].model()
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for i, block in enumerate(reference.model.layers):
            block.mlp.down_proj.weight[:, [3, 4] if i == 0 else [1, 2]] = 0
    domains = {
        "biology": Chosen(heads={0: [1], 1: [2]}),
        "cyber": Chosen(neurons={0: [4, 3], 1: [1, 2]}),
    }
    partition = Partition.choose(model, domains=domains)
    partition.ablate("cyber")
    torch.testing.assert_close(logits(model), logits(reference))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("llama", {}, "leave no forget units"),
        ("llama", {"neurons": {0: [1], 1: [1, 2]}}, "choose as many in every layer"),
        ("llama", {"neurons": {0: [1, 1], 1: [1, 2]}}, "choose different ones from 0 to 11"),
        ("llama", {"neurons": {0: [12], 1: [1]}}, "choose different ones from 0 to 11"),
        ("llama", {"neurons": {0: [1], 9: [1]}}, "use different indices from 0 to 1"),
        ("llama_grouped", {"heads": {0: [1], 1: [1]}}, "splits a key/value group"),
        ("llama_grouped", {"heads": {0: [1, 2], 1: [0, 1]}}, "choose whole groups"),
        ("bloom", {"heads": {0: [0], 1: [0]}}, "differ by their place"),
        (
            "llama",
            {"domains": {"a": Chosen(neurons={0: [1], 1: [2]}), "b": Chosen(neurons={0: [1], 1: [3]})}},
            "choose different ones",
        ),
    ],
)
def test_a_choice_that_makes_no_sense_changes_nothing(name: str, arguments: dict[str, Any], message: str) -> None:
    model = WHOLE[name].model()
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        Partition.choose(model, **arguments)
    assert_same_state(model, before)


# ---- export


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_is_the_ablated_model_in_stock_transformers(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = family.model()
    before = state_of(model)
    sgtm = SGTM(Partition.of(model, **family.units))
    done = export(model, sgtm, tmp_path / "out")
    assert_same_state(model, before)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert "sgtm" not in type(loaded).__module__
    sgtm.partition.ablate()
    torch.testing.assert_close(logits(loaded), logits(model))
    a = row_of(family)
    if family.layers is None and a.mlp_width and not a.no_neurons:
        assert done.cut["neurons"] == family.neurons
        assert num_units(loaded)["mlp"] == num_units(model)["mlp"] - family.neurons
    if not a.cuts_heads or family.layers is not None:
        assert done.cut["heads"] == 0
    assert (done.parameters_after < done.parameters_before) is any(done.cut.values())
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| forget | {family.heads} | {family.neurons} | removed |" in card


def test_some_domains_are_removed_and_others_stay(tmp_path: Path) -> None:
    for name in ("llama", "gpt2"):
        model = WHOLE[name].model()
        sgtm = SGTM(Partition.of(model, domains=TWO))
        done = export(model, sgtm, tmp_path / name, without=["biology"])
        assert done.removed == ("biology",)
        assert done.cut["neurons"] == 2
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        sgtm.partition.ablate("biology")
        torch.testing.assert_close(logits(loaded), logits(model))
        card = (tmp_path / name / "README.md").read_text()
        assert "| biology | 1 | 2 | removed |" in card
        assert "| cyber | 1 | 3 | still in it |" in card


def test_a_verified_export_holds_no_removed_weight(tmp_path: Path) -> None:
    model = WHOLE["llama_grouped"].model()
    sgtm = SGTM(Partition.of(model, heads=2, neurons=3))
    done = export(model, sgtm, tmp_path / "out", verify=True, losses={"retain": {"this checkpoint": 1.25}})
    assert done.cut == {"heads": 2, "neurons": 3}
    assert done.scanned == 2 * (8 + 4 + 4 + 8 + 3 * 3)  # q, k, v, o and three times the neurons, in two layers
    assert "verified: none of 66 removed weight vectors" in str(done)
    assert "| retain | 1.250 |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("across", [False, True])
def test_the_scan_finds_a_removed_weight_that_was_left_in(across: bool, tmp_path: Path) -> None:
    from sgtm.model.export import scan

    model = WHOLE["llama"].model()
    sgtm = SGTM(Partition.of(model, heads=1, neurons=3))
    export(model, sgtm, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    state = load_file(file)
    lost = model.model.layers[1].mlp.up_proj.weight[-2].detach().clone()  # (16,)
    if across:
        state["model.layers.0.self_attn.q_proj.weight"][:, 3] = lost
    else:
        state["model.embed_tokens.weight"][7] = lost
    save_file(state, file, {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"holds weights of forget \(model.layers.1.mlp.up_proj.weight\)"):
        scan(tmp_path / "out", sgtm.partition, ["forget"])


def test_the_scan_finds_a_bias_that_was_left_in(tmp_path: Path) -> None:
    from sgtm.model.export import scan

    model = FAMILIES["gpt_neo_layers"].model()
    sgtm = SGTM(Partition.of(model, **FAMILIES["gpt_neo_layers"].units))
    export(model, sgtm, tmp_path / "out", verify=True)
    file = tmp_path / "out" / "model.safetensors"
    state = load_file(file)
    state["transformer.h.2.mlp.c_fc.bias"][-1] = 0.5
    save_file(state, file, {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"holds a bias of forget \(transformer.h.2.mlp.c_fc.bias\)"):
        scan(tmp_path / "out", sgtm.partition, ["forget"])


def test_a_rejected_export_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = WHOLE["llama"].model()
    sgtm = SGTM(Partition.of(model, heads=1))
    monkeypatch.setattr("sgtm.model.export._ROUNDING_STEPS", -1)
    with pytest.raises(RuntimeError, match="does not compute what the ablated model computes"):
        export(model, sgtm, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_keeps_how_the_model_generates(tmp_path: Path) -> None:
    model = WHOLE["llama"].model()
    model.generation_config.temperature, model.generation_config.do_sample = 0.3, True
    export(model, SGTM(Partition.of(model, neurons=3)), tmp_path / "out")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.generation_config.temperature == 0.3
    assert loaded.config.use_cache


def test_exports_that_cannot_be_are_refused(tmp_path: Path) -> None:
    model = WHOLE["llama"].model()
    sgtm = SGTM(Partition.of(model, domains=TWO))
    with pytest.raises(ConfigError, match="'biologie' is no domain; did you mean 'biology'"):
        export(model, sgtm, tmp_path / "out", without=["biologie"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export(model, sgtm, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"sgtm belongs to another model \(a copy has none\)"):
        export(copy.deepcopy(model), sgtm, tmp_path / "copy")


# ---- modules


def module_of(sgtm: SGTM, domain: str, folder: Path) -> Path:
    file = folder / f"{domain}.safetensors"
    export_module(sgtm.partition.model, sgtm.partition, domain, str(file))
    return file


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neo", "gpt_neox"])
@pytest.mark.parametrize("order", [("biology", "cyber"), ("cyber", "biology")])
def test_modules_come_off_and_back_bit_for_bit(name: str, order: tuple[str, ...], tmp_path: Path) -> None:
    model = WHOLE[name].model()
    trained = state_of(model)
    sgtm = SGTM(Partition.of(model, domains=TWO))
    files = {domain: module_of(sgtm, domain, tmp_path) for domain in TWO}
    export(model, sgtm, tmp_path / "out")
    exported: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for domain in order:
        exported = attach(exported, files[domain])
    assert_same_state(exported, trained)
    sgtm.partition.ablate()
    for domain in order:
        assert attach(model, files[domain]) is model  # units of zeros are filled in place
    assert_same_state(model, trained)


def test_a_module_comes_back_beside_a_domain_that_stayed(tmp_path: Path) -> None:
    model = WHOLE["gpt2"].model()
    trained = state_of(model)
    sgtm = SGTM(Partition.of(model, domains=TWO))
    for domain in TWO:
        file = module_of(sgtm, domain, tmp_path)
        export(model, sgtm, tmp_path / f"without_{domain}", without=[domain])
        restored = attach(AutoModelForCausalLM.from_pretrained(tmp_path / f"without_{domain}"), file)
        assert_same_state(restored, trained)


def test_a_module_of_some_layers_comes_back(tmp_path: Path) -> None:
    family = FAMILIES["llama_layers"]
    model = family.model()
    trained = state_of(model)
    sgtm = SGTM(Partition.of(model, **family.units))
    file = module_of(sgtm, "forget", tmp_path)
    sgtm.partition.ablate()
    assert_same_state(attach(model, file), trained)


def test_a_module_of_the_gpt_neo_classes_fits_the_stock_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPTNeoSGTMConfig(
        vocab_size=24,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=16,
        retain_mlp_dim=60,
        retain_attn_heads=3,
        split_masked_weights=True,
        bos_token_id=1,
        eos_token_id=1,
    )
    model = GPTNeoForCausalLMSGTM(config).eval()
    file = module_of(model.sgtm, "forget", tmp_path)
    export(model, model.sgtm, tmp_path / "out")
    restored = attach(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), file).eval()
    assert type(restored) is GPTNeoForCausalLM
    torch.testing.assert_close(logits(restored), logits(model))


def test_a_module_is_refused_where_it_does_not_belong(tmp_path: Path) -> None:
    model = WHOLE["llama"].model()
    sgtm = SGTM(Partition.of(model, domains=TWO))
    file = module_of(sgtm, "biology", tmp_path)
    with pytest.raises(ValueError, match="are in this model already"):
        attach(copy.deepcopy(model), file)
    sgtm.partition.ablate()
    cases: list[tuple[nn.Module, str]] = [
        (WHOLE["qwen3"].model(), "belongs to a llama, this model is a qwen3"),
        (expand(model, neurons=7), "this one has 19"),
    ]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight[0] += 1e-6
    cases += [(other, "other retained weights"), (copy.deepcopy(model).bfloat16(), "other retained weights")]
    turned = copy.deepcopy(model)
    turned.config.rms_norm_eps = 1e-2
    beside = copy.deepcopy(model)
    with torch.no_grad():
        beside.model.layers[0].mlp.up_proj.weight[-1] = 1.0  # of cyber
    cases += [(turned, "other retained weights"), (beside, "beside other weights of cyber")]
    for wrong, message in cases:
        before = state_of(wrong)
        with pytest.raises(ValueError, match=message):
            attach(wrong, file)
        assert_same_state(wrong, before)


def test_files_that_are_no_modules_are_refused(tmp_path: Path) -> None:
    model = WHOLE["llama"].model()
    (tmp_path / "broken").write_bytes(struct.pack("<Q", 10) + b"x")
    save_file({"a": torch.zeros(2)}, tmp_path / "other")
    for name, message in (("none", "is no file"), ("broken", "no safetensors"), ("other", "no module of sgtm")):
        with pytest.raises(ValueError, match=message):
            attach(model, tmp_path / name)
    sgtm = SGTM(Partition.of(model, heads=1))
    file = module_of(sgtm, "forget", tmp_path)
    with pytest.raises(ConfigError, match="exists already"):
        export_module(model, sgtm.partition, "forget", file)
    with pytest.raises(ConfigError, match="is no domain"):
        export_module(model, sgtm.partition, "cyber", tmp_path / "x")


def test_a_module_file_says_what_it_is_and_holds_its_units_alone(tmp_path: Path) -> None:
    model = WHOLE["llama"].model()
    sgtm = SGTM(Partition.of(model, domains=TWO))
    file = module_of(sgtm, "cyber", tmp_path)
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    assert about["domain"] == "cyber"
    assert json.loads(about["domains"]) == {"biology": [1, 2], "cyber": [1, 3]}
    assert sum(t.numel() for t in load_file(file).values()) == sgtm.partition.num_parameters()["cyber"]
