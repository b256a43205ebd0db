"""Training on a GPU: what a step waits for, precision, resuming."""

import traceback
import warnings
from pathlib import Path

import pytest
import torch

from sgtm.config import MODES
from sgtm.model.attention import use_attention
from sgtm.train.run import train
from sgtm.train.tests.conftest import tiny_model
from sgtm.train.tests.test_run import config_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
ON_GPU = {"use_cpu": False, "bf16": True, "dataloader_pin_memory": True, "optim": "adamw_torch_fused"}
# transformers looks in every forward pass whether rows are packed.
_ALLOWED = ("find_packed_sequence_indices",)


@pytest.mark.parametrize("update", ["gradient", "strict", "per_block"])
def test_no_step_waits_for_the_gpu(make_trainer, update):
    """torch itself tells, from the third step on; what is allowed is named above."""
    model = tiny_model()
    use_attention(model)  # as `sgtm train` does
    trainer = make_trainer(
        model=model,
        max_steps=6,
        gradient_accumulation_steps=2,
        trainer_update=update,
        trainer_forget_lr_scale=0.1,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        accelerator_config={"non_blocking": True},
        **ON_GPU,
    )
    seen, step = [], trainer.training_step

    def training_step(*args, **kwargs):
        if trainer.state.global_step == 2:
            torch.cuda.set_sync_debug_mode("warn")
        if trainer.state.global_step == 5:
            torch.cuda.set_sync_debug_mode("default")
        return step(*args, **kwargs)

    def note(message, *_, **__):
        frames = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_stack()]
        if "prototype" not in str(message) and not any(name in frame for frame in frames for name in _ALLOWED):
            seen.append(" < ".join(frames[-4:-30:-1]))

    trainer.training_step = training_step
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        try:
            trainer.train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not seen, "\n".join(sorted(set(seen)))


@pytest.mark.parametrize("by", ["modes", "positions"])
def test_losses_fall_and_strict_updates_are_exact(make_trainer, rows, by):
    """In bf16; forget batches alone leave every retain weight alone, bit for bit."""
    forget = MODES.index("forget")
    examples = [dict(row) | {"mode": forget} for row in rows if row["mode"] == forget]
    if by == "positions":
        examples = [row | {"mode": [forget] * len(row["input_ids"])} for row in examples]
    trainer = make_trainer(train_dataset=examples, max_steps=30, trainer_update="strict", logging_steps=5, **ON_GPU)
    before = tiny_model().cuda().state_dict()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    for s in trainer.sgtm.partition.retain:
        assert torch.equal(s.of(s.param), s.of(before[s.name])), s
    assert any(not torch.equal(s.of(s.param), s.of(before[s.name])) for s in trainer.sgtm.partition.forget)


def test_a_killed_run_goes_on_where_it_was(prepared, tmp_path, monkeypatch, capsys):
    """In bf16; a GPU sums in any order, so what follows is near and not the same."""
    config = config_of(prepared, train__save_every=2, train__precision="bf16", evaluate__every=2)
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("sgtm.train.run.Evaluation.__call__", _die_at_step_4)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "killed")
    again = train(config, tmp_path / "killed", resume=True)
    assert "checkpoint-" in capsys.readouterr().out, "it does not begin anew"
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert p.is_cuda
        assert (p - q).norm() <= 1e-2 * p.norm()


def _die_at_step_4(evaluation, step):
    if step == 4:
        raise KeyboardInterrupt
    return {}
