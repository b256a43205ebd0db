"""The laws of the method where the units are ranks of LoRA adapters. Who owns what is written out by hand."""

import copy
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, TrainingArguments

from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition
from sgtm.train.optimizer import BlockParameters
from sgtm.train.trainer import SGTMTrainer

peft = pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
from sgtm.model.lora import lora_partition  # noqa: E402

# peft asks models for an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

Gradients = dict[str, Tensor]
RANKS = 2
DOMAINS = {"biology": 1, "cyber": 2}
STRATEGIES = ("parameter_masking", "gradient_routing", "activation_masking")
FAMILIES = ("llama", "gpt2")
_TOKENS = {"vocab_size": 24, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(
        **_TOKENS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        tie_word_embeddings=False,
    ),
    "gpt2": GPT2Config(
        **_TOKENS,
        n_embd=16,
        n_layer=2,
        n_head=4,
        n_inner=12,
        n_positions=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
}
LORA: dict[str, dict[str, Any]] = {
    "llama": {  # adapters of different ranks, and of different scales
        "target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "rank_pattern": {"v_proj": 4, "down_proj": 7},
        "use_rslora": True,
    },
    "gpt2": {  # Conv1D, and biases behind B
        "target_modules": ["c_attn", "c_proj", "c_fc"],
        "fan_in_fan_out": True,
        "lora_bias": True,
    },
}
IN_ATTENTION = ("attn.",)  # "self_attn." as well


@cache
def _stock(family: str, settings: tuple[tuple[str, Any], ...]) -> nn.Module:
    """A tiny model of random weights, in which no parameter is zero, with LoRA."""
    generator = torch.Generator().manual_seed(0)
    base = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family])).double()
    config = peft.LoraConfig(**({"r": 5, "lora_alpha": 5, "task_type": "CAUSAL_LM"} | LORA[family] | dict(settings)))
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0.0, 0.4, generator=generator).add_(0.5 if "norm" in name or "ln_" in name else 0.1)
    return model


def build(family: str, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    return copy.deepcopy(_stock(family, tuple(settings.items()))).to(dtype)


def tokens(rows: int = 6, seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(2, 24, (rows, 8), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens()["input_ids"]).logits


def gradients(model: nn.Module) -> Gradients:
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def train(sgtm: SGTM, mode: Any, batch: Mapping[str, Tensor] | None = None, scale: float = 1.0) -> Gradients:
    with sgtm.batch(mode):
        (scale * sgtm.partition.model(**(batch or tokens())).loss).backward()
    return gradients(sgtm.partition.model)


def assert_close(actual: Gradients, expected: Gradients) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[None, DOMAINS], ids=["one_domain", "two_domains"])
def domains(request: pytest.FixtureRequest) -> dict[str, int] | None:
    return request.param


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """What models cast to fp32, whatever their dtype (norms, rotary embeddings, softmax), they cast to fp64."""
    for name in FAMILIES:
        build(name)  # made, and kept, before torch is changed
    for name in ("float32", "float"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def prepare(family: str, strategy: str = "parameter_masking", domains: Mapping[str, int] | None = None) -> SGTM:
    chosen = {"domains": domains} if domains else {"ranks": RANKS}
    return SGTM(lora_partition(build(family), **chosen), strategy)


# ---- By hand: who owns what, and what each mode may change


def owners_of_ranks(count: int, domains: Mapping[str, int] | None) -> list[str]:
    forget = [name for name, ranks in (domains or {"forget": RANKS}).items() for _ in range(ranks)]
    return ["retain"] * (count - len(forget)) + forget


def owned_by(model: nn.Module, owner: str, domains: Mapping[str, int] | None = None) -> dict[str, Tensor]:
    """Which elements of each parameter ``owner`` has."""
    found: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        if "lora_" in name and p.ndim == 2:
            dim = 0 if "lora_A" in name else 1
            mine = torch.tensor([of == owner for of in owners_of_ranks(p.shape[dim], domains)])
            found[name] = (mine[:, None] if dim == 0 else mine).expand(p.shape).clone()
        else:  # the bias of lora_B, and the base model
            found[name] = torch.full(p.shape, owner == ("retain" if "lora_" in name else "joint"))
    return found


class _EachMode(nn.Module):
    """``inner`` computed in every mode; at each position, what is asked for there."""

    def __init__(self, inner: nn.Module, masks: list[Gradients], treat: list[Callable], codes: Tensor) -> None:
        super().__init__()
        self.inner, self.masks, self.treat, self.codes = inner, masks, treat, codes

    @property
    def weight(self) -> Tensor:  # peft asks for its dtype
        return self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        y = 0.0
        for code, (masks, treat) in enumerate(zip(self.masks, self.treat, strict=True)):
            p = {n: torch.where(masks[n], p, p.detach()) for n, p in self.inner.named_parameters()}
            at = (self.codes == code)[..., None]
            y = torch.where(at, functional_call(self.inner, p, (treat(x),)), y)
        return y


def treatment(mode: str, strategy: str, owners: list[str]) -> Callable[[Tensor], Tensor]:
    """What becomes of the ranks' activations."""
    retain, own = (torch.tensor([owner == name for owner in owners]) for name in ("retain", mode))
    if mode == "default":
        return lambda x: x
    if mode == "retain":
        return lambda x: torch.where(retain, x, 0.0)
    if strategy == "activation_masking":
        return lambda x: torch.where(own, x, 0.0)
    if strategy == "gradient_routing":
        return lambda x: torch.where(own, x, torch.where(retain, x.detach(), 0.0))
    return lambda x: torch.where(own | retain, x, 0.0)


def reference(family: str, strategy: str, codes: Tensor, domains: Mapping[str, int] | None = None) -> Gradients:
    """Gradients by plain autograd, with parameters ``where(mask, W, W.detach())``; ``codes`` (batch, seq)."""
    model = build(family)
    modes = ("default", "retain", *(domains or {"forget": RANKS}))
    retain = owned_by(model, "retain", domains)
    for path, module in list(model.named_modules()):
        side = path.rpartition(".")[0].rpartition(".")[2]
        if side not in ("lora_A", "lora_B"):
            continue
        whole = {n: torch.ones_like(p, dtype=torch.bool) for n, p in module.named_parameters()}
        masked = {n: ~retain[f"{path}.{n}"] for n in whole} if strategy == "parameter_masking" else whole
        ranks = owners_of_ranks(module.weight.shape[1], domains)
        treat = [treatment(m, strategy, ranks) if side == "lora_B" else lambda x: x for m in modes]
        each = [whole if code < 2 else masked for code in range(len(modes))]
        model.set_submodule(path, _EachMode(module, each, treat, codes))
    model(**tokens()).loss.backward()
    return {name.replace(".inner", ""): grad for name, grad in gradients(model).items()}


# ---- Laws 1 to 3


def test_default_mode_is_the_untouched_model(family, strategy):
    stock = build(family)
    stock(**tokens()).loss.backward()
    sgtm = prepare(family, strategy)
    model = sgtm.partition.model
    for mode in ("retain", "forget"):
        train(sgtm, mode)
    model.zero_grad()
    assert torch.equal(logits(model), logits(stock))
    got = train(sgtm, "default")
    for name, grad in gradients(stock).items():
        assert torch.equal(got[name], grad), name


def test_partition_owns_every_element_once(family, domains):
    sgtm = prepare(family, domains=domains)
    partition = sgtm.partition
    names = ("joint", "retain", *(domains or {"forget": RANKS}))
    expected = {owner: owned_by(partition.model, owner, domains) for owner in names}
    painted = {name: torch.zeros(p.shape, dtype=torch.int) for name, p in partition.model.named_parameters()}
    for s in (*partition.retain, *partition.forget):
        assert s.param is partition.model.get_parameter(s.name)
        assert s.of(expected[s.domain or "retain"][s.name]).all(), s
        assert s.layer == int(s.name.split("layers." if family == "llama" else ".h.")[1].split(".")[0])
        sublayer = "attn" if any(part in s.name for part in IN_ATTENTION) else "mlp"
        assert s.site == f"{sublayer}.{'in' if 'lora_A' in s.name else 'out'}"
        s.of(painted[s.name]).add_(1)
    for name in partition.joint:
        assert expected["joint"][name].all(), name
        painted[name].add_(1)
    assert all((times == 1).all() for times in painted.values())
    counts = {owner: sum(int(mask.sum()) for mask in expected[owner].values()) for owner in names}
    assert partition.num_parameters() == counts
    blocks = sgtm.blocks()
    assert sum(painted[b.name].numel() if b.slice is None else b.slice.numel for b in blocks) == sum(counts.values())


def test_it_can_be_read(family, domains):
    partition = prepare(family, domains=domains).partition
    first, *_, last = str(partition).splitlines()
    assert all(f"{name}: {n} ranks an adapter" in first for name, n in (domains or {"forget": RANKS}).items())
    assert [int(n.replace(",", "")) for n in last.split()[1:]] == list(partition.num_parameters().values())
    assert "layers=all" in repr(partition)


def test_retain_pass_is_the_ablated_model(family, strategy):
    sgtm = prepare(family, strategy)
    intact = logits(sgtm.partition.model)
    ablated = prepare(family).partition
    ablated.ablate()
    forget = owned_by(ablated.model, "forget")
    for name, p in build(family).named_parameters():
        assert torch.equal(ablated.model.get_parameter(name), torch.where(forget[name], 0.0, p)), name
    for hold in (sgtm.forward, sgtm.batch):
        with hold("retain"):
            assert torch.equal(logits(sgtm.partition.model), logits(ablated.model))
    assert not torch.allclose(intact, logits(ablated.model), atol=1e-2)


def test_without_one_domain_is_its_ablation(family):
    sgtm, ablated = prepare(family, domains=DOMAINS), prepare(family, domains=DOMAINS).partition
    ablated.ablate("cyber")
    with sgtm.without("cyber"):
        assert torch.equal(logits(sgtm.partition.model), logits(ablated.model))
    assert ablated.forget_of("biology")[0].of(ablated.forget_of("biology")[0].param).all()


# ---- Laws 4 and 5


@pytest.mark.usefixtures("double")
def test_gradients_equal_the_plain_reference(family, strategy):
    sgtm = prepare(family, strategy)
    model = sgtm.partition.model
    retain, forget = (owned_by(model, owner) for owner in ("retain", "forget"))
    for code, mode in ((1, "retain"), (2, "forget")):
        model.zero_grad()
        got = train(sgtm, mode)
        assert_close(got, reference(family, strategy, torch.full((6, 8), code)))
        silent = forget if mode == "retain" else retain if strategy == "parameter_masking" else {}
        assert not any(got[name][mask].any() for name, mask in silent.items()), mode


@pytest.mark.usefixtures("double")
def test_a_mode_for_each_position_equals_the_plain_reference(family, strategy):
    sgtm = prepare(family, strategy, DOMAINS)
    codes = torch.randint(4, (6, 8), generator=torch.Generator().manual_seed(1))
    assert_close(train(sgtm, codes), reference(family, strategy, codes, DOMAINS))


@pytest.mark.usefixtures("double")
def test_a_mode_for_each_example_is_the_sum_of_batches(family, strategy):
    sgtm = prepare(family, strategy, DOMAINS)
    codes = torch.tensor([2, 0, 3, 1, 2, 0])
    for code, mode in enumerate(sgtm.partition.modes):
        rows = codes == code
        batch = {name: values[rows] for name, values in tokens().items()}
        total = train(sgtm, mode, batch, scale=float(rows.float().mean()))
    sgtm.partition.model.zero_grad()
    assert_close(train(sgtm, codes), total)


def test_dropout_stands_in_front_of_the_ranks():
    got = []
    for p in (0.0, 0.5):
        model = build("llama", lora_dropout=p).train()
        with SGTM(lora_partition(model, ranks=RANKS)).batch(torch.tensor([0, 1, 2] * 2)):
            torch.manual_seed(0)
            model(**tokens()).loss.backward()
        got.append(gradients(model))
        mine = owned_by(model, "forget")
        assert all(grad[mine[name]].all() for name, grad in got[-1].items() if "lora" in name and p == 0.0)
    assert any(not torch.equal(got[0][name], got[1][name]) for name in got[0])


# ---- Training


@pytest.mark.parametrize("mode", ["forget", torch.tensor([2] * 6)], ids=["batch", "examples"])
def test_strict_updates_leave_masked_ranks_and_their_state_alone(family, mode):
    sgtm = prepare(family)
    model = sgtm.partition.model
    parts = BlockParameters(sgtm)
    decayed = {name for name, p in model.named_parameters() if p.ndim == 2}
    optimizer = torch.optim.AdamW(parts.groups(0.01, 0.1, decayed))
    parts.attach(optimizer)

    def step(mode: Any, present: set[str]) -> None:
        train(sgtm, mode)
        parts.set_gradients(present)
        optimizer.step()
        model.zero_grad()

    def kept() -> list[Tensor]:
        found = [s.of(s.param).clone() for s in sgtm.partition.retain]
        for part in parts.parts:
            state = optimizer.state[part.param] if part.block.owner == "retain" else {}
            found += [value.clone() for value in state.values()]
        return found

    for _ in range(3):
        step("default", {"default"})  # momentum, that would go on moving them
    before, moved = kept(), [s.of(s.param).clone() for s in sgtm.partition.forget]
    for _ in range(20):
        step(mode, {"forget"})
    assert len(before) > len(sgtm.partition.retain)
    assert all(torch.equal(old, new) for old, new in zip(before, kept(), strict=True))
    assert not any(torch.equal(old, s.of(s.param)) for old, s in zip(moved, sgtm.partition.forget, strict=True))
    stock = build(family)
    assert all(torch.equal(p, stock.get_parameter(n)) for n, p in model.named_parameters() if "lora" not in n)


@pytest.mark.parametrize("update", ["gradient", "strict", "per_block"])
def test_the_trainer_takes_it(update, tmp_path):
    model = build("llama", torch.float32)
    sgtm = SGTM(lora_partition(model, ranks=RANKS))
    rows = [{"input_ids": ids, "mode": 2} for ids in tokens(8)["input_ids"].numpy()]
    args = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to=[], save_strategy="no"
    )
    retain, forget = sgtm.partition.retain, sgtm.partition.forget
    before = [[s.of(s.param).clone() for s in slices] for slices in (retain, forget)]
    SGTMTrainer(model, args, sgtm, update=update, train_dataset=rows).train()
    assert all(torch.equal(old, s.of(s.param)) for old, s in zip(before[0], retain, strict=True))
    assert not any(torch.equal(old, s.of(s.param)) for old, s in zip(before[1], forget, strict=True))


# ---- Merging


def test_the_merged_model_is_the_ablated_one(family):
    partition = prepare(family).partition
    intact = logits(partition.model)
    partition.ablate()
    ablated = logits(partition.model)
    merged = copy.deepcopy(partition.model).merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    # W + BA in one matrix: another order of the same sums in fp64, with the models' own fp32 norms between.
    torch.testing.assert_close(logits(merged), ablated, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(intact, ablated, atol=1e-2)


def test_reinitialised_ranks_are_silent_and_learn(family):
    sgtm = prepare(family)
    sgtm.partition.ablate()
    silent = logits(sgtm.partition.model)
    sgtm.partition.ablate(reinit=True, generator=torch.Generator().manual_seed(1))
    assert torch.equal(logits(sgtm.partition.model), silent)
    mine = owned_by(sgtm.partition.model, "forget")
    assert all(g[mine[n]].all() for n, g in train(sgtm, "default").items() if "lora_B" in n and g.ndim == 2)


def test_ablation_after_merging_is_refused():
    partition = prepare("llama").partition
    partition.model.merge_adapter()
    with pytest.raises(ValueError, match=r"are merged.*unmerge_adapter"):
        partition.ablate()
    partition.model.unmerge_adapter()
    partition.model.merge_and_unload()
    with pytest.raises(ValueError, match="ablate before merge_and_unload"):
        partition.ablate()


# ---- What is joint, and what is refused


@pytest.mark.parametrize("settings", [{"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ["ln_f"]}], ids=str)
def test_what_else_is_trained_is_joint(settings):
    model = build("gpt2", lora_bias=False, **{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    free = SGTM(lora_partition(model, ranks=RANKS))
    assert trained
    assert trained <= free.partition.joint.keys()
    got = train(free, "forget")
    assert all(got[name].any() for name in trained)
    model.zero_grad()
    free.close()
    for mode in ("forget", torch.tensor([2] * 6)):
        masked = SGTM(free.partition, joint=["*.bias", "final_norm"])
        got = train(masked, mode)
        assert not any(got[name].any() for name in trained)
        masked.close()


def _with_second_adapter(active: bool) -> Any:
    model = build("llama")
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    if active:
        model.base_model.set_adapter(["default", "other"])
    return model


def _merged() -> Any:
    model = build("llama")
    model.merge_adapter()
    return model


def _wrapped(config: Any) -> Any:
    return peft.get_peft_model(AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["llama"])), config)


def _lora(**settings: Any) -> Any:
    return _wrapped(peft.LoraConfig(**({"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | settings)))


def _with_adapter_of_transformers() -> Any:
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["llama"]))
    try:
        model.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj"]))
    except ValueError as error:  # transformers may ask for a newer peft than there is
        pytest.skip(f"transformers adds no adapter: {error}")
    return model


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "no PeftModel": (
        lambda: AutoModelForCausalLM.from_config(CONFIGS["llama"]),
        {"ranks": 2},
        "LlamaForCausalLM is no PeftModel; wrap .*get_peft_model.*Partition.of",
    ),
    "add_adapter": (_with_adapter_of_transformers, {"ranks": 2}, "from model.add_adapter.*get_peft_model"),
    "IA3": (
        lambda: _wrapped(peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")),
        {"ranks": 2},
        "type .*IA3.*LoraConfig",
    ),
    "AdaLoRA": (
        lambda: _wrapped(peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10, task_type="CAUSAL_LM")),
        {"ranks": 2},
        "type .*ADALORA.*LoraConfig",
    ),
    "DoRA": (partial(_lora, use_dora=True), {"ranks": 2}, "DoraLinearVariant.*norm of W.*use_dora=False"),
    "embedding": (
        partial(_lora, target_modules=["q_proj", "embed_tokens"]),
        {"ranks": 2},
        "embed_tokens is of an embedding.*target_modules",
    ),
    "head": (
        partial(_lora, target_modules=["q_proj", "lm_head"]),
        {"ranks": 2},
        "lm_head is in no attention or MLP.*exclude_modules",
    ),
    "parameters": (
        partial(_lora, target_modules=[], target_parameters=["mlp.up_proj.weight"]),
        {"ranks": 2},
        "ParamWrapper.*target_parameters",
    ),
    "several active": (partial(_with_second_adapter, True), {"ranks": 2}, "'default', 'other'.*active.*set_adapter"),
    "merged": (_merged, {"ranks": 2}, "'default'.* are merged.*unmerge_adapter"),
    "too many ranks": (partial(build, "llama"), {"ranks": 4}, r"ranks=4 of 4 .*v_proj: use at most 3.*rank_pattern"),
    "too many in all": (
        partial(build, "llama"),
        {"domains": {"biology": 2, "cyber": 2}},
        "ranks=4 of 4 .*at most 3 in all",
    ),
    "no ranks": (partial(build, "llama"), {}, "0 ranks leave no forget units.*at least 1"),
    "negative": (partial(build, "llama"), {"domains": {"biology": -1}}, "-1 ranks leave no forget units"),
    "no domains": (partial(build, "llama"), {"domains": {}}, "domains={} leaves no forget ranks"),
    "both": (partial(build, "llama"), {"ranks": 2, "domains": {"biology": 1}}, "ranks=2 and domains=.*one of them"),
    "a mode's name": (partial(build, "llama"), {"domains": {"retain": 1}}, "'retain' cannot name a domain"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's own, about what is refused here
@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_a_law_is_refused(case):
    model, units, reason = REFUSED[case]
    with pytest.raises(ValueError, match=reason):
        lora_partition(model(), **units)


def test_an_adapter_that_is_not_active_is_joint():
    model = _with_second_adapter(active=False)
    partition = lora_partition(model, ranks=RANKS)
    assert {name for name in partition.joint if "lora_" in name} == {
        name for name, _ in model.named_parameters() if ".other." in name
    }


def test_dora_breaks_the_laws(monkeypatch):
    """Why it is refused: with two modes in one batch, no row is right."""
    monkeypatch.setattr("sgtm.model.lora._check_layer", lambda *_: None)
    prepared = [lora_partition(build("llama", use_dora=True), ranks=RANKS) for _ in range(2)]
    ids = tokens(4)["input_ids"]
    with torch.no_grad(), SGTM(prepared[0]).forward(torch.tensor([1, 1, 0, 0])):
        mixed = prepared[0].model(input_ids=ids).logits
    intact = prepared[1].model(input_ids=ids).logits
    prepared[1].ablate()
    ablated = prepared[1].model(input_ids=ids).logits
    assert (mixed[:2] - ablated[:2]).abs().max() > 0.01
    assert (mixed[2:] - intact[2:]).abs().max() > 0.01


def test_partition_of_points_here():
    with pytest.raises(ValueError, match="lora_partition"):
        Partition.of(build("llama"), heads=1)
