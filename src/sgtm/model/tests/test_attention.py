"""Every function of the table computes GPT-Neo's own attention: local windows, padding, caches, gradients."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sgtm.config import ConfigError, ModelConfig, PartitionConfig
from sgtm.model.attention import GPTNeoAttention, plain_config, use_attention
from sgtm.model.build import build_model
from sgtm.model.gpt_neo import GPTNeoForCausalLMSGTM, GPTNeoSGTMConfig
from sgtm.model.loading import load_checkpoint

WINDOW, LENGTH = 5, 16
CONFIG = {
    "vocab_size": 29,
    "hidden_size": 32,
    "num_layers": 4,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 2]],
    "max_position_embeddings": 32,
    "window_size": WINDOW,
    "initializer_range": 0.2,  # so that attention is not even
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def stock(**changes):
    torch.manual_seed(0)
    return GPTNeoForCausalLM(GPTNeoConfig(**{**CONFIG, **changes})).eval()


@pytest.fixture(params=[64, 3], ids=["whole", "in blocks"], autouse=True)
def block(request, monkeypatch):
    """Of queries; the sequences here are shorter than the block that is right for a processor."""
    monkeypatch.setattr("sgtm.model.attention._BLOCK", request.param)


def ours(**changes):
    model = stock(**changes)
    use_attention(model)
    return model


def ids(rows=3, length=LENGTH):
    return torch.randint(1, 29, (rows, length), generator=torch.Generator().manual_seed(1))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_window_matters_in_these_tests():
    assert not torch.allclose(stock()(ids()).logits, stock(window_size=LENGTH)(ids()).logits, atol=1e-2)


@pytest.mark.parametrize("length", [1, WINDOW, WINDOW + 1, LENGTH])
def test_losses_and_gradients_equal_eager(length):
    found = []
    for model in (stock(), ours()):
        model(input_ids=ids(length=length), labels=ids(length=length)).logits.square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    for expected, own in zip(*found, strict=True):
        close(own, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side):
    """The positions that are padding may hold anything, but no number that is none: its gradient would spread."""
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, slice(7) if side == "left" else slice(9, None)] = 0
    expected, found = (model(ids(), attention_mask=mask).logits for model in (stock(), ours()))
    assert found.isfinite().all()
    close(found[mask.bool()], expected[mask.bool()])


def test_a_given_mask_of_four_dimensions():
    """Blocks of a packed row, as booleans (what sdpa takes) and as numbers that are added (what eager takes)."""
    document = torch.arange(LENGTH) // 6
    allowed = (document[:, None] == document) & torch.ones(LENGTH, LENGTH).tril().bool()
    added = torch.zeros(LENGTH, LENGTH).masked_fill(~allowed, torch.finfo(torch.float32).min)
    expected = stock()(ids(1), attention_mask=added[None, None]).logits
    for mask in (allowed, added):
        close(ours()(ids(1), attention_mask=mask[None, None]).logits, expected)


def test_a_cache_in_steps_of_any_length():
    whole, model, cache, found = stock()(ids()).logits, ours(), None, []
    for part in ids().split([3, 1, 7, 1, 4], 1):
        out = model(part, use_cache=True, **({} if cache is None else _cached(model, cache)))
        cache = out.to_tuple()[1]
        found.append(out.logits)
    close(torch.cat(found, 1), whole)


def _cached(model, cache):
    """The keyword was renamed on the way to transformers 5.24."""
    import inspect

    name = "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
    return {name: cache}


@pytest.mark.parametrize("beams", [1, 2])
def test_generation(beams):
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[0, :4] = 0
    settings = {"max_new_tokens": 10, "do_sample": False, "num_beams": beams, "attention_mask": mask, "pad_token_id": 0}
    expected, found = (model.generate(ids(), **settings) for model in (stock(), ours()))
    assert torch.equal(found, expected)


def test_blocks_see_no_more_keys_than_they_may(monkeypatch):
    """A window of 5 and blocks of 3 queries: 3, then 6, then 7 keys."""
    monkeypatch.setattr("sgtm.model.attention._BLOCK", 3)
    seen, sdpa = [], ALL_ATTENTION_FUNCTIONS["sdpa"]

    def counted(module, query, key, *args, **kwargs):
        seen.append((module.attention_type, query.shape[2], key.shape[2]))
        return sdpa(module, query, key, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", counted)
    ours()(ids())
    assert seen[:6] == [("global", 3, 3 * i) for i in range(1, 6)] + [("global", 1, 16)]
    assert seen[6:12] == [("local", 3, 3), ("local", 3, 6), *[("local", 3, 7)] * 3, ("local", 1, 5)]


@pytest.mark.parametrize("whole", [True, False], ids=["a bf16 model", "autocast"])
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "an added mask"])
def test_training_in_half_precision_attends_in_fp32(monkeypatch, whole, masked):
    """The processor's kernels are faster so; without a gradient they stay what they are."""
    seen, sdpa = [], ALL_ATTENTION_FUNCTIONS["sdpa"]

    def noted(module, query, key, value, mask, **how):
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return sdpa(module, query, key, value, mask, **how)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", noted)
    mask = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -1e9)
    mask[..., 9:, 2] = -1e9
    exact, model = stock(), ours()
    if whole:
        model.bfloat16()
    given = {"input_ids": ids(), "labels": ids()}
    exact(**given, **({"attention_mask": mask} if masked else {})).loss.backward()
    if masked:
        given["attention_mask"] = mask.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        model(**given).loss.backward()
        assert set(seen) == {(torch.float32, False)}
        with torch.no_grad():
            model(**given)
    assert seen[-1] == (torch.bfloat16, not whole)
    expected, own = (torch.cat([p.grad.flatten().float() for p in m.parameters()]) for m in (exact, model))
    assert torch.cosine_similarity(expected, own, 0) > 0.99


def test_dropout_is_of_training_alone():
    model = ours(attention_dropout=0.5)
    assert torch.equal(model(ids()).logits, model(ids()).logits)
    model.train()
    assert not torch.equal(model(ids()).logits, model(ids()).logits)


def test_eager_stays_the_librarys():
    model = ours()
    use_attention(model, "eager")
    assert torch.equal(model(ids()).logits, stock()(ids()).logits)
    assert len(model(ids(), output_attentions=True).attentions) == 4


def test_weights_that_nothing_makes_are_refused():
    with pytest.raises(ValueError, match="sdpa makes no attention weights"):
        ours()(ids(), output_attentions=True)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'spda' is unknown; use one of eager, "):
        use_attention(stock(), "spda")


def test_flash_attention_is_told_the_window(monkeypatch):
    """The library's own flash attention of GPT-Neo forgets it."""
    told = []

    def flash(module, query, key, value, attention_mask, sliding_window=None, **kwargs):
        told.append((sliding_window, kwargs["scaling"]))
        return value.transpose(1, 2), None

    model = ours()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    model.config._attn_implementation = "flash_attention_2"
    model(ids())
    assert told == [(None, 1.0), (WINDOW, 1.0)] * 2


def test_flex_blocks_hold_the_window_and_are_made_once():
    causal = create_block_mask(lambda b, h, q, k: q + 4 >= k, 3, None, 12, 16, device="cpu")
    layers = [block.attn.attention for block in ours().transformer.h if block.attn.attention_type == "local"]
    first, second = (layer._windowed(causal, 12, 16, torch.device("cpu")) for layer in layers)
    assert first is second
    queries, keys = torch.arange(12)[:, None] + 4, torch.arange(16)
    seen = first.mask_mod(torch.tensor(0), torch.tensor(0), torch.arange(12)[:, None], keys)
    assert torch.equal(seen, (queries >= keys) & (queries - keys < WINDOW))


def test_the_compatibility_classes_have_it():
    config = GPTNeoSGTMConfig(**CONFIG, retain_mlp_dim=96, retain_attn_heads=3)
    torch.manual_seed(0)
    model = GPTNeoForCausalLMSGTM(config).eval()
    assert model.config._attn_implementation == "sdpa"
    assert {type(b.attn.attention) for b in model.transformer.h} == {GPTNeoAttention}
    close(model(ids()).logits, stock()(ids()).logits)
    model.set_attn_implementation("eager")
    assert torch.equal(model(ids()).logits, stock()(ids()).logits)


def test_what_is_built_and_loaded_uses_it(tmp_path):
    built, _ = build_model(
        ModelConfig(config={"model_type": "gpt_neo", **CONFIG}), PartitionConfig(neurons=8), None, None
    )
    assert built.config._attn_implementation == "sdpa"
    built.save_pretrained(tmp_path)
    assert "sdpa" not in (tmp_path / "config.json").read_text()
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path).transformer.h[0].attn.attention) is not GPTNeoAttention
    assert load_checkpoint(tmp_path, "").config._attn_implementation == "sdpa"


def test_a_model_of_the_same_configuration_stays_as_it_is():
    """A mask for sdpa is one of booleans, which eager would add."""
    config = GPTNeoConfig(**CONFIG)
    first, second = GPTNeoForCausalLM(config).eval(), GPTNeoForCausalLM(config).eval()
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, :7] = 0
    before = second(ids(), attention_mask=mask).logits
    use_attention(first)
    assert second.config._attn_implementation == "eager"
    assert torch.equal(second(ids(), attention_mask=mask).logits, before)
    assert first.transformer.config is first.config


def test_a_stock_model_can_be_built_of_its_configuration():
    config = plain_config(ours())
    assert GPTNeoForCausalLM(config).config._attn_implementation == "eager"
    assert config.window_size == WINDOW


def test_a_configuration_that_asks_for_weights_stays_eager():
    model = stock(output_attentions=True)
    use_attention(model)
    assert len(model(ids()).attentions) == 4


def test_what_a_family_cannot_do_is_refused():
    model = FalconForCausalLM(FalconConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=4, vocab_size=29))
    for name in ("eager", "spda"):
        with pytest.raises(ValueError, match=r"cannot compute its attention by eager|'spda' is unknown"):
            use_attention(model, name)


def test_a_run_is_loaded_with_the_attention_that_it_asks_for(tmp_path, capsys):
    stock().save_pretrained(tmp_path)
    assert load_checkpoint(tmp_path, "", "eager").config._attn_implementation == "eager"
    assert load_checkpoint(tmp_path, "", attn_implementation="eager").config._attn_implementation == "eager"
    assert load_checkpoint(tmp_path, "", "elsewhere").config._attn_implementation == "sdpa"
    assert "is computed without attention=elsewhere" in capsys.readouterr().out


def test_other_families_keep_theirs_unless_told():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=29))
    before = model.config._attn_implementation
    use_attention(model)
    assert model.config._attn_implementation == before
    use_attention(model, "eager")
    assert model.config._attn_implementation == "eager"


def test_a_configured_name_is_checked():
    config = ModelConfig(config={"model_type": "gpt_neo", **CONFIG}, attention="sdpaa")
    with pytest.raises(ConfigError, match=r"model.attention='sdpaa': .* unknown"):
        build_model(config, PartitionConfig(neurons=8), None, None)
