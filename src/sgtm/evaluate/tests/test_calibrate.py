"""The bias is what it should be, and nothing else changes."""

import copy

import pytest
import torch
from torch.nn import functional as F

from sgtm.config import CalibrateConfig
from sgtm.evaluate import calibrate
from sgtm.evaluate.calibrate import fit_bias
from sgtm.evaluate.generate import continue_text
from sgtm.evaluate.loss import evaluate_loss


@pytest.fixture
def rows(data):
    return {c: data.train.of(c, 40) for c in data.train.present}


def reference_bias(model, rows, weights, steps=300):
    """The minimum itself, by L-BFGS on all tokens."""
    cached = {}
    for category, of_category in rows.items():
        ids = [torch.tensor(r["input_ids"]) for r in of_category.data]
        with torch.no_grad():
            logits = [model(input_ids=i[None]).logits[0, :-1] for i in ids]
        cached[category] = torch.cat(logits), torch.cat([i[1:] for i in ids])
    bias = torch.zeros(300, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=steps, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = sum(weights[c] * F.cross_entropy(z + bias, y) for c, (z, y) in cached.items())
        value.backward()
        return value

    optimizer.step(loss)
    return lambda b: sum(weights[c] * F.cross_entropy(z + b, y).item() for c, (z, y) in cached.items()), bias.detach()


def test_prediction_less_what_is_there_is_the_gradient(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(8, 50)
    hidden, bias = torch.randn(37, 8, generator=generator), torch.randn(50, generator=generator, requires_grad=True)
    targets = torch.randint(50, (37,), generator=generator)
    expected = torch.autograd.grad(F.cross_entropy(head(hidden) + bias, targets), bias)[0]
    for entries in (1, 50 * 7, 10**6):
        monkeypatch.setattr("sgtm.model.chunked_loss._ENTRIES", entries)
        found = calibrate._mean_prediction(head, hidden, bias.detach()) - targets.bincount(minlength=50) / 37
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_predictions_follow_the_bias():
    """Exactly for one token; for several, most of the way."""
    generator = torch.Generator().manual_seed(0)
    z, shift = torch.randn(20, 30, generator=generator).double(), torch.randn(30, generator=generator).double()

    def share_missed(z):
        start, moved = z.softmax(-1).mean(0), (z + 0.1 * shift).softmax(-1).mean(0)
        return float((calibrate._moved(start, 0.1 * shift) - moved).abs().sum() / (start - moved).abs().sum())

    assert share_missed(z[:1]) < 1e-12
    assert share_missed(z) < 0.2


def test_a_sample_serves_several_steps(model, rows, monkeypatch):
    """With the same result, and as many fewer passes of the head."""
    calls, own, moved = [], calibrate._mean_prediction, calibrate._moved
    shifts = []
    monkeypatch.setattr(calibrate, "_mean_prediction", lambda *args: calls.append(1) or own(*args))
    monkeypatch.setattr(
        calibrate, "_moved", lambda p, shift: shifts.append(float(shift.abs().max())) or moved(p, shift)
    )
    losses = {}
    for reuse in (1, 8):
        calls.clear()
        shifts.clear()
        biases = [fit_bias(model, rows, CalibrateConfig(steps=200, tokens=1024, reuse=reuse), seed=s) for s in range(3)]
        assert len(calls) == 3 * 2 * 200 // reuse
        assert [shift > 0 for shift in shifts] == [
            step % reuse > 0 for _ in range(3) for step in range(200) for _ in rows
        ]
        losses[reuse] = [evaluate_loss(model, rows["retain"], bias=bias).mean for bias in biases]
    unfitted = evaluate_loss(model, rows["retain"]).mean
    assert unfitted - max(losses[1]) > 0.1
    assert abs(sum(losses[1]) - sum(losses[8])) / 3 < 0.01 * (unfitted - max(losses[1]))


def test_the_bias_nearly_minimises_the_weighted_loss(model, rows):
    config = CalibrateConfig(steps=400, learning_rate=0.1, retain_weight=3.0, tokens=4096)
    loss, best = reference_bias(model, rows, {"forget": 1.0, "retain": 3.0})
    bias = fit_bias(model, rows, config)
    start, reached, optimum = loss(torch.zeros(300)), loss(bias), loss(best)
    assert start - optimum > 1.0
    assert reached - optimum < 0.05 * (start - optimum)


def test_calibration_takes_a_spike_away(model, rows, data):
    """Logits that say "never" to a common token are mended by one bias."""
    config = CalibrateConfig(steps=300, learning_rate=0.1, tokens=1024)
    head = model.get_output_embeddings()
    ids = torch.tensor([i for r in data.test.data for i in r["input_ids"]])
    spoilt = ids.bincount(minlength=300).argmax()
    head.register_forward_hook(lambda m, a, out: out - 8.0 * F.one_hot(spoilt, 300))
    before = evaluate_loss(model, data.test.of("retain")).mean
    bias = fit_bias(model, rows, config)
    after = evaluate_loss(model, data.test.of("retain"), bias=bias).mean
    assert after < before - 0.3
    assert bias[spoilt] > 3


def test_only_the_bias_is_fitted_and_it_is_that_of_the_ablated_model(model, sgtm, rows):
    config = CalibrateConfig(steps=30, tokens=256)
    before = copy.deepcopy(model.state_dict())
    bias = fit_bias(model, rows, config, sgtm, seed=4)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(fit_bias(model, rows, config, sgtm, seed=4), bias)
    assert not torch.equal(fit_bias(model, rows, config, sgtm, seed=5), bias)
    sgtm.partition.ablate()
    torch.testing.assert_close(fit_bias(model, rows, config, seed=4), bias, rtol=1e-3, atol=1e-4)


def test_kernels_may_round_by_the_size_of_a_batch(model, rows):
    def rounded(module, args, output):
        output.last_hidden_state *= 1 + 0.01 * len(output.last_hidden_state)

    model.base_model.register_forward_hook(rounded)
    fit_bias(model, rows, CalibrateConfig(steps=1))


def test_a_family_that_caps_its_logits_is_refused(model, rows):
    model.register_forward_hook(lambda m, a, out: setattr(out, "logits", out.logits.tanh()))
    with pytest.raises(ValueError, match="not its head's output"):
        fit_bias(model, rows, CalibrateConfig(steps=1))


def test_generation_speaks_as_the_ablated_model_does(model, sgtm, data):
    prompt = "The cat saw"
    bias = torch.randn(300, generator=torch.Generator().manual_seed(0)) * 2
    said = continue_text(model, data.tokenizer, prompt, sgtm, new_tokens=8)
    biased = continue_text(model, data.tokenizer, prompt, sgtm, bias, new_tokens=8)
    assert biased != said
    sgtm.partition.ablate()
    assert continue_text(model, data.tokenizer, prompt, new_tokens=8) == said
    assert continue_text(model, data.tokenizer, prompt, bias=bias, new_tokens=8) == biased
