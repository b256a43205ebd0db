"""SGTMTrainer: every example in its mode, in any batch, and exact resume."""

import copy
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, TrainerCallback, TrainingArguments

from sgtm.config import MODES, ConfigError
from sgtm.data.mixture import collate
from sgtm.model import chunked_loss
from sgtm.model.attention import use_attention
from sgtm.model.gpt_neo import GPTNeoForCausalLMSGTM, GPTNeoSGTMConfig
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition
from sgtm.train.optimizer import MuonAndAdamW
from sgtm.train.sampler import ModeSampler
from sgtm.train.tests.conftest import masked, tiny_model
from sgtm.train.tests.test_optimizer import Lion
from sgtm.train.trainer import ModesOnHost, SGTMTrainer

STRATEGIES = ["parameter_masking", "gradient_routing", "activation_masking"]


def first_gradients(trainer):
    """The gradients with which the first optimizer step is taken."""
    seen = {}
    trainer.create_optimizer()

    def keep(*_):
        if not seen:
            seen.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})

    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return seen


def reference_gradients(rows, indices, strategy):
    """Each example by itself, under its mode; summed and divided by all predicted tokens."""
    model = tiny_model()
    sgtm = masked(model, strategy)
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    tokens = 0
    for i in indices:
        batch = collate([rows[i]])
        with sgtm.batch(MODES[batch.pop("mode").item()]):
            count = batch["labels"].shape[1] - 1
            (model(**batch).loss * count).backward()
        tokens += count
        for n, p in model.named_parameters():
            total[n] += p.grad
        model.zero_grad()
    return {n: g / tokens for n, g in total.items()}


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("micro", "accumulate"), [(8, 1), (4, 2), (2, 4)])
def test_mixed_batches_give_the_sum_of_their_examples(make_trainer, rows, strategy, micro, accumulate, one_pass):
    trainer = make_trainer(
        strategy,
        trainer_one_pass=one_pass,
        max_steps=1,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0.0,
    )
    passes, compute_loss = [], trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: passes.append(1) or compute_loss(*args, **kwargs)
    got = first_gradients(trainer)
    assert len(passes) == accumulate if one_pass else len(passes) > accumulate
    indices = list(ModeSampler(rows.modes, 8, seed=trainer.args.seed))[:8]
    assert len({int(rows.modes[i]) for i in indices}) == 3, "the test needs all modes in one step"
    for name, expected in reference_gradients(rows, indices, strategy).items():
        torch.testing.assert_close(got[name], expected, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


# transformers asks in every forward pass of every model whether its rows are packed; SGTM looks at the codes of
# positions while they are the host's.
_ALLOWED = {("masking_utils.py", "find_packed_sequence_indices"), ("masking.py", "_codes")}


class Waits(TorchDispatchMode):
    """Notes what a host waits for its device for: to be told a value, to learn a shape, or to hand over a value that it
    has in memory that is not pinned."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "equal", "bincount")
    METHODS = ("tolist", "cpu", "numpy")  # no operations of their own where the device is the host
    CONSTANTS = ("tensor", "as_tensor", "asarray")  # of a device that is named

    def __init__(self, monkeypatch):
        super().__init__()
        self.seen = []
        for name in self.METHODS:
            monkeypatch.setattr(torch.Tensor, name, self.noted(getattr(torch.Tensor, name)))
        for name in self.CONSTANTS:
            monkeypatch.setattr(torch, name, self.noted(getattr(torch, name), of_device=True))

    def noted(self, own, of_device=False):
        def called(*args, **kwargs):
            if not of_device or kwargs.get("device") is not None:
                self.note(own.__name__)
            return own(*args, **kwargs)

        return called

    def note(self, name):
        callers = {(Path(frame.filename).name, frame.name) for frame in traceback.extract_stack()}
        self.seen += [name] if not callers & _ALLOWED else []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name.startswith(self.OPERATIONS) or any(i is not None and i.dtype == torch.bool for i in indices):
            self.note(name)
        return func(*args, **(kwargs or {}))


def test_what_counts_as_waiting(monkeypatch):
    with Waits(monkeypatch) as waits:
        a = torch.arange(3.0)
        a[a > 1] = 2.0
        a[a > 1], a.sum().item(), bool((a > 1).any()), a.nonzero(), a.unique(), a.tolist(), a.cpu(), a.numpy()
        torch.tensor(1.0), torch.as_tensor([1]), torch.zeros((), device=a.device)
        assert len(waits.seen) == 9, waits.seen
        torch.tensor(1.0, device=a.device), torch.as_tensor([1], device="cpu")
        assert waits.seen[9:] == ["tensor", "as_tensor"]


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("update", ["gradient", "strict", "per_block"])
def test_no_step_waits_for_its_device(make_trainer, rows, update, by_position, monkeypatch):
    """But for what is logged every so many steps; AdamW itself reads its step counts, which are the host's."""
    examples = [dict(row) for row in rows]
    for i, example in enumerate(examples if by_position else ()):
        example["mode"] = np.full(len(example["input_ids"]), i % 3)
    model = tiny_model()
    use_attention(model)  # as `sgtm train` does: the eager one of GPT-Neo makes a constant on the device in every layer
    trainer = make_trainer(
        model=model,
        train_dataset=examples,
        max_steps=4,
        gradient_accumulation_steps=2,
        trainer_update=update,
        trainer_forget_lr_scale=0.1,
        logging_strategy="no",
        logging_nan_inf_filter=False,  # Trainer's own; `sgtm train` sets it as well
    )
    counts, modes, step = [], [], trainer.training_step

    def training_step(model, inputs, *args):
        modes.append(inputs["mode"])
        return step(model, inputs, *args)

    def count(*_, **__):
        counts.append(len(waits.seen))

    monkeypatch.setattr(trainer, "training_step", training_step)
    watch = TrainerCallback()
    for event in ("step_begin", "pre_optimizer_step", "optimizer_step", "step_end"):
        setattr(watch, f"on_{event}", count)
    trainer.add_callback(watch)
    with Waits(monkeypatch) as waits:
        trainer.train()
    found = [stop - start for start, stop in zip(counts[::2], counts[1::2], strict=True)]
    assert len(found) == len(modes) == 8
    assert not any(found), waits.seen
    assert all(isinstance(mode, np.ndarray) for mode in modes)


def test_parts_of_a_batch_are_slices_of_it(make_trainer, rows):
    trainer = make_trainer()
    batch = next(iter(trainer.get_train_dataloader()))
    mode = batch.pop("mode")
    parts = list(trainer._parts(batch, mode))
    assert [name for name, _ in parts] == ["forget", "retain", "default"]
    assert sum(len(part["labels"]) for _, part in parts) == len(mode) == 8
    storage = batch["input_ids"].untyped_storage().data_ptr()
    assert all(part["input_ids"].untyped_storage().data_ptr() == storage for _, part in parts)


def test_rows_stand_by_mode_and_keep_their_order(rows):
    chosen = [rows[i] for i in list(ModeSampler(rows.modes, 8, seed=0))[:8]]
    plain, batch = collate(chosen), ModesOnHost(collate)(chosen)
    mode = plain["mode"].tolist()
    order = sorted(range(8), key=lambda i: [2, 1, 0].index(mode[i]))
    assert len(set(mode)) == 3
    assert batch["mode"].tolist() == [mode[i] for i in order]
    for key in ("input_ids", "labels"):
        assert torch.equal(batch[key], plain[key][order])


def test_what_is_no_row_stays(rows):
    chosen = [rows[i] for i in list(ModeSampler(rows.modes, 8, seed=0))[:8]]
    extra = {"names": list("abcdefgh"), "scale": torch.tensor(2.0), "places": torch.zeros(3, 8), "nothing": None}
    batch = ModesOnHost(lambda examples: collate(examples) | extra)(chosen)
    assert all(batch[key] is value for key, value in extra.items())
    assert ModesOnHost(lambda examples: torch.ones(2))(chosen).shape == (2,)


def test_a_collator_of_ones_own(make_trainer, rows):
    """Its modes may be any integers, and rows that come by another way may stand in any order."""

    def small(examples):
        batch = collate(examples)
        return batch | {"mode": batch["mode"].to(torch.int8)}

    expected = first_gradients(make_trainer(max_steps=1, max_grad_norm=0.0))
    got = first_gradients(make_trainer(max_steps=1, max_grad_norm=0.0, trainer_data_collator=small))
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name


class Iterated(torch.utils.data.IterableDataset):
    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return iter(self.examples)


@pytest.mark.parametrize("given", ["all in one process", "torch's IterableDataset"])
def test_where_one_process_reads_for_all_modes_are_tensors(make_trainer, rows, given):
    """In the order in which they come; the gradients are those of the same rows by the other way."""
    order = list(ModeSampler(rows.modes, 8, seed=42))[:8]
    examples = [dict(rows[i]) for i in order]
    whole = make_trainer(max_steps=1, max_grad_norm=0.0, train_dataset=examples)
    iterated = given != "all in one process"
    settings = {} if iterated else {"accelerator_config": {"dispatch_batches": True}}
    data = Iterated(examples) if iterated else examples
    trainer = make_trainer(max_steps=1, max_grad_norm=0.0, train_dataset=data, **settings)
    batch = next(iter(trainer.get_train_dataloader()))
    assert isinstance(batch["mode"], torch.Tensor)
    expected, got = first_gradients(whole), first_gradients(trainer)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-8)


def test_predictions_stand_in_the_order_of_their_rows(make_trainer, rows):
    trainer = make_trainer()
    some = [{"input_ids": list(rows[i]["input_ids"])[:6]} for i in range(16) if len(rows[i]["input_ids"]) >= 6]
    for i, example in enumerate(some):
        example["mode"] = i % 3
    assert np.array_equal(trainer.predict(some).label_ids, np.array([e["input_ids"] for e in some]))


def test_tokens_are_counted_exactly(make_trainer):
    """Trainer's count of a step is a float of 24 bits."""
    trainer = make_trainer()
    for _ in range(100):
        trainer.meter.count_tokens(torch.tensor(523777.0))
    trainer.meter.count_tokens(7)
    assert trainer.meter.tell(trainer.state) == trainer.state.num_input_tokens_seen == 100 * 523777 + 7
    assert trainer.meter.tell(trainer.state) == 100 * 523777 + 7


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_large_losses_are_made_in_chunks(make_trainer, rows, strategy, monkeypatch):
    """The same gradients, and the model has no more than some logits at a time."""
    expected = first_gradients(make_trainer(strategy, max_steps=1, per_device_train_batch_size=8, max_grad_norm=0.0))
    monkeypatch.setattr(chunked_loss, "_LARGE", 0)
    monkeypatch.setattr(chunked_loss, "_ENTRIES", 300 * 7)
    trainer = make_trainer(strategy, max_steps=1, per_device_train_batch_size=8, max_grad_norm=0.0)
    shapes, linear = [], torch.nn.functional.linear

    def noted(*args):
        shapes.append(linear(*args).shape)
        return linear(*args)

    monkeypatch.setattr(torch.nn.functional, "linear", noted)
    got = first_gradients(trainer)
    logits = [shape for shape in shapes if shape[-1] == 300]
    assert sum(len(shape) == 3 for shape in logits) == 1, "the head is tried once"
    assert max(shape[0] for shape in logits if len(shape) == 2) == 7, "and from then on hands its input to the loss"
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_large_losses_of_positions_are_made_in_chunks(make_trainer, rows, monkeypatch):
    examples = [dict(row) | {"mode": np.arange(len(row["input_ids"])) % 3} for row in rows.select(np.arange(64))]
    settings = {"train_dataset": examples, "max_steps": 1, "max_grad_norm": 0.0}
    expected = first_gradients(make_trainer(**settings))
    monkeypatch.setattr(chunked_loss, "_LARGE", 0)
    monkeypatch.setattr(chunked_loss, "_ENTRIES", 300 * 7)
    sizes, own = [], chunked_loss.chunked_loss
    monkeypatch.setattr(chunked_loss, "chunked_loss", lambda h, *a, **k: sizes.append(len(h)) or own(h, *a, **k))
    got = first_gradients(make_trainer(**settings))
    assert max(sizes) > 7
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("mixing", ["example", "step"])
def test_forget_rows_never_move_retain_weights_when_strict(make_trainer, rows, mixing):
    """All rows labelled forget: nothing but forget units (and unmasked joint parameters) may change."""
    only_forget = rows.select((rows.modes == MODES.index("forget")).nonzero()[0])
    sampler = ModeSampler(only_forget.modes, 8, mixing)
    trainer = make_trainer(train_dataset=only_forget, trainer_update="strict", trainer_sampler=sampler, max_steps=5)
    model = trainer.model
    before = copy.deepcopy(model.state_dict())
    trainer.train()
    for s in trainer.sgtm.partition.retain:
        assert torch.equal(s.of(s.param), s.of(before[s.name])), s.name
    for s in trainer.sgtm.partition.forget:
        assert not torch.equal(s.of(s.param), s.of(before[s.name])), s.name
    assert torch.equal(model.transformer.wte.weight, before["transformer.wte.weight"])
    assert not torch.equal(model.transformer.ln_f.weight, before["transformer.ln_f.weight"])


def test_gradients_are_masked_before_they_are_clipped(make_trainer, rows):
    only_forget = rows.select((rows.modes == MODES.index("forget")).nonzero()[0])
    trainer = make_trainer(train_dataset=only_forget, max_steps=1, max_grad_norm=1e-3)
    got = first_gradients(trainer)
    norm = torch.stack([g.norm() for g in got.values()]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert all(not s.of(got[s.name]).any() for s in trainer.sgtm.partition.retain)


def test_every_row_is_seen_once_an_epoch_in_a_new_order(make_trainer, rows):
    trainer = make_trainer(max_steps=2 * (len(rows) // 8), per_device_train_batch_size=8)
    seen = []
    collator = trainer.data_collator
    trainer.data_collator = lambda examples: (
        seen.append([tuple(e["input_ids"]) for e in examples]) or collator(examples)
    )
    trainer.train()
    half = len(seen) // 2
    first, second = ([row for batch in part for row in batch] for part in (seen[:half], seen[half:]))
    assert first != second
    everything = Counter(tuple(rows[i]["input_ids"]) for i in range(len(rows)))
    for epoch in (first, second):
        assert len(epoch) == len(rows) // 8 * 8
        assert not Counter(epoch) - everything


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"trainer_update": "strict", "trainer_forget_lr_scale": 0.3, "trainer_forget_lr_end": 1.0},
        {"trainer_update": "per_block", "optim": "adamw_torch_fused"},
    ],
)
@pytest.mark.parametrize("resume_at", [2, 40])
def test_a_resumed_run_equals_an_unbroken_one(make_trainer, tmp_path, rows, kwargs, resume_at):
    """Law 12, in the first and in a later epoch."""
    few = rows.select(np.arange(240))  # 30 steps an epoch
    settings = {
        **kwargs,
        "train_dataset": few,
        "max_steps": resume_at + 3,
        "save_strategy": "steps",
        "save_steps": resume_at,
    }
    settings |= {"lr_scheduler_type": "cosine"}
    unbroken = make_trainer(folder=tmp_path / "a", **settings)
    unbroken.train()
    again = make_trainer(folder=tmp_path / "b", model=tiny_model(seed=9), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{resume_at}"))
    assert again.state.num_input_tokens_seen == unbroken.state.num_input_tokens_seen > 0
    for (name, a), (_, b) in zip(unbroken.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("update", ["gradient", "per_block"])
def test_the_rate_of_the_forget_units_has_a_schedule_of_its_own(make_trainer, rows, update):
    trainer = make_trainer(
        max_steps=4,
        learning_rate=1.0,
        lr_scheduler_type="linear",
        trainer_update=update,
        trainer_forget_lr_scale=0.4,
        trainer_forget_lr_end=0.0,
    )
    optimizer, schedule = trainer.create_optimizer(), trainer.create_scheduler(4)
    rates = []
    for _ in range(5):
        rates.append({group["owner"]: group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        schedule.step()
    assert [r["retain"] for r in rates] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert [r["forget"] for r in rates] == pytest.approx([0.4, 0.3 * 0.75, 0.2 * 0.5, 0.1 * 0.25, 0])
    assert update == "gradient" or rates[1]["joint"] == 0.75
    with pytest.raises(
        ConfigError, match="forget_lr_end cannot be had with a ReduceLROnPlateau; use lr_scheduler_type"
    ):
        make_trainer(
            lr_scheduler_type="reduce_lr_on_plateau",
            trainer_forget_lr_end=0.5,
            eval_strategy="steps",
            trainer_eval_dataset=rows,
        ).train()


@pytest.mark.parametrize("own_class", [False, True])
def test_smoothed_labels_are_the_next_tokens(make_trainer, rows, own_class):
    """Trainer shifts the labels of the classes in its table alone."""
    model = tiny_model()
    if own_class:
        model = GPTNeoForCausalLMSGTM(GPTNeoSGTMConfig(**tiny_model().config.to_dict() | {"retain_mlp_dim": 48}))
    trainer = make_trainer(None if own_class else "parameter_masking", model=model, label_smoothing_factor=1e-9)
    ids = torch.tensor(np.stack([rows[i]["input_ids"][:8] for i in range(4)])).long()
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(
            trainer.model, {"input_ids": ids, "labels": ids}, num_items_in_batch=torch.tensor(28)
        )
        logits = trainer.model(ids).logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(loss, F.cross_entropy(logits, ids[:, 1:].flatten()))


def test_plain_rows_with_a_mode_will_do(make_trainer, rows):
    plain = [rows[i] for i in range(40)]
    trainer = make_trainer(train_dataset=plain)
    assert trainer.train().training_loss > 0
    assert len(trainer.sampler) == 40


@pytest.mark.parametrize(
    "optim",
    [
        "adamw_torch",
        "adamw_torch_fused",
        "adafactor",
        "sgd",
        "rmsprop",
        "adagrad",
        (Lion, {"lr": 1e-3}),
        (MuonAndAdamW, {}),
    ],
)
@pytest.mark.parametrize("update", ["strict", "per_block"])
def test_trainer_leaves_retain_slices_alone_on_forget_rows(make_trainer, rows, optim, update):
    """With weight decay, in the second of two stretches, when momentum is there already."""
    only_forget = rows.select((rows.modes == MODES.index("forget")).nonzero()[0])
    named = {"optim": optim} if isinstance(optim, str) else {"trainer_optimizer_cls_and_kwargs": optim}
    trainer = make_trainer(train_dataset=only_forget, trainer_update=update, max_steps=10, **named)
    partition = trainer.sgtm.partition
    before, forget = ([s.of(s.param).detach().clone() for s in side] for side in (partition.retain, partition.forget))
    trainer.train()
    assert all(torch.equal(s.of(s.param), old) for s, old in zip(partition.retain, before, strict=True))
    assert not any(torch.equal(s.of(s.param), old) for s, old in zip(partition.forget, forget, strict=True))


def test_per_block_clips_each_block_by_its_own_norm(make_trainer):
    trainer = make_trainer(trainer_update="per_block", max_steps=1, max_grad_norm=1e-3)
    norms = {}
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.update(
            {o: torch.nn.utils.get_total_norm(g).item() for o, g in trainer.blocks.gradients_by_owner()}
        )
    )
    trainer.train()
    assert norms == {owner: pytest.approx(1e-3, rel=1e-2) for owner in ("joint", "retain", "forget")}


def test_positions_with_modes_train_in_one_pass(make_trainer, rows):
    """mode (batch, seq) of whole examples gives what mode (batch,) gives."""
    plain = [rows[i] for i in range(40)]
    spread = [{**row, "mode": np.full(len(row["input_ids"]), row["mode"])} for row in plain]
    by_example = make_trainer(train_dataset=plain, max_steps=3, learning_rate=1e-3)
    by_example.train()
    by_position = make_trainer(train_dataset=spread, max_steps=3, learning_rate=1e-3, trainer_update="strict")
    by_position.train()
    for (name, a), (_, b) in zip(
        by_example.model.named_parameters(), by_position.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_strict_holds_for_positions_of_rows_of_any_length(make_trainer, rows):
    """Padding is no default row."""
    few = [rows[i] for i in range(40)]
    ragged = [
        {"input_ids": r["input_ids"][: 8 + i % 5], "mode": np.full(8 + i % 5, MODES.index("forget"))}
        for i, r in enumerate(few)
    ]
    trainer = make_trainer(train_dataset=ragged, trainer_update="strict", max_steps=5)
    before = [s.of(s.param).detach().clone() for s in trainer.sgtm.partition.retain]
    trainer.train()
    for s, old in zip(trainer.sgtm.partition.retain, before, strict=True):
        assert torch.equal(s.of(s.param), old), s.name


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"mode": [2, 2]}, "row 0 has 2 modes for 16 tokens"),
        ({}, "no modes"),
        ({"mode": [7] * 16}, "codes from 7 to 7; 0 to 2 stand for"),
        ({"mode": 7}, "codes from 7 to 7; 0 to 2 stand for"),
        ({"mode": "forget"}, r"row 0: mode has values such as .*'forget'.*; it is an index into the partition's modes"),
        ({"mode": None}, "no modes"),
    ],
)
def test_modes_that_make_no_sense_are_refused(make_trainer, row, message):
    data = [{"input_ids": np.arange(16)} | row for _ in range(16)]
    with pytest.raises(ConfigError, match=message):
        make_trainer(train_dataset=data).train()


@pytest.mark.parametrize("shape", [(), (16,)], ids=["examples", "tokens"])
def test_modes_may_be_tensors(make_trainer, shape):
    """As rows are of a data set in torch's format."""
    weights = []
    for kind in (torch.as_tensor, np.asarray):
        rows = [{"input_ids": kind(np.arange(16) + i), "mode": kind(np.full(shape, i % 3))} for i in range(16)]
        trainer = make_trainer(train_dataset=rows, max_steps=2)
        trainer.train()
        weights.append([p.detach().clone() for p in trainer.sgtm.partition.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"trainer_update": "stric"}, "update='stric' is none of"), ({"trainer_hear_domains": 7}, "is no fraction")],
)
def test_misspelt_settings_are_refused(make_trainer, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(**kwargs)


def test_a_factory_of_optimizers_is_refused_for_parts(make_trainer):
    factory = (lambda: torch.optim.SGD, {"lr": 1e-3})
    with pytest.raises(ConfigError, match="makes an optimizer of the whole model"):
        make_trainer(trainer_optimizer_cls_and_kwargs=factory, trainer_update="strict").train()


def test_an_optimizer_that_cannot_take_views_is_refused(make_trainer):
    with pytest.raises(ConfigError, match="optim=lomo chooses parameters or steps by itself"):
        make_trainer(optim="lomo", trainer_update="strict").train()


def test_a_trainer_without_masking_trains_plain_rows(make_trainer, data):
    trainer = make_trainer(strategy=None, train_dataset=data.train)
    assert trainer.train().training_loss > 0


def test_modes_without_masking_are_refused(make_trainer):
    with pytest.raises(ConfigError, match="the trainer has no sgtm"):
        make_trainer(strategy=None).train()


def test_masking_without_modes_is_refused(make_trainer, data, rows):
    sampler = ModeSampler(rows.modes, 8)
    with pytest.raises(ConfigError, match="no modes"):
        make_trainer(train_dataset=data.train, trainer_sampler=sampler).train()


def test_masking_of_another_model_is_refused(make_trainer):
    trainer = make_trainer()
    with pytest.raises(ConfigError, match="another model"):
        SGTMTrainer(tiny_model(), trainer.args, trainer.sgtm)


def one_mixed_step(model, tmp_path, collator=collate, **kwargs):
    """The logged loss of one step on a batch of three modes, and the number of its passes."""
    rows = [{"input_ids": [5 + i, *range(12 + i, 20 + i)], "mode": mode} for i, mode in enumerate([0, 1, 2, 0])]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, logging_steps=1, report_to="none", use_cpu=True
    )
    sgtm = SGTM(Partition.of(model, heads=1))
    trainer = SGTMTrainer(model, arguments, sgtm, train_dataset=rows, data_collator=collator, **kwargs)
    passes, compute_loss = [], trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: passes.append(1) or compute_loss(*args, **kwargs)
    trainer.train()
    return trainer.state.log_history[0]["loss"], len(passes)


def test_the_balance_of_experts_counts_once(tmp_path):
    """The model adds it to each pass's loss, whatever part of the batch that pass has."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "intermediate_size": 32}
    config = Qwen3MoeConfig(**sizes, **experts, num_key_value_heads=4, router_aux_loss_coef=10.0)
    losses = {}
    for balanced in (False, True):
        config.output_router_logits = balanced
        torch.manual_seed(0)
        losses[balanced], passes = one_mixed_step(Qwen3MoeForCausalLM(config), tmp_path)
        assert passes == (1 if balanced else 3)
    # Of two layers with two of four experts chosen, the balance is 2 where they are used alike.
    assert 19 < losses[True] - losses[False] < 30


@pytest.mark.parametrize("value", ["forget", 0.5])
def test_a_mode_is_a_code(make_trainer, value):
    def named(examples):
        return {**collate(examples), "mode": [value] * len(examples)}

    with pytest.raises(ConfigError, match=r"mode has values such as .*sgtm\.partition\.modes\.index\(NAME\)"):
        make_trainer(trainer_data_collator=named).train()


def test_what_a_batch_shares_is_no_row_of_it(tmp_path):
    def with_positions(examples):
        batch = collate(examples)
        return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]}

    losses = [one_mixed_step(tiny_model(), tmp_path, collator) for collator in (collate, with_positions)]
    assert losses[0] == (pytest.approx(losses[1][0]), 3)
