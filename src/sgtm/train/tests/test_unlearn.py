"""Unlearning: each objective is its equation, it reaches what it is asked to, and what it writes is a checkpoint."""

import copy
import math

import pytest
import torch
import yaml
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoConfig

from sgtm.cli import main
from sgtm.config import ConfigError, RunError, UndoConfig, UnlearnConfig, load
from sgtm.model.gpt_neo import GPTNeoForCausalLMSGTM
from sgtm.plot.records import read_runs
from sgtm.plot.tradeoff import tradeoff
from sgtm.train.opening import open_model
from sgtm.train.run import train
from sgtm.train.tests.conftest import tiny_model
from sgtm.train.tests.test_run import config_of
from sgtm.train.unlearn import choose_parameters, globs_of, unlearn
from sgtm.train.unlearning import Batch, ascent, maxent, npo, rmu, undo

FAMILIES = {
    "gpt_neo": {"hidden_size": 16, "num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]]},
    "llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 4},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
}
FAST = ["--evaluate.rows", "20", "--calibrate.steps", "2", "--calibrate.rows", "8"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.disable_tqdm", True, raising=False)


@pytest.fixture(scope="module")
def ordinary(prepared, tmp_path_factory):
    """A run that has learned both categories."""
    folder = tmp_path_factory.mktemp("runs") / "none"
    train(config_of(prepared, method="none", train__steps=150, train__save_every=150, evaluate__rows=20), folder)
    return folder


def batch(seed: int, padded: int = 3) -> Batch:
    ids = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[1, -padded:] = -100
    return Batch(ids, labels)


def family(name: str) -> AutoModelForCausalLM:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=300, **FAMILIES[name], pad_token_id=None)
    return AutoModelForCausalLM.from_config(config).eval()


def log_p(model, b: Batch):
    """(batch, seq - 1) log p of each token, 0 at padding: written out."""
    logits = model(input_ids=b.input_ids).logits[:, :-1].float()
    said = logits.log_softmax(-1).gather(-1, b.input_ids[:, 1:, None])[..., 0]
    return said * (b.labels[:, 1:] != -100)


def mean_loss(model, b: Batch):
    return -log_p(model, b).sum() / (b.labels[:, 1:] != -100).sum()


# Equations


def test_rmu_is_its_equation():
    model, c = tiny_model(), UnlearnConfig(domains=["a", "b"], layer=0, steering=3.0, alpha=7.0)
    frozen = copy.deepcopy(model)
    loss = rmu.objective(model, lambda: frozen, c)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    forget, retain = batch(1), batch(2)

    def states(m, b):  # hidden_states[1] is what layer 0 gives
        return m(input_ids=b.input_ids, output_hidden_states=True).hidden_states[1][b.labels != -100]

    for domain in range(2):
        vector = rmu.control_vector(model, 3.0, 0, domain)
        expected = (states(model, forget) - vector).pow(2).mean()
        expected = expected + 7.0 * (states(model, retain) - states(frozen, retain)).pow(2).mean()
        torch.testing.assert_close(loss(forget, retain, domain), expected)


def test_control_vectors_are_seeded_and_of_the_asked_length():
    model = tiny_model()
    one, again = (rmu.control_vector(model, 20.0, 0, 0) for _ in range(2))
    assert torch.equal(one, again)
    assert float(one.norm()) == pytest.approx(20.0, rel=1e-6)
    assert (one >= 0).all()
    others = [rmu.control_vector(model, 20.0, *which) for which in ((0, 1), (1, 0), (1, 1))]
    assert not any(torch.equal(one, other) for other in others)


def test_the_others_are_their_equations():
    model, c = tiny_model(), UnlearnConfig(beta=0.3, retain_weight=2.0)
    frozen = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    forget, retain = batch(1), batch(2)
    kept = 2.0 * mean_loss(model, retain)
    made = {m: m.objective(model, lambda: frozen, c)(forget, retain, 0) for m in (ascent, maxent, npo)}
    torch.testing.assert_close(made[ascent], -mean_loss(model, forget) + kept)
    p = model(input_ids=forget.input_ids).logits[:, :-1].softmax(-1)[forget.labels[:, 1:] != -100]
    uniform = torch.full_like(p, 1 / 300)
    torch.testing.assert_close(made[maxent], (uniform * (uniform / p).log()).sum(-1).mean() + kept)
    ratio = (log_p(model, forget) - log_p(frozen, forget)).sum(-1)
    torch.testing.assert_close(made[npo], -2 / 0.3 * F.logsigmoid(-0.3 * ratio).mean() + kept)


def test_npo_begins_as_ascent():
    """Its gradient at the start, where the ratio is 1, is that of the rows' summed losses, whatever beta is."""
    model = tiny_model()
    frozen, forget, c = copy.deepcopy(model), batch(1), UnlearnConfig(beta=0.5, retain_weight=0.0)
    npo.objective(model, lambda: frozen, c)(forget, batch(2), 0).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    log_p(model, forget).sum(-1).mean().backward()
    for p, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-4, atol=1e-6)


def test_undo_damages_the_student_and_learns_from_the_teacher():
    model, c = tiny_model(), UnlearnConfig(undo=UndoConfig(noise=0.25))
    teacher = copy.deepcopy(model)
    loss = undo.objective(model, lambda: teacher, c)
    assert loss(batch(1), batch(2), 0).item() == pytest.approx(0, abs=1e-6)
    undo.add_noise(model, c)
    torch.manual_seed(0)
    fresh = type(model)(model.config)
    for p, was, new in zip(model.parameters(), teacher.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(p, 0.75 * was + 0.25 * new)
    told = batch(2).labels[:, 1:] != -100
    said, says = (m(input_ids=batch(2).input_ids).logits[:, :-1][told].log_softmax(-1) for m in (teacher, model))
    torch.testing.assert_close(loss(batch(1), batch(2), 0), (said.exp() * (said - says)).sum(-1).mean())


# What is reached


@pytest.mark.parametrize("name", FAMILIES)
def test_rmu_steers_any_family_and_stops_at_its_layer(name):
    model = family(name)
    found = choose_parameters(model, globs_of(model, UnlearnConfig(layer=1)))
    assert found
    assert all("mlp" in n and n.endswith("weight") and (".0." in n or ".1." in n) for n in found), list(found)
    loss = rmu.objective(model, lambda: copy.deepcopy(model), UnlearnConfig(domains=["forget"], layer=1))
    loss(batch(1), batch(2), 0).backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert found.keys() <= reached
    assert not any(".2." in n or "lm_head" in n or "embed_out" in n for n in reached), "layers behind are not computed"
    states = rmu.hidden_states(model, 1, batch(1))
    assert torch.equal(states, model(input_ids=batch(1).input_ids, output_hidden_states=True).hidden_states[2])


def test_in_a_split_model_parameters_are_found_by_name():
    settings = {"retain_mlp_dim": 48, "retain_attn_heads": 3, "masking_strategy": "parameter_masking"}
    config = GPTNeoConfig(vocab_size=300, **FAMILIES["gpt_neo"], **settings)
    model = GPTNeoForCausalLMSGTM(config)
    found = choose_parameters(model, globs_of(model, UnlearnConfig(layer=1)))
    layers = {n.split(".mlp.")[0] for n in found}
    assert layers == {"transformer.h.0", "transformer.h.1"}
    sizes = sum(p.numel() for p in found.values())
    assert sizes == 2 * 2 * 16 * 64, "input and output weights of two MLPs, both halves"


def test_globs_and_layers_that_match_nothing_are_refused():
    model = tiny_model()
    with pytest.raises(ConfigError, match=r"'\*\.mlp\.c_fx\.weight' matches none of the model's"):
        choose_parameters(model, ["*.mlp.c_fx.weight"])
    with pytest.raises(ConfigError, match="layer=2 is none of the model's 2; use 0 to 1"):
        rmu.layer_of(model, 2)
    assert rmu.layer_of(model, None) == 1, "the last one of a model with fewer than eight"


@pytest.mark.parametrize("method", ["rmu", "ascent", "maxent", "npo", "undo"])
def test_a_trained_model_unlearns(ordinary, tmp_path, method):
    """The domain's loss rises and what is retained stays nearly what it was; only what is chosen has moved."""
    settings = {"rmu": {"layer": 0, "learning_rate": 1e-2, "alpha": 10.0}, "npo": {"learning_rate": 2e-3}}
    changes = {"steps": 30, "learning_rate": 1e-3, **settings.get(method, {})}
    c = UnlearnConfig(method=method, undo=UndoConfig(noise=0.1, steps=60, learning_rate=5e-3), **changes)
    before = open_model(ordinary)
    losses = unlearn(ordinary, c, tmp_path / "out", report=lambda said: None)
    after = open_model(tmp_path / "out")
    (run,) = read_runs([tmp_path / "out"])
    first, was = (dict(run.curve(category, "intact"))[0] for category in ("forget", "retain"))
    assert losses["forget", "intact"].mean > first + 0.1
    assert losses["retain", "intact"].mean < was + 0.5
    assert losses["forget", "calibrated"].num_tokens == losses["forget", "intact"].num_tokens
    old, new = (dict(o.model.named_parameters()) for o in (before, after))
    moved = {n for n in old if not torch.equal(old[n], new[n])}
    chosen = choose_parameters(before.model, globs_of(before.model, c)).keys()
    assert moved == set(chosen) or (method == "undo" and moved == old.keys())
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")).__name__ == "GPTNeoForCausalLM"


def test_seeds_repeat_and_change_it(ordinary, tmp_path):
    c = {"steps": 3, "learning_rate": 1e-3, "layer": 0}
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        unlearn(ordinary, UnlearnConfig(**c, seed=seed), tmp_path / name, report=lambda said: None)
    a, b, other = (open_model(tmp_path / name).model.state_dict() for name in "abc")
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not all(torch.equal(a[n], other[n]) for n in a)


# The command


def test_the_command_and_its_figure(ordinary, tmp_path, capsys):
    main(["rmu", str(ordinary), "--out", str(tmp_path / "rmu"), "--steps", "4", "--layer", "1", *FAST])
    shown = capsys.readouterr().out
    assert "rmu updates 4 of the model's parameters" in shown
    settings = yaml.safe_load((tmp_path / "rmu" / "unlearn.yaml").read_text())
    assert settings["start"] == str(ordinary)
    assert settings["domains"] == ["forget"]
    with pytest.raises(SystemExit, match="exists already"):
        main(["rmu", str(ordinary), "--out", str(tmp_path / "rmu"), *FAST])
    tradeoff(read_runs([ordinary, tmp_path / "rmu"]), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    with pytest.raises(SystemExit, match=r"is no run, so its data is not known; give --data\.path"):
        main(["unlearn", str(tmp_path / "rmu"), "--method", "ascent", "--out", str(tmp_path / "more"), *FAST])
    data = str(load(ordinary / "config.yaml").data.path)
    more = [
        "unlearn",
        str(tmp_path / "rmu"),
        "--method",
        "ascent",
        "--data.path",
        data,
        "--out",
        str(tmp_path / "more"),
    ]
    main([*more, "--steps", "2", *FAST])
    assert (tmp_path / "more" / "model" / "tokenizer.json").is_file()


def test_mistakes_are_refused_before_anything_is_written(ordinary, tmp_path):
    for arguments, message in {
        ("--domains", "spanish"): "'spanish' is no domain",
        ("--retain", "adjacent"): "no training rows of 'adjacent'",
        ("--parameters", "*.nothing"): "matches none",
        ("--layer", "9"): "layer=9 is none",
        ("--steps", "0"): "steps=0 must be at least 1",
    }.items():
        with pytest.raises(SystemExit, match=message):
            main(["rmu", str(ordinary), "--out", str(tmp_path / "out"), *arguments, *FAST])
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_ends_it(ordinary, tmp_path, monkeypatch):
    monkeypatch.setattr(ascent, "token_losses", lambda model, b: log_p(model, b) * math.nan)
    with pytest.raises(RunError, match="the loss is nan at step 0"):
        unlearn(ordinary, UnlearnConfig(method="ascent"), tmp_path / "out", report=lambda said: None)
    assert not (tmp_path / "out" / "model").exists()
