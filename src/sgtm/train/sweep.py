"""A sweep file and the runs that it stands for. Nothing here needs torch.

    base: ../../tinystories/cpu.yaml          # a run's configuration; this path starts at the sweep's own file
    out: runs/tinystories/mislabeling-cpu     # where each run gets a folder; starts where you are, as data.path does
    seeds: [0, 1, 2]
    settings: {labels.retain_fraction: 0.1}   # of every run
    grid: {labels.undiscovered: [0, 0.1]}     # every combination of these values
    runs:                                     # and each of these, with settings of its own, at every one of them
      sgtm: {method: sgtm}
      gradient_routing: {method: gradient_routing, train.forget_lr_scale: 1.0}

A run's folder is named by what its sweep varies, ``gradient_routing-undiscovered0.1-seed0``: the name stays when values
or seeds are added, or when keys change places.
"""

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sgtm.config import ConfigError, RunConfig, build, found, load, read_yaml, with_settings

_LONGEST_NAME = 200  # bytes; file systems end at 255
_SETTINGS = "settings, grid and runs"


@dataclass(frozen=True)
class SweepConfig:
    """What a sweep file holds; keys of settings, of the grid and of runs are those of a run, ``section.key``."""

    base: str = ""
    """Configuration that all runs start from; a relative path starts at the sweep file's folder."""
    out: str = ""
    """Folder of the runs' folders; a relative path starts at the working directory."""
    seeds: list[int] = field(default_factory=lambda: [0])
    settings: dict[str, Any] = field(default_factory=dict)
    """What all runs have in place of the base's."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Lists of values by key; every combination is run."""
    runs: dict[str, Any] = field(default_factory=dict)
    """Settings by name; each of them is run at every point of the grid."""

    def __post_init__(self) -> None:
        if not self.base or not self.out:
            raise ConfigError("a sweep needs `base: RUN.yaml` and `out: FOLDER`")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds={self.seeds}: give at least one seed, and each one once")
        for key, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"grid: {key}={values!r} is no list of values; write [{values}]")
        for name, settings in self.runs.items():
            if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
                raise ConfigError(f"runs: {name}={settings!r} is no mapping of keys to values; write {{method: ...}}")
        self._check_keys()

    def _check_keys(self) -> None:
        of_runs = {key for settings in self.runs.values() for key in settings}
        if both := self.grid.keys() & (of_runs | self.settings.keys()):
            raise ConfigError(f"{sorted(both)} is in the grid and in settings or runs as well; leave it in one of them")
        if "seed" in self.grid.keys() | self.settings.keys() | of_runs:
            raise ConfigError(f"seed is none of {_SETTINGS}; use `seeds: [0, 1, 2]`")

    @property
    def varied(self) -> list[str]:
        """The keys of the grid and of the runs; ``method`` first, then by name."""
        keys = {*self.grid, *(key for settings in self.runs.values() for key in settings)}
        return sorted(keys, key=lambda key: (key != "method", key))


@dataclass(frozen=True)
class Sweep:
    """A sweep file as read, and ``common``: its base with its settings, the start of every run."""

    path: Path
    config: SweepConfig
    common: RunConfig


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Args:
        settings: the method, and the value of each varied key.
    """

    folder: Path
    config: RunConfig
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name


def read_sweep(path: Path, base: Path | None = None) -> Sweep:
    """Read a sweep file and the run's configuration that it starts from.

    Args:
        base: in place of the file's own.

    Raises:
        ConfigError: a file that cannot be read, an unknown key (the nearest is named), or settings no run can have.
    """
    path = found(path)
    read = read_yaml(path)
    with _errors_of(path):
        config = build(SweepConfig, read, "sweep")
        beside = path.parent / config.base
        values = asdict(load(base or (beside if beside.is_file() else found(config.base))))
        return Sweep(path, config, build(RunConfig, with_settings(values, config.settings, "settings"), "settings"))


def points_of(sweep: Sweep, common: RunConfig, out: Path, seeds: list[int]) -> list[Point]:
    """The runs, all points of the grid of one seed before the next.

    Args:
        common: ``sweep.common``, or what the command line made of it.

    Raises:
        ConfigError: a run that no configuration allows, two that are the same, or a varied key that ``common`` changes.
    """
    with _errors_of(sweep.path):
        for key in [*sweep.config.varied, "seed"]:
            if (given := setting(common, key)) != setting(sweep.common, key):
                raise ConfigError(f"{key}={given} was given, but the sweep itself varies {key}; change its file")
        points = [
            _point(sweep.config, common, out, seed, name, settings)
            for seed in seeds
            for name, settings in _combinations(sweep.config)
        ]
        _check_different(points)
    return points


def setting(config: RunConfig, key: str) -> Any:
    """The value at a dotted key; None where a mapping does not have it."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    return value


def _combinations(config: SweepConfig) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """(name in ``runs``, all settings) of every run of one seed."""
    for values in itertools.product(*config.grid.values()):
        for name, settings in config.runs.items() or [(None, {})]:
            yield name, dict(zip(config.grid, values, strict=True)) | settings


def _point(
    sweep: SweepConfig, common: RunConfig, out: Path, seed: int, name: str | None, settings: dict[str, Any]
) -> Point:
    values = with_settings(asdict(common), {**settings, "seed": seed}, _SETTINGS)
    given = ", ".join(f"{key}={value}" for key, value in settings.items())
    with _errors_of(given):
        config = build(RunConfig, values, "run")
    folder = out / _name(sweep, config, name)
    return Point(folder, config, {key: setting(config, key) for key in dict.fromkeys(["method", *sweep.varied])})


def _name(sweep: SweepConfig, config: RunConfig, name: str | None) -> str:
    """What tells a run from the others: its name in ``runs``, the grid's values, its seed."""
    last = [key.rpartition(".")[2] for key in sweep.grid]
    parts = [] if name is None else [_text(name)]
    for key in (key for key in sweep.varied if key in sweep.grid):
        short = key.rpartition(".")[2]
        label = "" if key == "method" else short if last.count(short) == 1 else key
        parts.append(f"{label}{_text(setting(config, key))}")
    joined = "-".join([*parts, f"seed{config.seed}"])
    if len(os.fsencode(joined)) > _LONGEST_NAME:
        raise ConfigError(f"{joined[:40]}... is too long for a folder's name; give these settings a name in `runs`")
    return joined


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "+".join(f"{key}{_text(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "+".join(map(_text, value))
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text)


def _check_different(points: list[Point]) -> None:
    by_config: dict[str, Point] = {}
    for point in points:
        other = by_config.setdefault(json.dumps(asdict(point.config), sort_keys=True), point)
        if other is not point:
            raise ConfigError(f"{other.name} and {point.name} are the same run; leave one of them out")
    names = [point.name for point in points]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"several runs would be named {sorted(twice)}; give them names of their own in `runs`")


@contextmanager
def _errors_of(what: object) -> Iterator[None]:
    """Begin the message of a ConfigError with what it is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}" if what else str(error)) from error
