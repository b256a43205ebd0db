"""A run's folder with everything a report shows, that was never trained."""

import json
from dataclasses import asdict
from pathlib import Path

import yaml

from sgtm.config import RelearnConfig, RunConfig, build, dump, with_settings

HOSTILE = "</title></text></svg><script>document.title='pwned'</script><img src=x onerror=alert(1)>\"'&"
TOKEN = "hf_" + "Ab3" * 12


def write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_run(folder: Path, seed: int = 0, shift: float = 0.0, steps: int = 30, **settings) -> Path:
    """Config and losses: retain 4 and forget 5 when intact, a tenth more and 2 more when ablated, all at step 30."""
    folder.mkdir(parents=True)
    values = {"train.steps": 30, "train.warmup_steps": 3, "seed": seed, "labels.undiscovered": 0.1}
    values |= {key.replace("__", "."): value for key, value in settings.items()}
    config = build(RunConfig, with_settings(asdict(RunConfig()), values, "test"), "test")
    dump(config, folder / "config.yaml")
    domains = config.partition.names
    ends = {"retain": (4.0, 4.1, 4.05), **dict.fromkeys(domains, (5.0, 7.0, 7.5))}
    records = [
        {"step": s, "tokens": 1000 * s, "flops": 6e6 * s, "split": "train", "category": "all", "variant": "intact"}
        | {"loss": 6.0 - s / 30, "num_tokens": 10_000}
        for s in range(10, steps + 1, 10)
    ] + [
        {"step": s, "tokens": 1000 * s, "flops": 6e6 * s, "split": "test", "category": category, "variant": variant}
        | {"loss": loss + shift + (30 - s) / 20, "num_tokens": 500}
        for s in range(10, steps + 1, 10)
        for category, losses in ends.items()
        for variant, loss in zip(("intact", "ablated", "calibrated"), losses, strict=True)
    ]
    write_lines(folder / "metrics.jsonl", records)
    return folder


def write_full_run(root: Path, text: str = "una historia", **settings) -> Path:
    """A run of two domains with every record; ``text`` is said by the model, the data and the configuration."""
    two = {"biology": {"heads": 1, "neurons": 8}, "cyber": {"heads": 1, "neurons": 4}}
    folder = write_run(root / "run", partition__domains=two, data__path=str(root / "data"), **settings)
    (root / "data").mkdir()
    counts = {c: {"documents": 1200, "rows": 300, "tokens": 19_200} for c in ("biology", "cyber", "retain")}
    manifest = {"origin": {"source": text}, "settings": {"context": 64}, "vocab_size": 1024}
    (root / "data" / "manifest.json").write_text(json.dumps(manifest | {"counts": {"train": counts, "test": counts}}))
    about = {
        "id": "abc",
        "rows": {"biology as biology": 270, "biology as unlabeled": 30, "retain as retain": 75, text + " as retain": 1},
        "modes": {"default": 255, "retain": 75, "biology": 270},
        "parameters": PARTITION["parameters"],
        "environment": {"python": "3.11.7", "platform": text, "cores": 2},
        "started": "2026-01-02T03:04:05Z",
    }
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "partition.json").write_text(json.dumps(PARTITION))
    variants = ("intact", "ablated", "calibrated")
    write_lines(
        folder / "generations.jsonl",
        [
            {"category": c, "prompt": f"{text} {c}", "truth": text, "variant": v, "text": f"{text} {v}"}
            for c in ("retain", "biology")
            for v in variants
        ],
    )
    removed = ([], ["biology"], ["cyber"], ["biology", "cyber"])
    write_lines(
        folder / "matrix.jsonl",
        [
            {"without": w, "category": c, "loss": 4.0 + 2 * (c in w) + 0.01 * len(w), "num_tokens": 500}
            for w in removed
            for c in ("retain", "biology", "cyber")
        ],
    )
    speed = {"tokens": 10_000, "memory_mb": 640.0, "mfu": 0.25, "examples": {"default": 30, "forget": 1_234}}
    write_lines(folder / "throughput.jsonl", [{"step": s, "seconds": s / 5, **speed} for s in (10, 20, 30)])
    write_relearning(root / "again", folder)
    write_leakage(folder)
    return folder


PARTITION = {
    "model_type": "gpt_neo",
    "domains": {"biology": {"heads": 1, "neurons": 8}, "cyber": {"heads": 1, "neurons": 4}},
    "layers": [
        {
            "layer": i,
            "heads": 8,
            "neurons": 64,
            "has_forget_units": i != 2,
            "parameters": owners,
        }
        for i, owners in enumerate(
            (
                {"retain": 1500, "biology": 200, "cyber": 100, "joint": 50},
                {"retain": 1500, "biology": 200, "cyber": 100, "joint": 50},
                {"retain": 0, "biology": 0, "cyber": 0, "joint": 1850},
            )
        )
    ],
    "joint": [
        {"group": "embeddings", "parameters": 1230, "masked": 1230},
        {"group": "other", "parameters": 1800, "masked": 0},
        {"group": "norms", "parameters": 150, "masked": 75},
        {"group": "final_norm", "parameters": 20, "masked": 0},
    ],
    "parameters": {"retain": 3000, "biology": 400, "cyber": 200, "joint": 3200},
    "strategy": {"activations": "keep", "frozen": ["attn.in", "mlp.out"]},
}


def write_relearning(folder: Path, start: Path) -> Path:
    """Two learning rates; the second reaches the target at step 20."""
    folder.mkdir(parents=True)
    config = RelearnConfig(learning_rates=[1e-3, 3e-3], domain="biology", steps=40, warmup_steps=5)
    (folder / "relearn.yaml").write_text(yaml.safe_dump({"start": str(start), **asdict(config)}))
    records = [
        {"learning_rate": rate, "step": s, "tokens": 100 * s, "forget_tokens": 50 * s, "category": "biology"}
        | {"split": "test", "variant": "ablated", "loss": 7.0 - s * rate * 40, "flops": 0, "num_tokens": 10}
        for rate in (1e-3, 3e-3)
        for s in (0, 10, 20)
    ]
    write_lines(folder / "metrics.jsonl", records)
    at = {"step": 20, "tokens": 2000, "forget_tokens": 1000, "loss": 4.6}
    curves = [
        {"learning_rate": 1e-3, "reached": False, "at": None, "steps": 40, "closest": {"step": 20, "loss": 6.2}},
        {"learning_rate": 3e-3, "reached": True, "at": at, "steps": 40, "closest": at},
    ]
    summary = {"domain": "biology", "target": 5.0, "best": 3e-3, "curves": curves}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_leakage(folder: Path) -> None:
    exact = {"value": 0.031, "bound": "exact"}
    record = {
        "method": "sgtm",
        "undiscovered": 0.1,
        "parameters": 5000,
        "domain": "biology",
        "seeds": [0],
        "loss": 7.0,
        "undiscovered_tokens": 1920.0,
        "tokens": {"value": 60.0, "bound": "exact"},
        "tokens_interval": None,
        "ratio": exact,
        "ratio_interval": None,
        "is_monotone": True,
        "by_construction": False,
        "runs": [str(folder)],
        "grid": [],
    }
    write_lines(folder.parent / "leakage.jsonl", [record])
