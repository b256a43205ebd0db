"""``gelu_new`` by one operator."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.activations import NewGELUActivation, SiLUActivation

from sgtm.model.activation import FusedGELU, use_activation
from sgtm.model.attention import use_attention


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=29, n_embd=16, n_layer=2, n_head=2, n_positions=16)).eval()


def test_it_is_the_same_function_with_the_same_gradient():
    stock, fused = NewGELUActivation(), FusedGELU()
    for x in (torch.linspace(-9, 9, 2001, dtype=torch.float64), torch.linspace(-9, 9, 2001)):
        x.requires_grad_()
        values = [act(x) for act in (stock, fused)]
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v in values), rtol=1e-5, atol=1e-5)


def test_every_one_of_a_model_is_exchanged_and_eager_gives_back_the_librarys():
    model, ids = gpt2(), torch.arange(12)[None]
    before = model(ids).logits
    use_attention(model)
    assert {type(block.mlp.act) for block in model.transformer.h} == {FusedGELU}
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)
    use_attention(model, "eager")
    assert {type(block.mlp.act) for block in model.transformer.h} == {NewGELUActivation}
    use_activation(model)
    use_activation(model, fused=False)
    assert {type(block.mlp.act) for block in model.transformer.h} == {NewGELUActivation}


def test_a_name_that_is_refused_changes_nothing():
    model = gpt2()
    with pytest.raises(ValueError, match="'spda' is unknown"):
        use_attention(model, "spda")
    assert {type(block.mlp.act) for block in model.transformer.h} == {NewGELUActivation}


def test_other_activations_stay_as_they_are():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=29))
    use_activation(model)
    assert type(model.model.layers[0].mlp.act_fn) is SiLUActivation
