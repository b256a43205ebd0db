"""The files that hold what runs measured, without torch."""

import math
from pathlib import Path
from typing import Any

from sgtm.config import ConfigError
from sgtm.plain import from_json, shown

METRICS = "metrics.jsonl"
GRADIENTS = "gradients.jsonl"
LEAKAGE = "leakage.jsonl"
UNLEARN = "unlearn.yaml"  # settings of an unlearning
RELEARN = "relearn.yaml"  # settings of a relearning
SUMMARY = "summary.json"
PROBES = "probes.jsonl"
RECORD = ("step", "tokens", "flops", "split", "category", "variant", "loss", "num_tokens")
RESULTS = "results.parquet"  # the records of all runs of a sweep
_REMEDY = "remove the line or the file, or write it anew"
CONFIGS = "configs"  # in the metadata of that file: the runs' configurations by name, as JSON


# A type, None, a text (itself), a list [of what] or [one, other], a mapping {key: of what}, a tuple (one of these).
Shape = Any
LOSS = {"step": int, "split": str, "category": str, "variant": str, "loss": float}


def read_records(path: Path, shape: Shape = dict) -> list[dict[str, Any]]:
    """All records; a last line cut short by a killed run is left out. No file has no records.

    Raises:
        ConfigError: a line that is no record of this ``shape``.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_record(line, shape, f"{path}, line {number}") for number, line in enumerate(lines[:-1], 1) if line]


def check_shape(value: Any, shape: Shape, where: object) -> None:
    """Raise a ConfigError unless ``value`` is of this ``shape``; of mappings, further keys are no matter."""
    if fault := _misfit(value, shape, ""):
        raise ConfigError(f"{where}: {fault}; {_REMEDY}")


def _misfit(value: Any, shape: Shape, name: str) -> str:
    """What of ``value`` is not as ``shape`` has it, or nothing."""
    here = f"{name}={shown(value)}" if name else shown(value)
    if isinstance(shape, str):
        return "" if value == shape else f"{here} is not {shape!r}"
    if isinstance(shape, tuple):
        faults = [_misfit(value, one, name) for one in shape]
        return faults[0] if all(faults) else ""
    if isinstance(shape, dict) and isinstance(value, dict):
        missing = [f"{name or 'it'} has no {key!r}" for key in shape if key not in value]
        inner = (_misfit(value[key], shape[key], f"{name}.{key}".strip(".")) for key in shape if key in value)
        return next(iter([*missing, *filter(None, inner)]), "")
    if isinstance(shape, list) and isinstance(value, list):
        if len(shape) > 1 and len(shape) != len(value):
            return f"{here} must have {len(shape)} entries"
        return next(filter(None, (_misfit(v, shape[i % len(shape)], f"{name}[{i}]") for i, v in enumerate(value))), "")
    kind = type(shape) if shape is None or isinstance(shape, dict | list) else shape
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return ""
    fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if fits and kind is float and not math.isfinite(value):
        return f"{here} is no finite number"
    return "" if fits else f"{here} is not of type {kind.__name__}"


def _record(line: str, shape: Shape, where: str) -> dict[str, Any]:
    try:
        record = from_json(line)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON ({error}); {_REMEDY}") from error
    check_shape(record, shape, where)
    return record  # type: ignore[no-any-return]
