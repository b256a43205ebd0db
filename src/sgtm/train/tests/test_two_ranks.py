"""Two processes, with DDP and with FSDP2: what they train is what one trains.

On a GPU each (NCCL) where there are two, else on the CPU (gloo).
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from sgtm.config import dump
from sgtm.records import read_records
from sgtm.train.tests.test_run import config_of

pytestmark = pytest.mark.slow
FSDP = {"fsdp": True}
CASES = {
    # Some steps have a process with forget examples alone, or nothing else at all.
    "ddp-example": ("example", {}),
    "ddp-step": ("step", {}),
    "ddp-domains": ("domains", {}),
    "fsdp-example": ("example", FSDP),
    "fsdp-step": ("step", FSDP),
    "fsdp-domains": ("domains", FSDP),
    "fsdp-fused": ("example", FSDP | {"optim": "adamw_torch_fused"}),
    "fsdp-sgd": ("example", FSDP | {"optim": "sgd"}),
    "fsdp-per_block": ("example", FSDP | {"trainer_update": "per_block", "max_grad_norm": 0.01}),
    "fsdp-gradient": ("example", FSDP | {"trainer_update": "gradient", "trainer_forget_lr_scale": 1.0}),
    "fsdp-checkpointing": ("example", FSDP | {"fsdp_config": {"activation_checkpointing": True}}),
    "fsdp-loading": (
        "example",
        FSDP | {"fsdp_config": {"cpu_ram_efficient_loading": True, "reshard_after_forward": False}},
    ),
}
COMMAND = "sgtm.train.tests.shard_on_cpu"  # `sgtm`
_LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m"]


def launch(processes: int, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    launcher = _LAUNCH if processes > 1 else [sys.executable, "-m"]
    # One process takes the CPU; so do two, unless each has a GPU.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if torch.cuda.device_count() < processes or processes == 1 else {}
    words = [*launcher, module, *words]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | hidden)


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A folder with the weights of each case after training in one and in two processes."""
    out = tmp_path_factory.mktemp("ranks")
    for kind, processes in (("", 1), ("ddp", 2), ("fsdp", 2)):
        chosen = {name: case for name, case in CASES.items() if name.startswith(kind)}
        cases = [{"name": name, "mixing": mixing, "settings": s} for name, (mixing, s) in chosen.items()]
        (out / "cases.json").write_text(json.dumps(cases))
        done = launch(processes, "sgtm.train.tests.two_ranks", str(prepared), str(out), str(out / "cases.json"))
        assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(trained, case):
    """Law 11, strict, with accumulation and a rate of their own for forget units."""
    one, two = (torch.load(trained / f"{case}-{n}.pt", weights_only=True) for n in (1, 2))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def runs(prepared, tmp_path_factory):
    """`sgtm train` in one process, in two with DDP, and in two with FSDP2."""
    out = tmp_path_factory.mktemp("runs")
    train = {
        "steps": 8,
        "batch_size": 8,
        "micro_batch_size": 2,
        "learning_rate": 1e-2,
        "save_every": 4,
        "warmup_steps": 2,
    }
    for name, processes, arguments in (("one", 1, {}), ("ddp", 2, {}), ("fsdp", 2, FSDP)):
        section = {
            **train,
            "warmup_steps": 2,
            "log_every": 2,
            "update": "strict",
            "arguments": {**arguments, "disable_tqdm": True},
        }
        # 37 rows of each category: not a multiple of the processes, nor of the batches.
        config = config_of(prepared, train=section, evaluate={"every": 4, "rows": 37, "batch_size": 8})
        dump(config, out / f"{name}.yaml")
        done = launch(processes, COMMAND, "train", str(out / f"{name}.yaml"), "--run-dir", str(out / name))
        assert done.returncode == 0, done.stderr[-3000:]
    return out


def weights(run):
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_sgtm_train_gives_the_same_model_and_losses(runs, kind):
    one, two = weights(runs / "one"), weights(runs / kind)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    records = [read_records(runs / name / "metrics.jsonl") for name in ("one", kind)]
    keys = ("step", "tokens", "split", "category", "variant", "num_tokens")
    assert [[r[k] for k in keys] for r in records[0]] == [[r[k] for k in keys] for r in records[1]]
    assert [r["loss"] for r in records[1]] == pytest.approx([r["loss"] for r in records[0]], rel=1e-4)
    assert any(r["variant"] == "calibrated" for r in records[1])


def test_a_sharded_run_resumed_equals_an_unbroken_one(runs, tmp_path):
    """Law 12: parts of the optimizer's state on each process, bit for bit."""
    again = tmp_path / "again"
    shutil.copytree(runs / "fsdp", again)
    shutil.rmtree(again / "model")
    shutil.rmtree(again / "checkpoints" / "checkpoint-8")
    words = (COMMAND, "train", str(again / "config.yaml"), "--run-dir", str(again), "--resume")
    alone = launch(1, *words)
    assert alone.returncode == 1
    assert "Using fsdp only works in distributed training" in alone.stderr
    done = launch(2, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, weight in weights(runs / "fsdp").items():
        assert torch.equal(weights(again)[name], weight), name


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there are accelerators here")
def test_sharding_where_there_is_no_accelerator_is_refused(runs, tmp_path):
    """accelerate would train with DDP without a word."""
    done = launch(2, "sgtm.cli", "train", str(runs / "fsdp.yaml"), "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "accelerate shards on accelerators only" in done.stderr


def test_a_stream_is_shared_by_processes_and_resumed(prepared, data, tmp_path):
    """Each reads shards of its own; law 12 for all of them together."""
    rows = data.train
    for i in range(4):
        some = range(i, len(rows), 4)
        labels = [("forget", "retain")[int(rows.categories[n] > 0)] for n in some]
        ids = [rows[n]["input_ids"].tolist() for n in some]
        Dataset.from_dict({"input_ids": ids, "label": labels}).to_parquet(tmp_path / "shards" / f"{i}.parquet")
    section = {"steps": 6, "batch_size": 8, "warmup_steps": 2, "learning_rate": 1e-2, "save_every": 3, "log_every": 1}
    stream = {"source": str(tmp_path / "shards"), "buffer": 64}
    dump(config_of(prepared, train=section, labels={}, stream=stream), tmp_path / "run.yaml")
    words = (COMMAND, "train", str(tmp_path / "run.yaml"), "--run-dir")
    done = launch(2, *words, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "model")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "checkpoint-6")
    done = launch(2, *words, str(tmp_path / "again"), "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    for name, weight in weights(tmp_path / "run").items():
        assert torch.equal(weights(tmp_path / "again")[name], weight), name
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-3"
    states = [torch.load(checkpoint / f"stream-{n}-of-2.pt", weights_only=True) for n in range(2)]
    held = [{tuple(e["input_ids"].tolist()) for found in s["held"].values() for e in found} for s in states]
    assert held[0]
    assert held[1]
    assert not held[0] & held[1]
