"""A mode for each example or position, against batches of one mode and against plain autograd (reference.py)."""

from collections.abc import Iterator, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from sgtm.model.chunked_loss import chunked
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition
from sgtm.model.strategies import STRATEGIES
from sgtm.model.tests.families import FAMILIES, gradients, logits, tokens
from sgtm.model.tests.reference import FROZEN, MAIN, TINY, Tiny, assert_close, changeable, joined, prepare, reference

Batch = dict[str, Tensor]
Gradients = dict[str, Tensor]
Case = tuple[Tiny, str, tuple[str, ...]]
DEFAULT, RETAIN, FORGET = range(3)
MODES = ("default", "retain", "forget")
MIXED = ("forget", "default", "retain", "forget", "retain", "default")
CASES = [("gpt_neo", strategy) for strategy in FROZEN] + [(name, s) for name in TINY if name != "gpt_neo" for s in MAIN]


def all_joint(tiny: Tiny) -> tuple[str, ...]:
    return tuple(tiny.joint)


@pytest.fixture(params=CASES, ids="-".join)
def family_and_strategy(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(params=[False, True], ids=["joint_updated", "joint_frozen"])
def case(request: pytest.FixtureRequest, family_and_strategy: tuple[str, str]) -> Case:
    name, strategy = family_and_strategy
    return TINY[name], strategy, all_joint(TINY[name]) if request.param else ()


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return TINY[request.param]


@pytest.fixture(params=["gpt_neo", "gpt2", "llama", "opt"])
def sgtm(request: pytest.FixtureRequest) -> SGTM:
    return prepare(TINY[request.param], joint=all_joint(TINY[request.param]))


def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    return {name: values[list(rows)] for name, values in batch.items()}


def train(sgtm: SGTM, mode: object, batch: Batch, scale: float = 1.0) -> Gradients:
    """One batch; a copy of what has been accumulated by then."""
    with sgtm.batch(mode):
        (scale * sgtm.partition.model(**batch).loss).backward()
    return gradients(sgtm.partition.model)


def alone(case: Case, mode: object, batch: Batch, scale: float = 1.0) -> Gradients:
    tiny, strategy, joint = case
    return train(prepare(tiny, strategy, joint), mode, batch, scale)


def total(parts: Sequence[Gradients]) -> Gradients:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


@cache
def sum_of_batches(case: Case) -> Gradients:
    """One batch for each mode in MIXED; of the sum of the rows' mean losses."""
    parts = []
    for mode in MODES:
        rows = [i for i, name in enumerate(MIXED) if name == mode]
        parts.append(alone(case, mode, rows_of(tokens(rows=6), rows), scale=len(rows)))
    return total(parts)


def positions(seed: int = 0, shape: tuple[int, int] = (3, 8)) -> Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed))


# ---- Examples


def test_examples_of_all_modes_give_the_sum_of_their_batches(case: Case) -> None:
    batch = tokens(rows=6)
    expected = sum_of_batches(case)
    for order in ([0, 1, 2, 3, 4, 5], [4, 1, 0, 5, 3, 2]):
        assert_close(alone(case, [MIXED[i] for i in order], rows_of(batch, order), scale=6), expected)


def test_modes_of_examples_add_to_earlier_gradients(case: Case) -> None:
    tiny, strategy, joint = case
    sgtm = prepare(tiny, strategy, joint)
    batch, second = tokens(rows=6), tokens(1)
    earlier = train(sgtm, "default", tokens(9))
    both = train(sgtm, MIXED, batch, scale=6)
    expected = total([earlier, sum_of_batches(case)])
    assert_close(both, expected)
    names = ("retain", "forget", "forget")
    assert_close(train(sgtm, names, second), total([expected, alone(case, names, second)]))
    assert_close(train(sgtm, "forget", second), total([expected, *(alone(case, m, second) for m in (names, "forget"))]))


def test_names_are_codes(case: Case) -> None:
    batch = tokens()
    by_name = alone(case, ["forget", "retain", "default"], batch)
    codes = torch.tensor([FORGET, RETAIN, DEFAULT])
    for same in (codes, codes.int(), codes[:, None].expand(3, 8)):
        assert_close(alone(case, same, batch), by_name)


@pytest.mark.parametrize("mode", MODES)
def test_one_mode_everywhere_is_the_homogeneous_batch(mode: str, case: Case) -> None:
    batch, expected = tokens(), alone(case, mode, tokens())
    code = MODES.index(mode)
    for same in (torch.full((3, 8), code), torch.full((3,), code), [mode] * 3):
        assert_close(alone(case, same, batch), expected)


def test_one_example(case: Case) -> None:
    batch = tokens(rows=1)
    for mode in MODES:
        assert_close(alone(case, [mode], batch), alone(case, mode, batch))


# ---- Positions


def test_positions_equal_the_plain_reference(case: Case) -> None:
    tiny, strategy, joint = case
    batch = tokens()
    codes = positions()
    assert set(codes.flatten().tolist()) == {DEFAULT, RETAIN, FORGET}
    expected = reference(tiny, strategy, joint, codes, batch)
    assert_close(joined(alone(case, codes, batch)), expected)


def test_forward_of_positions_equals_the_plain_reference(case: Case) -> None:
    tiny, strategy, joint = case
    sgtm, model = prepare(tiny, strategy, joint), tiny.model()
    codes = positions(1)
    with sgtm.forward(codes):
        mixed = logits(sgtm.partition.model)
    for i in range(3):
        for t in range(1, 9):  # all that position t - 1 reads
            alike = codes[i, :t] == codes[i, 0]
            if alike.all():
                with sgtm.forward(MODES[codes[i, 0]]):
                    torch.testing.assert_close(mixed[i, :t], logits(sgtm.partition.model)[i, :t], rtol=1e-10, atol=0)
    assert torch.equal(logits(sgtm.partition.model), logits(model)) or tiny.split


def test_head_bias_of_its_own_is_trained_at_forget_positions() -> None:
    case = (TINY["gpt_neo_sgtm"], "parameter_masking", ("embeddings",))
    grads = alone(case, ["forget"] * 3, tokens())
    assert grads["lm_head.bias"].any()
    assert not grads["transformer.wte.weight"].any()


@pytest.mark.parametrize("joint", ["lm_head.bias", "ln_1.weight", "ln_f.bias", "transformer.wpe.weight"])
def test_parts_of_a_module_freeze_apart(joint: str) -> None:
    case = (TINY["gpt_neo_sgtm"], "gradient_routing", (joint,))
    assert_close(alone(case, MIXED, tokens(rows=6), scale=6), sum_of_batches(case))


# ---- Packed documents


@pytest.mark.parametrize("modes", [(RETAIN, FORGET), (FORGET, RETAIN), (FORGET, DEFAULT)])
def test_packed_documents_train_as_if_alone(modes: tuple[int, int], case: Case) -> None:
    lengths = (3, 5)
    ids = tokens(rows=1)["input_ids"]
    document = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    reads = (document[:, None] == document) & torch.ones(8, 8, dtype=torch.bool).tril()
    labels = ids.clone()
    labels[0, 3] = -100
    packed = {
        "input_ids": ids,
        "labels": labels,
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]]),
        "attention_mask": torch.zeros(8, 8, dtype=torch.float64).masked_fill(~reads, -1e30)[None, None],
    }
    parts = []
    for part, mode, length in zip(ids.split(lengths, 1), modes, lengths, strict=True):
        parts.append(alone(case, MODES[mode], {"input_ids": part, "labels": part}, scale=length - 1))
    assert_close(alone(case, torch.tensor(modes)[document][None], packed, scale=6), total(parts))


# ---- Attention between positions of different modes


def across(tiny: Tiny, first: int, then: int) -> tuple[Gradients, Gradients, dict[str, Tensor]]:
    """Loss of the last four positions alone, in mode ``then`` behind ``first``.

    Returns:
        gradients, which equal the reference's; the reference's where *every* parameter is a constant at forget
        positions; and which elements a forget batch may not change.
    """
    joint, codes = all_joint(tiny), torch.tensor([first] * 4 + [then] * 4).expand(3, 8)
    batch = tokens()
    batch["labels"] = batch["labels"].clone()
    batch["labels"][:, :5] = -100
    grads = joined(alone((tiny, "parameter_masking", joint), codes, batch))
    assert_close(grads, reference(tiny, "parameter_masking", joint, codes, batch))
    without = reference(tiny, "parameter_masking", joint, codes, batch, constant={FORGET})
    return grads, without, {n: ~mask for n, mask in changeable(tiny, "parameter_masking", joint).items()}


def elements(grads: Gradients, masks: dict[str, Tensor]) -> Gradients:
    return {name: grad[masks[name]] for name, grad in grads.items()}


def test_loss_of_retain_changes_no_frozen_parameter_through_forget(tiny: Tiny) -> None:
    grads, without, frozen = across(tiny, FORGET, RETAIN)
    assert_close(elements(grads, frozen), elements(without, frozen))
    others = {name: ~mask for name, mask in frozen.items()}
    learnt = {n for n, grad in elements(grads, others).items() if not torch.allclose(grad, without[n][others[n]])}
    assert learnt >= {n for n in grads if n.endswith(("v_proj.weight", "c_attn.weight", "fc_in.weight")) and ".0." in n}


def test_loss_of_forget_changes_frozen_parameters_at_earlier_retain_positions(tiny: Tiny) -> None:
    grads, without, frozen = across(tiny, RETAIN, FORGET)
    assert_close(elements(grads, frozen), elements(without, frozen))
    reached = {name for name, grad in elements(grads, frozen).items() if grad.any()}
    assert reached >= {n for n in grads if n.endswith(("v_proj.weight", "c_attn.weight")) and ".0." in n}


def test_values_of_forget_heads_learn_at_retain_positions_that_forget_positions_read() -> None:
    _, without, _ = across(TINY["llama"], RETAIN, FORGET)
    assert without["model.layers.0.self_attn.v_proj.weight"][-2:].any()


# ---- Other precisions


@pytest.mark.parametrize("name", ["qwen3", "persimmon", "hunyuan_v1_dense", "gemma3_text", "apertus", "exaone4"])
def test_norms_of_queries_and_keys(name: str) -> None:
    """All heads share one. It stands before or behind the place where families put heads in front of positions."""
    family = FAMILIES[name]
    sgtm = SGTM(Partition.of(family.model(torch.float64), **family.units), joint=["norms"])
    model, batch = sgtm.partition.model, tokens(0)
    norms = [n for n in sgtm.frozen_joint if "self_attn" in n]
    found = {}
    for modes in (["retain", "forget", "default"], ["retain", "default", "default"]):
        codes = torch.tensor([[MODES.index(mode)] for mode in modes])
        for given in (modes, codes.expand(batch["input_ids"].shape)):
            model.zero_grad()
            found[modes[1], given is modes] = train(sgtm, given, batch)
    for name in norms:
        for second in ("forget", "default"):
            assert_close({name: found[second, True][name]}, {name: found[second, False][name]})
        model.zero_grad()
        of_second = train(sgtm, "default", rows_of(batch, [1]))[name] / 3  # of the mean over three rows
        difference = found["default", True][name] - found["forget", True][name]
        torch.testing.assert_close(difference, of_second, rtol=1e-4, atol=1e-7)  # some norm in fp32
        assert difference.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_in_other_precisions_is_that_of_homogeneous_batches(dtype: torch.dtype, tiny: Tiny) -> None:
    case = (tiny, "parameter_masking", all_joint(tiny))
    batch = tokens(rows=6)
    exact = sum_of_batches(case)

    def run(mode: object, rows: Sequence[int]) -> Gradients:
        sgtm = prepare(*case, dtype=torch.float32)
        with sgtm.batch(mode):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = sgtm.partition.model(**rows_of(batch, rows)).loss
            (len(rows) * loss).backward()
        return gradients(sgtm.partition.model)

    mixed = run(MIXED, range(6))
    apart = total([run(mode, [i for i in range(6) if MIXED[i] == mode]) for mode in MODES])

    def error(grads: Gradients) -> float:
        return sum(float((grads[n].double() - exact[n]).square().sum()) for n in exact) ** 0.5

    assert all(grad.dtype == torch.float32 for grad in mixed.values())
    assert 0 < error(mixed) <= 2 * error(apart)


# ---- Checkpointing and compilation


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")  # its new name is 5.23's
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("strategy", MAIN)
def test_activation_checkpointing_gives_the_same_gradients(reentrant: bool, strategy: str, tiny: Tiny) -> None:
    sgtm = prepare(tiny, strategy, all_joint(tiny))
    model = sgtm.partition.model.train()  # checkpointing is off in evaluation
    model.config.use_cache = False
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for modes in (positions(), ["forget", "retain", "default"]):
        model.zero_grad()
        assert_close(train(sgtm, modes, tokens()), alone((tiny, strategy, all_joint(tiny)), modes, tokens()))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("name", "backend"), [("gpt2", "eager"), pytest.param("llama", "aot_eager", marks=pytest.mark.slow)]
)
def test_one_compiled_model_follows_the_mode(name: str, backend: str) -> None:
    case = (TINY[name], "parameter_masking", ("embeddings", "norms"))
    sgtm = prepare(*case)
    model = sgtm.partition.model
    compiled = torch.compile(model, backend=backend)
    modes = ["default", positions(), "retain", positions(1), "default"]
    for mode in modes:
        model.zero_grad()
        with sgtm.batch(mode):
            compiled(**tokens()).loss.backward()
        assert_close(gradients(model), alone(case, mode, tokens()))


# ---- What is refused, and what is left behind


def assert_untouched(sgtm: SGTM, intact: Tensor) -> None:
    assert sgtm.mode == "default"
    assert not any("forward" in vars(module) for module in sgtm.partition.model.modules())
    assert torch.equal(logits(sgtm.partition.model), intact)
    assert not sgtm._in_batch


@pytest.mark.parametrize("hold", ["batch", "forward"])
@pytest.mark.parametrize(
    ("mode", "rule"),
    [
        (torch.tensor([0, 1, 3]), r"mode has the code 3; the codes of \['default', 'retain', 'forget'\] are 0 to 2"),
        (torch.tensor([[0, 1, -1]]), "mode has the code -1"),
        (torch.tensor([0.0, 1.0, 2.0]), "give codes of type torch.long"),
        (torch.tensor([True, False, True]), "give codes of type torch.long"),
        (torch.tensor([1j, 0, 0]), "give codes of type torch.long"),
        (torch.zeros(3, 8, 1, dtype=torch.long), r"mode of shape \(3, 8, 1\)"),
        (torch.tensor(1), r"mode of shape \(\)"),
        (torch.zeros(0, dtype=torch.long), r"mode of shape \(0,\)"),
        (torch.zeros(3, 0, dtype=torch.long), r"mode of shape \(3, 0\)"),
        (["retain", "forgte", "forget"], "mode='forgte' is none of"),
        ([], "names no mode"),
    ],
    ids=str,
)
def test_modes_that_are_none(mode: object, rule: str, hold: str) -> None:
    sgtm = prepare(TINY["llama"])
    intact = logits(sgtm.partition.model)
    with pytest.raises(ValueError, match=rule), getattr(sgtm, hold)(mode):
        pytest.fail("entered")
    with pytest.raises(ValueError, match=rule):
        sgtm.mask_gradients(mode)
    assert_untouched(sgtm, intact)


@pytest.mark.parametrize(
    ("mode", "rows"),
    [
        (["retain", "forget"], 3),
        (["retain", "forget", "forget", "default"], 3),
        (["forget"], 3),
        (["forget", "retain"], 1),
        (["forget", "retain"], 4),
        (torch.zeros(2, 8, dtype=torch.long), 3),
        (torch.zeros(1, 8, dtype=torch.long), 3),
        (torch.ones(3, 8, dtype=torch.long), 1),
        (torch.full((3, 5), 2), 3),
        (torch.full((3, 16), 2), 3),
        (torch.full((1, 24), 2), 3),
        (torch.full((8, 3), 2), 3),
    ],
    ids=lambda value: str(tuple(value.shape) if isinstance(value, Tensor) else value),
)
def test_modes_that_do_not_fit_the_batch(mode: object, rows: int, sgtm: SGTM) -> None:
    intact = logits(sgtm.partition.model)
    with pytest.raises(ValueError, match=r"modes of shape .* do not fit"), sgtm.batch(mode):
        sgtm.partition.model(input_ids=tokens(rows=rows)["input_ids"])
    assert_untouched(sgtm, intact)


def test_every_strategy_finds_modes_that_do_not_fit(case: Case) -> None:
    sgtm = prepare(*case)
    for mode in (["forget"] * 2, ["forget"] * 4, torch.full((3, 5), FORGET)):
        with pytest.raises(ValueError, match=r"modes of shape .* do not fit"), sgtm.forward(mode):
            sgtm.partition.model(input_ids=tokens()["input_ids"])


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


def test_exception_inside_a_block(sgtm: SGTM) -> None:
    model = sgtm.partition.model
    intact, earlier = logits(model), train(sgtm, "default", tokens(1))
    with pytest.raises(KeyboardInterrupt), sgtm.batch(positions()):
        interrupt(model(**tokens()))
    assert_untouched(sgtm, intact)
    assert_close(gradients(model), earlier, rtol=0, atol=0)


def test_forward_of_ones_own_is_kept(sgtm: SGTM) -> None:
    module = sgtm.frozen[0].module
    module.forward = own = lambda x, forward=module.forward: forward(x)
    expected = alone((_tiny_of(sgtm), "parameter_masking", all_joint(_tiny_of(sgtm))), positions(), tokens())
    assert_close(train(sgtm, positions(), tokens()), expected)
    assert module.forward is own


def _tiny_of(sgtm: SGTM) -> Tiny:
    return TINY[sgtm.partition.model.config.model_type]


def test_evaluation_inside_a_batch(sgtm: SGTM) -> None:
    model = sgtm.partition.model
    plain = train(sgtm, positions(), tokens())
    with sgtm.forward("retain"):
        retained = logits(model)
    model.zero_grad()
    with sgtm.batch(positions()):
        loss = model(**tokens()).loss
        with sgtm.forward("retain"):
            assert torch.equal(logits(model), retained)
            with sgtm.forward(["retain"] * 3):  # frozen modules are set apart once, not twice
                assert torch.equal(logits(model), retained)
            with sgtm.forward(positions(5)), torch.no_grad():
                model(**tokens())
        loss.backward()
    assert_close(gradients(model), plain, rtol=0, atol=0)


@pytest.mark.parametrize("inner", ["retain", ["retain"] * 3, torch.zeros(3, 8, dtype=torch.long)], ids=str)
def test_batches_do_not_nest(inner: object, sgtm: SGTM) -> None:
    intact = logits(sgtm.partition.model)
    with sgtm.batch(positions()):
        with pytest.raises(RuntimeError, match=r"inside sgtm.batch\(modes of shape \(3, 8\)\)"), sgtm.batch(inner):
            pytest.fail("entered")
        assert isinstance(sgtm.mode, Tensor)
    assert_untouched(sgtm, intact)


def test_mask_gradients_has_nothing_to_do(sgtm: SGTM) -> None:
    plain = train(sgtm, positions(), tokens())
    sgtm.mask_gradients(positions())
    sgtm.mask_gradients(["retain"] * 3)
    assert_close(gradients(sgtm.partition.model), plain, rtol=0, atol=0)


def generate(model: nn.Module) -> Tensor:
    ids = tokens()["input_ids"]
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)


def test_plain_use_afterwards_is_untouched(sgtm: SGTM) -> None:
    model = sgtm.partition.model
    intact, generated = logits(model), generate(model)
    plain = train(sgtm, "default", tokens())
    train(sgtm, positions(), tokens())
    train(sgtm, ["forget", "retain", "default"], tokens())
    assert_untouched(sgtm, intact)
    assert torch.equal(generate(model), generated)
    model.zero_grad()
    model(**tokens()).loss.backward()
    assert_close(gradients(model), plain, rtol=0, atol=0)


def test_generation_with_a_mode_for_each_example(sgtm: SGTM) -> None:
    model = sgtm.partition.model
    with sgtm.forward("retain"):
        retained = generate(model)
    with sgtm.forward(["retain", "default", "retain"]):
        mixed = generate(model)
    assert torch.equal(mixed[[0, 2]], retained[[0, 2]])
    assert torch.equal(mixed[1], generate(model)[1])


def test_mode_argument_takes_modes_of_examples_and_positions() -> None:
    tiny = TINY["gpt_neo_sgtm"]
    for modes in (["forget", "retain", "default"], positions()):
        sgtm = prepare(tiny, joint=all_joint(tiny))
        model = sgtm.partition.model
        model(**tokens(), sgtm_mode=modes).loss.backward()
        model.adjust_gradients(sgtm_mode=modes)
        assert_close(gradients(model), alone((tiny, "parameter_masking", all_joint(tiny)), modes, tokens()))


def test_strategies_are_the_ones_here() -> None:
    assert set(STRATEGIES) == set(FROZEN)


@pytest.mark.parametrize("by", ["examples", "positions"])
def test_a_loss_in_chunks_masks_the_head(case: Case, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied or not; its gradients are fp32's."""
    monkeypatch.setattr("sgtm.model.chunked_loss._ENTRIES", 5 * 24)
    tiny, strategy, joint = case
    mode = torch.tensor([2, 1, 0]) if by == "examples" else positions()
    expected = alone(case, mode, tokens())
    sgtm = prepare(tiny, strategy, joint)
    model = sgtm.partition.model
    shapes, linear = [], nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *args: shapes.append(len(args[0])) or linear(*args))
    with sgtm.batch(mode), chunked(model):
        model(**tokens()).loss.backward()
    assert shapes.count(5) == 4, "21 tokens predict, 5 at a time"
    assert_close(gradients(model), expected, rtol=1e-4, atol=1e-5)
    model.zero_grad()
    with chunked(model), sgtm.batch(mode):
        model(**tokens()).loss.backward()
    assert_close(gradients(model), expected, rtol=1e-4, atol=1e-5)


def test_weights_that_are_read_past_their_module_are_found() -> None:
    """As code does that knows nothing of modes (Liger's loss, say)."""
    tiny = TINY["llama"]
    sgtm = prepare(tiny, joint=all_joint(tiny))
    model, batch, modes = sgtm.partition.model, tokens(), torch.tensor([2, 1, 0])

    def train_past_the_head() -> None:
        with sgtm.batch(modes):
            hidden = model.model(input_ids=batch["input_ids"]).last_hidden_state
            (hidden @ model.lm_head.weight.t()).logsumexp(-1).mean().backward()

    for _ in range(2):  # the second time there are earlier gradients
        with pytest.raises(RuntimeError, match="got a gradient though the module was not called"):
            train_past_the_head()
    with sgtm.batch(modes):
        model(**batch).loss.backward()
