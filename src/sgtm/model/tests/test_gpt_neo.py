"""The GPT-Neo classes: `sgtm_mode=`, `adjust_gradients`, split weights, loading and saving."""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoModel,
)
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock

from sgtm.config import MODES
from sgtm.model.gpt_neo import (
    GPTNeoBlockSGTM,
    GPTNeoForCausalLMSGTM,
    GPTNeoModelSGTM,
    GPTNeoSGTMConfig,
)
from sgtm.model.split_linear import SplitLinearOut
from sgtm.model.strategies import STRATEGIES

LAYERS, HIDDEN, HEADS, MLP, VOCAB = 3, 16, 4, 64, 40
HEAD = HIDDEN // HEADS
RETAIN_HEADS, RETAIN_MLP = 3, 56
RETAIN_ATTN = RETAIN_HEADS * HEAD
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "max_position_embeddings": 16,
    "window_size": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FIELDS: dict[str, Any] = {"retain_mlp_dim": RETAIN_MLP, "retain_attn_heads": RETAIN_HEADS, "masked_layers": [0, 2]}
ATTENTION = {"attention_types": [[["global", "local", "global"], 1]]}

every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
whole_or_split = pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])


def config(**changes: Any) -> GPTNeoSGTMConfig:
    return GPTNeoSGTMConfig(**(SIZES | FIELDS | changes))


def build(seed: int = 0, **changes: Any) -> GPTNeoForCausalLMSGTM:
    """A model large enough in its weights that no gradient is lost in rounding."""
    torch.manual_seed(seed)
    return GPTNeoForCausalLMSGTM(config(**({"initializer_range": 0.2} | changes)))


def batch(seed: int = 1) -> dict[str, Tensor]:
    ids = torch.randint(1, VOCAB, (2, 9), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Every gradient by the name of the *whole* parameter."""
    found: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        grad = torch.full_like(p, torch.nan) if p.grad is None else p.grad.clone()
        whole = name.removesuffix("_retain").removesuffix("_forget")
        found[whole] = torch.cat((found[whole], grad)) if whole in found else grad  # retain comes first
    return found


def trained(model: GPTNeoForCausalLMSGTM, mode: str, seed: int = 1) -> dict[str, Tensor]:
    """Gradients of one batch, the way of the argument and `adjust_gradients`."""
    model.zero_grad()
    model(**batch(seed), sgtm_mode=mode).loss.backward()
    model.adjust_gradients(sgtm_mode=mode)
    return gradients(model)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def logits(model: nn.Module, mode: str = "default") -> Tensor:
    with torch.no_grad():
        return model(input_ids=batch()["input_ids"], sgtm_mode=mode).logits


# --- Configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "last"), [(1, "global"), (2, "local"), (5, "global"), (12, "local")])
def test_attention_alternates_over_any_number_of_layers(layers: int, last: str) -> None:
    alternating = (["global", "local"] * layers)[:layers]
    for name in ("num_layers", "num_hidden_layers"):
        sizes = {k: v for k, v in SIZES.items() if k != "num_layers"} | {name: layers}
        assert GPTNeoSGTMConfig(**sizes, retain_mlp_dim=1).attention_layers == alternating
    assert alternating[-1] == last
    assert config(attention_types=[[["local"], LAYERS]]).attention_layers == ["local"] * LAYERS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masking_strategy": "sgtm"}, r"masking_strategy='sgtm' .*parameter_masking"),
        ({"init": "torch"}, r"init='torch' .*'hf', 'paper'"),
        ({"retain_mlp_dim": MLP + 1}, rf"retain_mlp_dim={MLP + 1} .* of {MLP}; use 1 to {MLP - 1}, or None"),
        ({"retain_mlp_dim": 0}, r"retain_mlp_dim=0 .*use 1 to"),
        ({"retain_attn_heads": HEADS + 1}, rf"retain_attn_heads={HEADS + 1} .*of {HEADS}; use 1 to {HEADS - 1}"),
        ({"retain_attn_heads": -1}, r"retain_attn_heads=-1 .*use 1 to"),
        ({"masked_layers": [0, LAYERS]}, rf"masked_layers=\[0, {LAYERS}\] must be different indices from 0 to"),
        ({"masked_layers": [-1]}, r"masked_layers=\[-1\] must be"),
        ({"masked_layers": [1, 1]}, r"masked_layers=\[1, 1\] must be different"),
    ],
)
def test_bad_values_are_refused_at_once_and_once_more_by_the_model(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
    changed_later = config()
    for name, value in changes.items():
        setattr(changed_later, name, value)
    with pytest.raises(ValueError, match=message):
        GPTNeoForCausalLMSGTM(changed_later)
    with pytest.raises(ValueError, match=message):
        GPTNeoForCausalLMSGTM(GPTNeoConfig(**(SIZES | ATTENTION | FIELDS | changes)))


@pytest.mark.parametrize("counts", [(None, None), (HEADS, MLP), (HEADS, None)])
def test_a_model_without_forget_units_is_refused(counts: tuple[int | None, int | None]) -> None:
    nothing = {"retain_attn_heads": counts[0], "retain_mlp_dim": counts[1]}
    with pytest.raises(ValueError, match=r"nothing would be masked; use less than 4 heads or 64 .*masked_layers=\[\]"):
        GPTNeoForCausalLMSGTM(config(**nothing, masked_layers=None))


@pytest.mark.parametrize("joint", [{}, {"sgtm_mask_embeddings": True}, {"joint": ["norms"]}])
def test_no_masked_layers_make_an_ordinary_model(joint: dict[str, Any]) -> None:
    model = build(masked_layers=[], retain_mlp_dim=None, retain_attn_heads=None, **joint)
    assert {type(b) for b in model.transformer.h} == {GPTNeoBlock}
    assert torch.equal(logits(model, "retain"), logits(model))
    assert all(grad.any() for grad in trained(model, "forget").values())


def test_an_unknown_joint_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"joint='embedings' .*did you mean 'embeddings'"):
        build(joint=["embedings"])


def test_a_plain_configuration_with_the_same_fields_works(tmp_path: Path) -> None:
    plain = GPTNeoConfig(**SIZES, **ATTENTION, **FIELDS, split_masked_weights=True, attn_implementation="eager")
    assert GPTNeoSGTMConfig.of(plain)._attn_implementation == "eager"
    torch.manual_seed(0)
    model = GPTNeoForCausalLMSGTM(plain)
    assert type(model.config) is type(model.transformer.config) is GPTNeoSGTMConfig
    assert model.config.model_type == "gpt_neo_sgtm"
    torch.manual_seed(0)
    assert_same(model.state_dict(), GPTNeoForCausalLMSGTM(config(split_masked_weights=True)).state_dict())
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt_neo_sgtm"
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is GPTNeoForCausalLMSGTM


def test_a_configuration_round_trips(tmp_path: Path) -> None:
    before = config(joint=["norms"], init="paper", masking_strategy="gradient_routing", split_masked_weights=True)
    before.save_pretrained(tmp_path)
    after = AutoConfig.from_pretrained(tmp_path)
    assert type(after) is GPTNeoSGTMConfig
    assert after.to_diff_dict() == before.to_diff_dict()
    assert (after.joint, after.init, after.masked_layers) == (["norms"], "paper", [0, 2])


# --- The example of the project's first document ---------------------------------------------------------------------


@pytest.mark.parametrize(("hidden", "mlp"), [(64, 192), (512, 1984)], ids=["small", "as written"])
def test_the_example_of_the_readme(hidden: int, mlp: int) -> None:
    config = GPTNeoSGTMConfig(
        vocab_size=50257,
        hidden_size=hidden,
        num_layers=12,
        num_heads=32,
        max_position_embeddings=2048,
        retain_mlp_dim=mlp,
        retain_attn_heads=31,
        masking_strategy="parameter_masking",
        split_masked_weights=True,
        sgtm_mask_embeddings=False,
    )
    model = GPTNeoForCausalLMSGTM(config)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    ids = torch.arange(12).reshape(2, 6)
    before = {n: p.detach().clone() for n, p in model.named_parameters_split("retain")}
    model(input_ids=ids, labels=ids, sgtm_mode="forget").loss.backward()
    model.adjust_gradients(sgtm_mode="forget")
    optimizer.step()
    assert len(before) == 12 * 5  # q, k, v and c_fc, which has a bias
    for name, p in model.named_parameters_split("retain"):
        assert torch.equal(p, before[name]), name
    assert all(p.grad.any() for p in model.parameters_split("forget"))


# --- Structure -------------------------------------------------------------------------------------------------------


@whole_or_split
def test_masked_layers_are_masked_blocks_and_names_are_hugging_faces(split: bool) -> None:
    model = build(split_masked_weights=split)
    assert model.transformer.masked_layers == [0, 2]
    assert [type(b) for b in model.transformer.h] == [GPTNeoBlockSGTM, GPTNeoBlock, GPTNeoBlockSGTM]
    assert build(masked_layers=None).transformer.masked_layers == [0, 1, 2]
    assert {"GPTNeoBlock", "GPTNeoBlockSGTM"} <= set(model._no_split_modules)
    stock = [name for name, _ in GPTNeoForCausalLM(GPTNeoConfig(**SIZES, **ATTENTION)).named_parameters()]
    assert sorted(gradients(model)) == sorted([*stock, "lm_head.bias"])
    are_split = {name for name, module in model.named_modules() if isinstance(module, SplitLinearOut)}
    inputs = ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj", "mlp.c_fc")
    assert are_split == ({f"transformer.h.{i}.{path}" for i in (0, 2) for path in inputs} if split else set())


def test_only_the_kind_that_has_forget_units_is_split() -> None:
    model = build(split_masked_weights=True, retain_attn_heads=None)
    block = model.transformer.h[0]
    assert type(block.attn.attention.q_proj) is nn.Linear
    assert type(block.mlp.c_fc) is SplitLinearOut
    assert "transformer.h.0.attn.attention.q_proj.weight" in dict(model.named_parameters_split("retain"))


@whole_or_split
def test_parameters_by_owner(split: bool) -> None:
    model = build(split_masked_weights=split)
    owners = {s: {id(p) for p in model.parameters_split(s)} for s in ("retain", "forget", "joint", "default")}
    assert owners["default"] == {id(p) for p in model.parameters()}
    assert sum(len(owners[s]) for s in ("retain", "forget", "joint")) == len(owners["default"])
    assert set.union(owners["retain"], owners["forget"], owners["joint"]) == owners["default"]
    first = {s: {n for n, _ in model.named_parameters_split(s) if ".h.0." in n} for s in owners}
    inputs = ["attn.attention.q_proj.weight", "attn.attention.k_proj.weight", "attn.attention.v_proj.weight"]
    inputs += ["mlp.c_fc.weight", "mlp.c_fc.bias"]
    by_side = {side: {f"transformer.h.0.{n}_{side}" for n in inputs if split} for side in ("retain", "forget")}
    out_biases = {"transformer.h.0.attn.attention.out_proj.bias", "transformer.h.0.mlp.c_proj.bias"}
    assert first["retain"] == by_side["retain"]
    assert out_biases <= first["joint"]
    assert first["forget"] == by_side["forget"]
    joint = {n for n, _ in model.named_parameters_split("joint")}
    assert {"transformer.wte.weight", "lm_head.bias", "transformer.h.0.attn.attention.out_proj.weight"} <= joint
    assert {n for n, _ in model.named_parameters() if ".h.1." in n} <= joint
    of_transformer = {f"transformer.{n}" for n, _ in model.transformer.named_parameters_split("retain")}
    assert of_transformer == {n for n, _ in model.named_parameters_split("retain")}


def test_the_signature_is_the_stock_one_and_the_mode() -> None:
    for ours, stock in ((GPTNeoForCausalLMSGTM, GPTNeoForCausalLM), (GPTNeoModelSGTM, GPTNeoModel)):
        shown = dict(inspect.signature(ours.forward).parameters)
        assert shown.pop("sgtm_mode").default is None
        assert shown == dict(inspect.signature(stock.forward).parameters)
        assert inspect.Parameter.VAR_KEYWORD in {p.kind for p in shown.values()}  # Trainer looks for it
    assert "self" not in inspect.signature(build().forward).parameters


# --- Modes -----------------------------------------------------------------------------------------------------------


@whole_or_split
@pytest.mark.parametrize("tied", [True, False])
def test_default_mode_is_the_stock_model(split: bool, tied: bool) -> None:
    sizes = {"tie_word_embeddings": tied, "initializer_range": 0.2}
    model = build(split_masked_weights=split, attn_implementation="eager", **sizes)
    torch.manual_seed(0)
    stock = GPTNeoForCausalLM(GPTNeoConfig(**SIZES, **ATTENTION, **sizes))
    ours, theirs = model(**batch()), stock(**batch())
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)
    ours.loss.backward()
    theirs.loss.backward()
    bias = model.lm_head.bias.grad
    assert bias is not None
    assert bias.any()
    got = gradients(model)
    del got["lm_head.bias"]
    assert_same(got, gradients(stock))


@pytest.mark.parametrize("mask_embeddings", [False, True])
def test_what_a_forget_batch_changes(mask_embeddings: bool) -> None:
    grads = trained(build(sgtm_mask_embeddings=mask_embeddings), "forget")
    for name, grad in grads.items():
        masked = ".h.0." in name or ".h.2." in name
        zero, changed = grad[:0], grad
        if masked and any(f".{p}_proj.weight" in name for p in "qkv"):
            zero, changed = grad.split((RETAIN_ATTN, HEAD))
        elif masked and ".c_fc." in name:
            zero, changed = grad.split((RETAIN_MLP, MLP - RETAIN_MLP))
        elif masked and name.endswith("out_proj.weight"):
            zero, changed = grad.split((RETAIN_ATTN, HEAD), dim=1)
        elif masked and name.endswith("c_proj.weight"):
            zero, changed = grad.split((RETAIN_MLP, MLP - RETAIN_MLP), dim=1)
        elif (masked and "_proj.bias" in name) or (
            mask_embeddings and ("e.weight" in name or (masked and ".ln_" in name))
        ):
            zero, changed = grad, grad[:0]  # biases of output projections; wte, wpe and norms
        assert not zero.any(), name
        assert changed.any() or not changed.numel(), name
    assert grads["lm_head.bias"].any()
    assert grads["transformer.ln_f.weight"].any()


@pytest.mark.parametrize("joint", [["lm_*"], ["lm_head.bias"], ["final_norm", "transformer.wpe.weight"], []])
def test_joint_stands_in_place_of_the_flag(joint: list[str]) -> None:
    grads = trained(build(joint=joint, sgtm_mask_embeddings=True, masking_strategy="gradient_routing"), "forget")
    zero = {name for name, grad in grads.items() if not grad.any()}
    meant = {"final_norm": {"transformer.ln_f.weight", "transformer.ln_f.bias"}, "lm_*": {"lm_head.bias"}}
    assert zero == set().union(*(meant.get(name, {name}) for name in joint))


@every_strategy
@whole_or_split
@pytest.mark.parametrize("mask_embeddings", [False, True])
def test_the_context_manager_gives_the_same_gradients(strategy: str, split: bool, mask_embeddings: bool) -> None:
    model = build(masking_strategy=strategy, split_masked_weights=split, sgtm_mask_embeddings=mask_embeddings)
    for mode in MODES:
        by_argument = trained(model, mode)
        model.zero_grad()
        with model.sgtm.batch(mode):
            model(**batch()).loss.backward()
        assert_same(gradients(model), by_argument)


@every_strategy
def test_split_weights_change_nothing(strategy: str) -> None:
    whole, split = (build(masking_strategy=strategy, split_masked_weights=s) for s in (False, True))
    for mode in MODES:
        assert torch.equal(logits(whole, mode), logits(split, mode))
        assert_same(trained(whole, mode), trained(split, mode))


@every_strategy
@whole_or_split
def test_masked_gradients_are_zero_tensors_and_retain_batches_leave_forget_units(strategy: str, split: bool) -> None:
    model = build(masking_strategy=strategy, split_masked_weights=split, sgtm_mask_embeddings=True)
    for mode, sides in (("forget", ("wte", "wpe", "ln_1", "ln_2")), ("retain", ())):
        grads = trained(model, mode)
        assert not any(grad.isnan().any() for grad in grads.values())  # no gradient is None
        assert not any(grad.any() for n, grad in grads.items() for s in sides if s in n and ".h.1." not in n)
    for s in model.sgtm.partition.forget:
        assert not s.of(s.param.grad).any()


@whole_or_split
def test_a_retain_pass_is_the_ablated_model(split: bool) -> None:
    model = build(split_masked_weights=split)
    retain = logits(model, "retain")
    assert not torch.allclose(retain, logits(model))
    model.ablate()
    torch.testing.assert_close(logits(model), retain)
    assert not any(s.of(s.param).any() for s in model.sgtm.partition.forget)


@whole_or_split
def test_an_ablated_model_can_be_left_trainable(split: bool) -> None:
    model = build(split_masked_weights=split)
    ablated, relearning = copy.deepcopy(model), copy.deepcopy(model)
    ablated.ablate()
    relearning.ablate(trainable=True)
    torch.testing.assert_close(logits(relearning), logits(ablated))
    for m, learns in ((ablated, False), (relearning, True)):
        trained(m, "default")
        assert any(s.of(s.param.grad).any() for s in m.sgtm.partition.forget) == learns


def test_without_the_argument_the_held_mode_counts() -> None:
    model = build()
    modes = {mode: logits(model, mode) for mode in ("default", "retain")}
    ids = batch()["input_ids"]
    with torch.no_grad(), model.sgtm.forward("retain"):
        assert torch.equal(model(ids).logits, modes["retain"])
        assert torch.equal(model(ids, sgtm_mode="default").logits, modes["default"])
        assert torch.equal(model(ids).logits, modes["retain"])
    assert torch.equal(model(ids).logits, modes["default"])
    model(**batch(), sgtm_mode="forget").loss.backward()
    with model.sgtm.forward("forget"):
        model.adjust_gradients()
    assert not model.transformer.h[0].mlp.c_proj.bias.grad.any()


def test_mode_on_a_stock_model_is_refused():
    config = GPTNeoConfig(**SIZES, **ATTENTION, **FIELDS)  # as the paper's code carried its fields
    model = AutoModelForCausalLM.from_config(config)
    for stock in (model, model.transformer):
        with pytest.raises(TypeError, match="it is the stock model: hold the mode"):
            stock(batch()["input_ids"], sgtm_mode="forget")
    assert model(**batch()).loss.isfinite()


def test_unknown_modes_and_splits_are_refused() -> None:
    model = build()
    for call in (lambda: model(**batch(), sgtm_mode="forgot"), lambda: model.adjust_gradients("forgot")):
        with pytest.raises(ValueError, match=r"'forgot' is none of \['default', 'retain', 'forget'\]"):
            call()
    for call in (model.named_parameters_split, model.parameters_split):
        with pytest.raises(ValueError, match=r"split='all' is none of \['default', 'retain', 'forget', 'joint'\]"):
            call("all")
    assert model.sgtm.mode == "default"


def test_an_error_in_the_forward_pass_leaves_no_mode_behind() -> None:
    model = build()
    with pytest.raises(IndexError):
        model(torch.tensor([[VOCAB]]), sgtm_mode="retain")
    assert model.sgtm.mode == "default"


def test_the_number_of_tokens_reaches_the_loss() -> None:
    model, data = build(), batch()
    mean = model(**data, sgtm_mode="forget").loss
    tokens = data["labels"][:, 1:].numel()
    scaled = model(**data, sgtm_mode="forget", num_items_in_batch=torch.tensor(4 * tokens)).loss
    torch.testing.assert_close(4 * scaled, mean)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_generation_takes_a_mode(use_cache: bool, held: bool) -> None:
    model = build(initializer_range=0.5).eval()
    arguments = {"max_new_tokens": 8, "do_sample": False, "use_cache": use_cache, "pad_token_id": 0}
    ids = batch()["input_ids"][:, :4]
    mask = torch.ones_like(ids)
    intact = model.generate(ids, attention_mask=mask, **arguments)
    if held:
        with model.sgtm.forward("retain"):
            retain = model.generate(ids, attention_mask=mask, **arguments)
    else:
        retain = model.generate(ids, attention_mask=mask, sgtm_mode="retain", **arguments)
    assert not torch.equal(retain, intact)
    model.ablate()
    assert torch.equal(model.generate(ids, attention_mask=mask, **arguments), retain)


# --- Activation checkpointing, compilation, accumulation -------------------------------------------------------------


def checkpointed(model: GPTNeoForCausalLMSGTM, use_reentrant: bool) -> GPTNeoForCausalLMSGTM:
    """`model` with activation checkpointing; its method has a new name since transformers 5.18 or so."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    return model


@every_strategy
@whole_or_split
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_activation_checkpointing_replays_the_mode(strategy: str, split: bool, use_reentrant: bool) -> None:
    changes = {"masking_strategy": strategy, "split_masked_weights": split, "use_cache": False}
    plain, model = build(**changes), checkpointed(build(**changes), use_reentrant)
    recomputed = []
    model.transformer.h[0].mlp.c_proj.register_forward_pre_hook(lambda *_: recomputed.append(model.sgtm.mode))
    for mode in MODES:
        other = "retain" if mode != "retain" else "forget"
        model.zero_grad()
        loss = model(**batch(), sgtm_mode=mode).loss
        model(**batch(2), sgtm_mode=other)  # its mode must not be the one that is replayed
        loss.backward()
        model.adjust_gradients(sgtm_mode=mode)
        assert recomputed == [mode, other, mode]  # forward, the other's forward, backward
        assert_same(gradients(model), trained(plain, mode))
        recomputed.clear()


@pytest.mark.parametrize("mode", MODES)
def test_compiling_changes_nothing(mode: str) -> None:
    model = build(num_layers=1, masked_layers=None, masking_strategy="gradient_routing", split_masked_weights=True)
    expected = trained(model, mode)
    model.zero_grad()
    torch.compile(model, backend="eager", fullgraph=True)(**batch(), sgtm_mode=mode, use_cache=False).loss.backward()
    model.adjust_gradients(sgtm_mode=mode)
    assert_same(gradients(model), expected)


@whole_or_split
def test_gradients_accumulate(split: bool) -> None:
    """Forget part first, as `adjust_gradients` masks all that has been accumulated."""
    model = build(split_masked_weights=split, sgtm_mask_embeddings=True)
    parts = [trained(model, mode, seed) for seed, mode in enumerate(MODES[::-1])]
    model.zero_grad()
    for seed, mode in enumerate(MODES[::-1]):
        model(**batch(seed), sgtm_mode=mode).loss.backward()
        if mode == "forget":
            model.adjust_gradients(sgtm_mode=mode)
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, sum(part[name] for part in parts), msg=name)


# --- Initialisation --------------------------------------------------------------------------------------------------


@whole_or_split
@pytest.mark.parametrize("tied", [True, False])
def test_one_seed_gives_the_stock_weights_and_leaves_the_generator_there(split: bool, tied: bool) -> None:
    torch.manual_seed(3)
    stock = GPTNeoForCausalLM(GPTNeoConfig(**SIZES, **ATTENTION, tie_word_embeddings=tied))
    state = torch.get_rng_state()
    torch.manual_seed(3)
    model = GPTNeoForCausalLMSGTM(config(split_masked_weights=split, tie_word_embeddings=tied))
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    for name, p in stock.named_parameters():
        path, _, last = name.rpartition(".")
        assert torch.equal(getattr(model.get_submodule(path), last), p), name
    assert not model.lm_head.bias.any()
    assert model.lm_head.bias.requires_grad


def test_the_paper_starts_split_layers_like_linear_layers() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "retain_mlp_dim": 448, "num_heads": 4, "init": "paper"}
    model = GPTNeoForCausalLMSGTM(config(**sizes, split_masked_weights=True))
    bound = 128**-0.5
    alone = GPTNeoModelSGTM(model.config)
    modules = [m for m in (*model.modules(), *alone.modules()) if isinstance(m, SplitLinearOut)]
    assert len(modules) == 16
    for module in modules:
        for p in module.parameters():
            assert p.detach().std() == pytest.approx(bound / 3**0.5, rel=0.2)  # of U(-bound, bound): .051
            assert bound * 0.9 < p.detach().abs().max() <= bound
    block = model.transformer.h[0]
    assert block.mlp.c_proj.weight.detach().std() == pytest.approx(0.02, rel=0.05)
    assert not block.mlp.c_proj.bias.any()
    assert model.transformer.h[1].mlp.c_fc.weight.detach().std() == pytest.approx(0.02, rel=0.05)
    whole = GPTNeoForCausalLMSGTM(config(**sizes)).transformer.h[0]
    assert whole.mlp.c_fc.weight.detach().std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("start", ["hf", "paper"])
def test_weights_that_a_checkpoint_lacks_are_initialised(start: str) -> None:
    model = build(split_masked_weights=True, initializer_range=0.02, init=start)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(7.0)
    state = model.state_dict()
    for name in ("weight_forget", "bias_retain"):
        del state[f"transformer.h.0.mlp.c_fc.{name}"]
    loaded = GPTNeoForCausalLMSGTM.from_pretrained(None, config=model.config, state_dict=state)
    c_fc = loaded.transformer.h[0].mlp.c_fc
    assert (c_fc.weight_retain == 7).all()
    assert (c_fc.bias_forget == 7).all()
    assert c_fc.weight_forget.detach().std() == pytest.approx(0.02 if start == "hf" else 0.25 / 3**0.5, rel=0.2)
    assert bool(c_fc.bias_retain.any()) == (start == "paper")


# --- Loading, saving, copying ----------------------------------------------------------------------------------------


@pytest.fixture(params=[(s, t, d) for s in (False, True) for t in (True, False) for d in ("float32", "bfloat16")])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[GPTNeoForCausalLMSGTM, Path]:
    split, tied, dtype = request.param
    model = build(split_masked_weights=split, tie_word_embeddings=tied, sgtm_mask_embeddings=True)
    model = model.to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        model.lm_head.bias.normal_()
    model.save_pretrained(tmp_path)
    return model, tmp_path


@pytest.mark.parametrize("auto", [False, True])
def test_a_model_round_trips(saved: tuple[GPTNeoForCausalLMSGTM, Path], auto: bool) -> None:
    model, path = saved
    loaded = (AutoModelForCausalLM if auto else GPTNeoForCausalLMSGTM).from_pretrained(path)
    assert type(loaded) is GPTNeoForCausalLMSGTM
    assert loaded.dtype == model.dtype
    assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == model.config.tie_word_embeddings
    assert_same(loaded.state_dict(), model.state_dict())
    for mode in MODES:
        assert torch.equal(logits(loaded, mode), logits(model, mode))
        assert_same(trained(loaded, mode), trained(model, mode))
    assert loaded.sgtm.frozen_joint == model.sgtm.frozen_joint
    loaded.ablate()
    model.ablate()
    assert_same(loaded.state_dict(), model.state_dict())


def test_a_tied_head_is_the_embedding_after_loading_too(tmp_path: Path) -> None:
    model = build(joint=["head"])
    model.save_pretrained(tmp_path)
    loaded = GPTNeoForCausalLMSGTM.from_pretrained(tmp_path)
    assert loaded.sgtm.frozen_joint == model.sgtm.frozen_joint == ("lm_head.bias",)
    assert_same(trained(loaded, "forget"), trained(model, "forget"))


def test_a_setting_may_be_changed_on_loading(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    loaded = GPTNeoForCausalLMSGTM.from_pretrained(tmp_path, masking_strategy="gradient_routing", retain_mlp_dim=60)
    assert loaded.sgtm.strategy is STRATEGIES["gradient_routing"]
    assert loaded.sgtm.partition.neurons == MLP - 60
    with pytest.raises(ValueError, match="retain_mlp_dim=65"):
        GPTNeoForCausalLMSGTM.from_pretrained(tmp_path, retain_mlp_dim=65)


def test_a_stock_checkpoint_loads_into_whole_weights(tmp_path: Path) -> None:
    stock = GPTNeoForCausalLM(GPTNeoConfig(**SIZES, **ATTENTION)).eval()
    stock.save_pretrained(tmp_path)
    model = GPTNeoForCausalLMSGTM.from_pretrained(tmp_path, attn_implementation="eager", **FIELDS)
    assert torch.equal(logits(model), stock(batch()["input_ids"]).logits)
    assert not torch.equal(logits(model, "retain"), logits(model))


@whole_or_split
def test_a_copy_has_masks_of_its_own(split: bool) -> None:
    model = build(split_masked_weights=split, masking_strategy="gradient_routing")
    expected = {mode: trained(model, mode) for mode in MODES}
    twin = copy.deepcopy(model)
    assert twin.sgtm is not model.sgtm
    assert twin.sgtm.partition.model is twin
    assert all(block.sgtm is twin.sgtm for block in twin.modules() if isinstance(block, GPTNeoBlockSGTM))
    model.zero_grad()
    with model.sgtm.forward("retain"):
        for mode in MODES:
            assert_same(trained(twin, mode), expected[mode])
    assert all(p.grad is None for p in model.parameters())
    before = logits(model)
    twin.ablate()
    assert torch.equal(logits(model), before)


# --- The decoder alone -----------------------------------------------------------------------------------------------


def test_the_decoder_and_the_language_model_share_one_mask() -> None:
    model = build()
    sgtms = {id(m.sgtm) for m in (model, model.transformer, model.transformer.h[0], model.transformer.h[2])}
    assert sgtms == {id(model.sgtm)}
    assert model.sgtm.partition.model is model
    assert "lm_head.bias" in model.sgtm.partition.joint
    hooked = [len(m._forward_pre_hooks) for m in model.modules() if m._forward_pre_hooks]
    assert hooked == [1] * 5  # the embedding, and the output projections of attention and MLP in two layers
    with torch.no_grad():
        hidden = model.transformer(batch()["input_ids"], sgtm_mode="retain").last_hidden_state
        assert torch.equal(model.lm_head(hidden), logits(model, "retain"))


@whole_or_split
def test_the_decoder_works_alone(split: bool, tmp_path: Path) -> None:
    model = build(split_masked_weights=split, masking_strategy="gradient_routing", sgtm_mask_embeddings=True)
    torch.manual_seed(0)
    alone = AutoModel.from_config(model.config)
    assert type(alone) is GPTNeoModelSGTM
    assert alone.sgtm.partition.model is alone
    ids = batch()["input_ids"]
    for mode in MODES:
        model.zero_grad()
        alone.zero_grad()
        for decoder in (alone, model.transformer):
            decoder(ids, sgtm_mode=mode).last_hidden_state.square().sum().backward()
            decoder.adjust_gradients(sgtm_mode=mode)
        assert_same(gradients(alone), gradients(model.transformer))
    assert (
        dict(alone.named_parameters_split("forget")).keys()
        == dict(model.transformer.named_parameters_split("forget")).keys()
    )
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is GPTNeoModelSGTM
    assert_same(loaded.state_dict(), model.transformer.state_dict())


@pytest.mark.parametrize(
    ("joint", "of_decoder"), [(["head"], ()), (["lm_head.bias", "transformer.wpe.weight"], ("wpe.weight",))]
)
def test_the_decoder_alone_reads_the_language_models_names(
    joint: list[str], of_decoder: tuple[str, ...], tmp_path: Path
) -> None:
    build(joint=joint).save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).sgtm.frozen_joint == of_decoder


# --- Vocabulary ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [VOCAB + 3, VOCAB - 3])
def test_the_heads_bias_follows_the_vocabulary(size: int, tied: bool) -> None:
    model = build(tie_word_embeddings=tied, joint=["embeddings", "head"])
    with torch.no_grad():
        model.lm_head.bias.normal_()
    kept = min(size, VOCAB)
    before, logits_before = model.lm_head.bias.detach().clone(), logits(model.eval())
    model.resize_token_embeddings(size)
    assert model.lm_head.bias.shape == (size,) == (model.config.vocab_size,)
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    assert torch.equal(model.lm_head.bias[:kept], before[:kept])
    assert model.lm_head.bias.isfinite().all()
    ids = batch()["input_ids"].clamp(max=kept - 1)
    grown = model(input_ids=ids).logits
    assert grown.shape[-1] == size
    if size > VOCAB:
        torch.testing.assert_close(grown[..., :VOCAB], logits_before)
    model(input_ids=ids, labels=ids, sgtm_mode="forget").loss.backward()
    assert model.lm_head.bias.grad.any()
    model.adjust_gradients(sgtm_mode="forget")
    for p in (model.lm_head.bias, model.lm_head.weight, model.transformer.wte.weight):
        assert not p.grad.any()
