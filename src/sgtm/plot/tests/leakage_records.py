"""Small made-up records of `sgtm leakage`, for the tests of figures and of the notebook."""

import json
from pathlib import Path
from typing import Any

from sgtm.records import LEAKAGE

SHARES = (0.0, 0.01, 0.1, 0.4, 1.0)
SIZES = (8_000_000, 64_000_000)
NUM_TOKENS = 1_000_000  # of forget data


def leakage_record(method: str, share: float, parameters: int, **changes: Any) -> dict[str, Any]:
    """Leakage of three seeds that falls with the size, more for SGTM than for Gradient Routing; of filters 1."""
    undiscovered, is_filter = share * NUM_TOKENS, method == "filter"
    leaked = 1.0 if is_filter else {"sgtm": 0.02, "gradient_routing": 0.1}[method] * (8e6 / parameters) ** 0.5
    tokens = leaked * undiscovered or (0 if is_filter else 500.0)
    ratio = exact(leaked) if share else None
    runs = [f"runs/{method}-{parameters}-u{share}-seed{seed}" for seed in range(3)]
    return {
        "method": method,
        "undiscovered": share,
        "parameters": parameters,
        "domain": "forget",
        "seeds": [0, 1, 2],
        "loss": loss_after(tokens),
        "retain_tokens": NUM_TOKENS,
        "undiscovered_tokens": undiscovered,
        "labelled_tokens": 0.0 if is_filter else NUM_TOKENS - undiscovered,
        "tokens": exact(tokens),
        "ratio": ratio,
        "tokens_interval": None if is_filter else [exact(0.8 * tokens), exact(1.3 * tokens)],
        "ratio_interval": None if is_filter or not ratio else [exact(0.8 * leaked), exact(1.3 * leaked)],
        "is_monotone": True,
        "by_construction": is_filter,
        "interpolation": "linear",
        "num_bootstrap": 1000,
        "grid": [] if is_filter else grid(parameters),
        "runs": runs,
        **changes,
    }


def exact(value: float) -> dict[str, Any]:
    return {"value": value, "bound": "exact"}


def loss_after(tokens: float) -> float:
    return 8 - 4 * (tokens / NUM_TOKENS) ** 0.25


def grid(parameters: int) -> list[dict[str, Any]]:
    return [
        {
            "undiscovered": share,
            "tokens": share * NUM_TOKENS,
            "loss": loss_after(share * NUM_TOKENS),
            "retain_tokens": NUM_TOKENS,
            "runs": [f"runs/references/{parameters}-u{share}-seed{seed}" for seed in range(3)],
        }
        for share in (0.0, *(4.0**-k for k in range(6, -1, -1)))
    ]


def write_leakage_records(folder: Path, sizes: tuple[int, ...] = SIZES) -> Path:
    """Write ``leakage.jsonl`` of three methods, five shares and some sizes to ``folder``, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    methods = ("sgtm", "gradient_routing", "filter")
    records = [leakage_record(m, share, size) for m in methods for share in SHARES for size in sizes]
    (folder / LEAKAGE).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder
