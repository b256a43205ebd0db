"""SGTM on sharded parameters against SGTM on whole ones, case by case: `torchrun ... two_shards OUT CASES...`.

Each of two processes shards a copy of the case's model with ``fully_shard`` and computes on its share of the rows, on a
GPU of its own where there are two (NCCL), else on the CPU (gloo). The first writes OUT:
{case: {check: largest error, or the names of what is wrong}}.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition
from sgtm.model.sharding import whole
from sgtm.model.tests.families import CASES, Case, tokens
from sgtm.train.optimizer import BlockParameters

ROWS = 4
# By process and micro-batch: no two processes are ever in the same mode.
MIXED = (("forget", "retain", "default"), ("default", "forget", "retain"))
# The same, a forget batch being the one after which gradients are exchanged.
FORGET_LAST = (("retain", "default", "forget"), ("forget", "retain", "default"))


ON_GPUS = torch.cuda.device_count() > 1


def device() -> torch.device:
    return torch.device("cuda", distributed.get_rank()) if ON_GPUS else torch.device("cpu")


def prepare(case: Case) -> SGTM:
    model = case.family.model(torch.float64).to(device())
    return SGTM(Partition.of(model, **case.family.units), case.strategy, case.joint)


def shard(case: Case, sgtm: SGTM, checkpointing: bool = False) -> None:
    """Each block by itself, and all else (tied embeddings together) in the root's group."""
    model = sgtm.partition.model
    blocks = model.get_submodule(case.family.blocks)
    for i, block in enumerate(blocks):
        if checkpointing:
            blocks[i] = checkpoint_wrapper(block)
        fully_shard(blocks[i])
    fully_shard(model)


def run(
    sgtm: SGTM,
    modes: Sequence[object],
    rows: slice,
    sync: Callable[[bool], None] = lambda now: None,
    model: nn.Module | None = None,
) -> None:
    """A micro-batch of each of ``modes``; processes exchange gradients in the last alone."""
    model = model or sgtm.partition.model
    for i, mode in enumerate(modes):
        sync(i == len(modes) - 1)
        batch = {name: values[rows].to(device()) for name, values in tokens(seed=i, rows=ROWS).items()}
        with sgtm.batch(mode):
            model(**batch, use_cache=False).loss.backward()


def gradients(sgtm: SGTM) -> dict[str, Tensor]:
    return {n: torch.zeros_like(whole(p.detach())) if p.grad is None else whole(p.grad) for n, p in named(sgtm)}


def named(sgtm: SGTM) -> Iterator[tuple[str, nn.Parameter]]:
    return sgtm.partition.named_parameters()


def expected(case: Case, modes: Sequence[Sequence[object]]) -> dict[str, Tensor]:
    """What the processes' rows give in one model that is whole: the mean over processes, as FSDP takes it."""
    sgtm = prepare(case)
    for rank, of_rank in enumerate(modes):
        run(sgtm, of_rank, slice(rank, None, 2))
    return {name: g / len(modes) for name, g in gradients(sgtm).items()}


def error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[n] - g).abs().max() / g.abs().max().clamp_min(1e-3)) for n, g in wanted.items())


def gradients_error(case: Case, modes: Sequence[Sequence[object]], checkpointing: bool = False) -> float:
    sgtm, rank = prepare(case), distributed.get_rank()
    shard(case, sgtm, checkpointing)
    run(sgtm, modes[rank], slice(rank, None, 2), sgtm.partition.model.set_requires_gradient_sync)
    return error(gradients(sgtm), expected(case, modes))


def replicated_error(case: Case) -> float:
    """DDP in a loop of one's own: ranks in different modes, and gradients of several batches that are sent at once."""
    sgtm, rank = prepare(case), distributed.get_rank()
    model = DistributedDataParallel(sgtm.partition.model, find_unused_parameters=True)

    def sync(now: bool) -> None:  # what no_sync does
        model.require_backward_grad_sync = now

    run(sgtm, FORGET_LAST[rank], slice(rank, None, 2), sync, model)
    return error(gradients(sgtm), expected(case, FORGET_LAST))


def leaks(case: Case, sgtm: SGTM) -> list[str]:
    """Law 4: where a forget batch leaves a gradient that it may not, or none where it should."""
    model = case.family.model(torch.float64)
    may, cut_off, still = case.may_change(model, "forget"), case.cut_off(model, "forget"), case.family.still(model)
    wrong = []
    for name, grad in gradients(sgtm).items():
        grad = grad.cpu()
        leaked = bool(grad[~may[name]].any())
        missed = name not in cut_off and not bool(grad[may[name] & ~still[name]].any()) and bool(may[name].any())
        wrong += [name] if leaked or missed else []
    return wrong


def law_4(case: Case) -> list[str]:
    sgtm, rank = prepare(case), distributed.get_rank()
    shard(case, sgtm)
    run(sgtm, ["forget"], slice(rank, None, 2))
    return leaks(case, sgtm)


def masked_afterwards(case: Case) -> float:
    """``mask_gradients`` of a default batch's gradients."""
    sgtm, other, rank = prepare(case), prepare(case), distributed.get_rank()
    shard(case, sgtm)
    run(sgtm, ["default"], slice(rank, None, 2))
    sgtm.mask_gradients("forget")
    for row in range(2):
        run(other, ["default"], slice(row, None, 2))
    other.mask_gradients("forget")
    return error(gradients(sgtm), {n: g / 2 for n, g in gradients(other).items()})


def law_10(case: Case) -> list[str]:
    """What moved in strict forget steps, weights or optimizer state, that may not; or did not move that may."""
    sgtm, rank = prepare(case), distributed.get_rank()
    shard(case, sgtm)
    blocks = BlockParameters(sgtm)
    decayed = {block.name for block in sgtm.blocks()}
    optimizer = torch.optim.AdamW([g for g in blocks.groups(1e-2, 0.1, decayed) if g["params"]])
    blocks.attach(optimizer)

    def step(mode: str) -> None:
        run(sgtm, [mode], slice(rank, None, 2))
        blocks.set_gradients({mode})
        optimizer.step()
        sgtm.partition.model.zero_grad()

    for mode in ("default", "retain", "forget", "default"):  # momentum for all
        step(mode)
    before = [
        (p.param.detach().clone(), {k: v.clone() for k, v in optimizer.state[p.param].items()}) for p in blocks.parts
    ]
    for _ in range(20):
        step("forget")
    wrong = []
    for part, (weight, state) in zip(blocks.parts, before, strict=True):
        stayed = torch.equal(part.param, weight)
        same_state = all(torch.equal(optimizer.state[part.param][k], v) for k, v in state.items())
        may_move = "forget" in part.block.modes and bool(part.param.numel())
        in_weight = torch.equal(part.of(part.weight.detach()), part.param)  # what was stepped is the model's own
        if stayed is may_move or same_state is may_move or not in_weight:
            wrong.append(f"{part.block.name} of {part.block.owner} on {rank}")
    found: list[list[str]] = [[], []]
    distributed.all_gather_object(found, wrong)
    return [name for of_process in found for name in of_process]


def ablated(case: Case) -> float:
    sgtm, other = prepare(case), prepare(case)
    shard(case, sgtm)
    sgtm.partition.ablate()
    other.partition.ablate()
    return error({n: whole(p.detach()) for n, p in named(sgtm)}, {n: p.detach() for n, p in named(other)})


def checks(case: Case) -> dict[str, object]:
    per_position = [[torch.arange(16).reshape(2, 8) % 3], [torch.arange(16).reshape(2, 8) // 2 % 3]]
    return {
        "law_4": law_4(case),
        "same_mode": gradients_error(case, [["forget"], ["forget"]]),
        "law_8_and_mixed_modes": gradients_error(case, MIXED),
        "replicated": replicated_error(case),
        "law_9": gradients_error(case, MIXED, checkpointing=True),
        "positions": gradients_error(case, per_position),
        "masked_afterwards": masked_afterwards(case),
        "law_10": law_10(case),
        "ablated": ablated(case),
    }


def main(out: str, *names: str) -> None:
    distributed.init_process_group("nccl" if ON_GPUS else "gloo")
    if ON_GPUS:
        torch.cuda.set_device(device())
    found = {name: checks(CASES[name]) for name in names}
    if distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
