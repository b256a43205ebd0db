"""What attacks begin with: the three kinds of removed units, and the data."""

import shutil

import pytest
import torch

from sgtm.config import ConfigError, DataConfig
from sgtm.model.export import without_units
from sgtm.model.gpt_neo import GPTNeoForCausalLMSGTM, GPTNeoSGTMConfig
from sgtm.train.opening import Opened, open_model
from sgtm.train.start import check_fits, data_for, domain_of, match, start_model
from sgtm.train.tests.conftest import masked, tiny_model

STEPS = 8
SIZES = {"vocab_size": 300, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 16}


def opened(model=None):
    model = model or tiny_model()
    for p in model.parameters():
        p.data += 0.01  # biases too: no zero by accident
    return Opened(None, model, masked(model), None, None)


def tokens():
    return torch.randint(300, (8, 16), generator=torch.Generator().manual_seed(1))


def train(model) -> None:
    """AdamW with weight decay, on anything."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()


def logits(model):
    with torch.no_grad():
        return model.eval()(tokens()).logits


@pytest.mark.parametrize("units", ["absent", "zero", "init"])
def test_all_kinds_compute_what_the_ablated_model_computes(units):
    found = opened()
    with found.sgtm.forward("retain"):
        expected = logits(found.model)
    intact = logits(found.model)
    removed = logits(start_model(found, units).cpu())
    torch.testing.assert_close(removed, expected, rtol=1e-5, atol=1e-6)  # sums in another order where units are cut
    assert not torch.allclose(removed, intact, atol=1e-3)


@pytest.mark.parametrize("units", ["absent", "zero", "init"])
def test_a_bias_of_the_head_stays(units):
    """The paper's models have one."""
    model = GPTNeoForCausalLMSGTM(GPTNeoSGTMConfig(**SIZES, retain_mlp_dim=48, retain_attn_heads=3))
    for p in model.parameters():
        p.data += 0.01
    model.lm_head.bias.data.normal_()
    with model.sgtm.forward("retain"):
        expected = logits(model)
    started = start_model(Opened(None, model, model.sgtm, None, None), units).cpu()
    torch.testing.assert_close(logits(started), expected, rtol=1e-5, atol=1e-5)
    assert started.lm_head.bias.requires_grad
    train(started)


def test_a_model_of_the_papers_class_without_units_is_taken_as_it_is(tmp_path):
    """What RMU leaves of an ordinary model with a bias of the head."""
    model = GPTNeoForCausalLMSGTM(GPTNeoSGTMConfig(**SIZES, masked_layers=[]))
    model.lm_head.bias.data.fill_(1.0)
    model.save_pretrained(tmp_path / "model")
    found = open_model(tmp_path)
    assert found.sgtm is None
    assert torch.equal(logits(start_model(found, "absent").cpu()), logits(model))


def test_zero_units_have_no_gradient_and_stay_dead():
    found = opened()
    model = start_model(found, "zero").cpu()
    train(model)
    assert all(torch.equal(s.of(s.param), torch.zeros_like(s.of(s.param))) for s in found.sgtm.partition.forget)
    assert all(not s.of(s.param.grad).any() for s in found.sgtm.partition.forget)
    assert all(s.of(s.param.grad).any() for s in found.sgtm.partition.retain)


def test_init_units_learn():
    found = opened()
    model = start_model(found, "init").cpu()
    out = [s for s in found.sgtm.partition.forget if s.site.endswith(".out")]
    assert not any(s.of(s.param).any() for s in out)
    train(model)
    assert all(s.of(s.param).any() for s in out)


def test_fresh_units_follow_from_the_seed():
    first, again, other = (
        torch.cat([p.flatten() for p in start_model(opened(), "init", seed=s).cpu().parameters()]) for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_absent_units_are_gone():
    found = opened()
    before, hidden = found.model.num_parameters(), found.model.config.hidden_size
    smaller = start_model(found, "absent").cpu()
    assert smaller.config.intermediate_size == 4 * hidden - 16
    # 16 neurons of each of 2 layers: a row, a bias and a column each. GPT-Neo's heads cannot be cut: they are zero.
    assert smaller.num_parameters() == before - 2 * 16 * (2 * hidden + 1)
    assert without_units(found.model, found.sgtm).num_parameters() == smaller.num_parameters()
    assert found.model.num_parameters() == before  # the opened one stays as it was


@pytest.mark.parametrize("units", ["absent", "zero", "init"])
def test_models_without_forget_units_are_taken_as_they_are(units):
    plain = Opened("plain", tiny_model(), None, None, None)
    before = torch.cat([p.flatten() for p in plain.model.parameters()])
    assert torch.equal(torch.cat([p.flatten() for p in start_model(plain, units).cpu().parameters()]), before)
    with pytest.raises(ConfigError, match="no forget units, so without=cyber"):
        start_model(plain, units, ["cyber"])


def test_an_unknown_domain_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'forget'"):
        start_model(opened(), "absent", ["forgot"])


def test_data_must_be_given_and_fit(prepared, data, finished_run):
    model = tiny_model(vocab_size=len(data.tokenizer))
    plain = Opened("plain", model, None, None, data.tokenizer)
    with pytest.raises(ConfigError, match="give --data"):
        data_for(plain, DataConfig())
    found = data_for(plain, DataConfig(), str(finished_run))  # that of the run it is compared with
    assert len(found.train) == len(data.train)
    found = data_for(plain, DataConfig(str(prepared)))
    assert domain_of(found, "") == "forget"
    with pytest.raises(ConfigError, match="did you mean 'forget'"):
        domain_of(found, "forgot")
    with pytest.raises(ConfigError, match="vocabulary entries"):
        check_fits(Opened("small", tiny_model(vocab_size=40), None, None, None), data)


def test_a_matched_start_is_the_checkpoint_nearest_in_retain_loss(prepared, finished_run, tmp_path):
    """Like a checkpoint of its own: nothing can be nearer than that, and the last model is not it."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    wanted = run / "checkpoints" / "checkpoint-12"
    shutil.copytree(run, tmp_path / "like")
    shutil.rmtree(tmp_path / "like" / "model")
    shutil.copytree(wanted, tmp_path / "like" / "model")
    for start in (run, tmp_path):  # a run, and a folder of runs
        found = match(start, tmp_path / "like", DataConfig(), None, 1e-6, 64)
        assert (found.step, found.loss) == (12, found.wanted)
    found = match(run, tmp_path / "like", DataConfig(), None, 1e-6, 64)
    assert found.path == wanted
    shutil.rmtree(wanted)
    with pytest.raises(ConfigError, match=r"the nearest is .*keep more of them"):
        match(run, tmp_path / "like", DataConfig(), None, 1e-6, 64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no run"):
        match(tmp_path / "empty", tmp_path / "like", DataConfig(), None, 1e-6, 64)
