"""Plain values (mappings, lists, text, numbers) of YAML and JSON text; a ValueError says what is wrong with the text.

Stricter than the formats: a key that stands twice in a mapping is an error and not silently its last value, and neither
aliases that stand for millions of values nor depths that no recursion survives get any further than here.
"""

import json
import math
from collections.abc import Hashable, Iterable
from typing import Any

import yaml

_MOST = 200_000  # values of a YAML document, those behind an alias counted each time
_DEEPEST = 50  # mappings and lists in one another
_LARGEST = 2**1023  # of integers that are taken for floats
_SHOWN = 200  # characters of a value in a message
# A type, None, a text (itself), a list [of what] or [one, other], a mapping {key: of what}, a tuple (one of these).
Shape = Any


def from_yaml(text: str) -> Any:
    """The values of one YAML document; None where it is empty."""
    try:
        values = yaml.load(text, Loader=_Strict)  # noqa: S506: a SafeLoader
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    except Exception as error:  # values like `!!bool x` or `!!timestamp x` give errors of many kinds
        raise ValueError(f"it has a tag that does not fit its value ({type(error).__name__}: {error})") from error
    _check(values, _MOST)
    return values


def to_yaml(values: Any) -> str:
    """Plain ``values`` as YAML that ``from_yaml`` reads back to equal ones."""
    text: str = yaml.dump(values, Dumper=_Exact, sort_keys=False, allow_unicode=True)
    return text


class _Exact(yaml.SafeDumper):
    pass


def _exact(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Unicode's other ends of a line would be read as plain ones, unless they are escaped."""
    style = '"' if any(end in text for end in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Exact.add_representer(str, _exact)


def from_json(text: str) -> Any:
    """The values of one JSON document."""
    try:
        values = json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check(values, most=math.inf)  # without aliases it is as long as its text
    return values


def shown(value: Any) -> str:
    """``value`` for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"


def misfit(value: Any, shape: Shape, name: str = "") -> str:
    """What of ``value`` is not as ``shape`` has it, or nothing; of mappings, further keys are no matter."""
    here = f"{name}={shown(value)}" if name else shown(value)
    if isinstance(shape, str):
        return "" if value == shape else f"{here} is not {shape!r}"
    if isinstance(shape, tuple):
        faults = [misfit(value, one, name) for one in shape]
        return faults[0] if all(faults) else ""
    if isinstance(shape, dict) and isinstance(value, dict):
        missing = [f"{name or 'it'} has no {key!r}" for key in shape if key not in value]
        inner = (misfit(value[key], shape[key], f"{name}.{key}".strip(".")) for key in shape if key in value)
        return next(iter([*missing, *filter(None, inner)]), "")
    if isinstance(shape, list) and isinstance(value, list):
        if len(shape) > 1 and len(shape) != len(value):
            return f"{here} must have {len(shape)} entries"
        return next(filter(None, (misfit(v, shape[i % len(shape)], f"{name}[{i}]") for i, v in enumerate(value))), "")
    kind = type(shape) if shape is None or isinstance(shape, dict | list) else shape
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return "" if abs(value) < _LARGEST else f"{here} is too large a number"
    fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if fits and kind is float and not math.isfinite(value):
        return f"{here} is no finite number"
    return "" if fits else f"{here} is not of type {kind.__name__}"


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            keys = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            _once((self.construct_object(key, deep=True), None) for key in keys)
        return super().construct_mapping(node, deep)


def _once(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """The mapping of ``pairs``; unhashable keys are left to whoever comes next."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, Hashable):
            continue
        if key in found:
            raise ValueError(f"the key {shown(key)} stands twice in a mapping; leave one of them out")
        found[key] = value
    return found


def _check(values: Any, most: float) -> None:
    """Raise a ValueError for values that are too many or too deep, or of no kind that both formats have."""
    waiting, count = [(values, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > most or depth > _DEEPEST:
            raise ValueError(f"it holds more than {_MOST:,} values, or more than {_DEEPEST} within one another")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ValueError(f"the key {shown(key)} is no text; put it in quotes")
            waiting += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
        elif isinstance(value, str) and not _is_text(value):
            raise ValueError(f"{shown(value)} is no text (half a surrogate pair, or a zero character)")
        elif not isinstance(value, str | int | float | type(None)):
            raise ValueError(f"{shown(value)} is no text, number, list or mapping; put it in quotes")


def _is_text(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
