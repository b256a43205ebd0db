"""Which models an audit attacks: runs that differ by their seed alone, and models of the same data to compare with."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sgtm.config import ConfigError, dotted_keys, load, read_yaml
from sgtm.records import UNLEARN
from sgtm.train.sweep import setting

Models = dict[str, dict[str, Path]]  # model -> run -> where it is; the audited model is the first
_PLAIN = ("none", "filter", "strict_filter")  # methods without anything to remove afterwards
_SEED = re.compile(r"[-_]?seed\d+")


def models_of(runs: Sequence[Path], against: Sequence[str] = (), method: str = "") -> Models:
    """The audited model's runs and, by name, those of the models to compare with.

    Args:
        runs: of one method, which differ by their seeds; or folders of runs (sweeps), whose other methods are compared
            with.
        against: NAME=PATH, where PATH is a run, an unlearned model, an export, or a folder of them; a name may come
            several times, once for each seed.
        method: which of the ``runs`` are audited, where they have several; by default the one that has
            something to remove.

    Raises:
        ConfigError: no runs, several methods and none chosen, runs that differ by more than their seed, a name twice.
    """
    found = _by_name((method_of(run), run) for path in runs for run in _expanded(path))
    first = _audited(found, method)
    models = {first: found.pop(first), **found}
    for name, path in map(_named, against):
        if name == first:
            raise ConfigError(f"--against {name}=...: {name} is what the audited model is called; use another name")
        for run in _expanded(path):
            models.setdefault(name, []).append(run)
    for name, folders in models.items():
        _check_seeds(name, folders)
    return {name: _runs(name, folders) for name, folders in models.items()}


def method_of(path: Path) -> str:
    """What made the model at ``path``: the method of a run or an unlearning; of others the folder's name."""
    if (path / "config.yaml").is_file():
        return load(path / "config.yaml").method
    if (path / UNLEARN).is_file():
        return str(read_yaml(path / UNLEARN)["method"])
    return _SEED.sub("", path.name) or path.name


def _expanded(path: Path) -> list[Path]:
    """The path itself or, of a folder of models, these."""
    if any((path / name).is_file() for name in ("config.yaml", UNLEARN, "config.json", "model/config.json")):
        return [path]
    found = sorted({file.parent for name in ("config.yaml", UNLEARN) for file in path.glob(f"*/{name}")})
    if not found:
        raise ConfigError(f"{path} holds no model; give the folder of a run, of an export, or of several of them")
    return found


def _by_name(pairs: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name, path in pairs:
        found.setdefault(name, []).append(path)
    return found


def _audited(found: Mapping[str, list[Path]], method: str) -> str:
    chosen = [name for name in found if name == method or (not method and name not in _PLAIN)]
    if not found:
        raise ConfigError("give the runs to be audited: sgtm audit RUN [RUN ...] --out FOLDER")
    if len(found) == 1 and not method:
        return next(iter(found))
    if len(chosen) != 1:
        raise ConfigError(f"the runs are of the methods {', '.join(found)}; choose the audited one with --method")
    return chosen[0]


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (equals and path and re.fullmatch(r"[\w.+-]+", name)):
        raise ConfigError(f"--against {text!r} is no NAME=PATH; write, for example, none=runs/none-seed0")
    return name, Path(path)


def _check_seeds(name: str, folders: Sequence[Path]) -> None:
    """Raise a ConfigError where runs differ by more than their seeds (and by what they were tested on)."""
    runs = [(folder, load(folder / "config.yaml")) for folder in folders if (folder / "config.yaml").is_file()]
    keys = [key for key in dotted_keys() if key != "seed" and not key.startswith("evaluate.")]
    for folder, config in runs[1:]:
        if differs := [key for key in keys if setting(config, key) != setting(runs[0][1], key)]:
            raise ConfigError(
                f"{runs[0][0]} and {folder} are no seeds of one run: they differ in {', '.join(differs)}; audit them "
                f"one by one, or give them different names in --against ({name} is one name)"
            )


def _runs(model: str, folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their last name or, where two share it, by the last two."""
    for parts in (1, 2):
        named = {"-".join(folder.resolve().parts[-parts:]): folder for folder in folders}
        if len(named) == len(folders):
            return named
    raise ConfigError(f"{model} has a run twice, or several of one name: {', '.join(map(str, folders))}; rename them")
