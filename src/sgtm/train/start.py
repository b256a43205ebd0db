"""What attacks begin with: a model whose forget units are removed, and the data to attack it with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from sgtm.config import DOMAINS, Category, ConfigError, DataConfig, load, nearest
from sgtm.data.mixture import PreparedData, Rows
from sgtm.data.tokenize import read_manifest
from sgtm.evaluate.loss import evaluate_loss
from sgtm.model.export import without_units
from sgtm.train.checkpoints import checkpoints_of
from sgtm.train.opening import Opened, open_model
from sgtm.train.run import check_context, load_model

Units = Literal["absent", "zero", "init"]
_NOT_DOMAINS = ("adjacent", "retain")


@dataclass(frozen=True)
class Matched:
    """The checkpoint whose retain loss (nats per token, ablated) is nearest to that of another model."""

    path: Path
    step: int
    loss: float
    wanted: float


def start_model(opened: Opened, units: Units = "absent", without: Sequence[str] = (), seed: int = 0) -> PreTrainedModel:
    """The opened model without its forget units, on the device; ``opened`` is used up.

    All three compute the same function at first. Under training they differ: ``absent`` units are cut out (those that a
    family's configuration cannot leave out stay, and are zero); ``zero`` ones stay and never get a gradient, as both
    sides of a unit are zero; ``init`` ones have fresh input weights, N(0, initializer_range), and can learn. A model
    that has no forget units is taken as it is.

    Raises:
        ConfigError: an unknown domain, or one of a model that has no forget units.
    """
    if opened.sgtm is None:
        if without:
            raise ConfigError(f"{opened.path} has no forget units, so without={','.join(without)} has no meaning")
        return on_device(opened.model)
    sgtm = opened.sgtm
    if units == "absent":
        return on_device(without_units(opened.model, sgtm, without))
    generator = torch.Generator().manual_seed(seed)
    sgtm.partition.ablate(*without, reinit=units == "init", generator=generator)
    return on_device(opened.model)


def on_device(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` where it computes fastest."""
    model.to(torch.device(_device()))  # type: ignore[arg-type]
    return model


def in_precision(precision: str) -> torch.autocast:
    """Meanwhile models ``on_device`` compute in fp32 or bf16."""
    return torch.autocast(_device(), torch.bfloat16, enabled=precision == "bf16")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def data_for(opened: Opened, given: DataConfig, other: str | None = None) -> PreparedData:
    """The data that is given, or else that of the opened run or, if that is none, of the run ``other``.

    Raises:
        ConfigError: none of these; or data with another tokenizer, or longer rows, than the model's.
    """
    config = given
    if not (given.path or given.parts):
        if opened.config is not None:
            config = opened.config.data
        elif other is not None and (Path(other) / "config.yaml").is_file():
            config = load(Path(other) / "config.yaml").data
        else:
            raise ConfigError(f"{opened.path} is no run, so its data is not known; give --data.path DIR")
    data = PreparedData.load(config, _domains_of(config))
    check_fits(opened, data)
    return data


def check_fits(opened: Opened, data: PreparedData) -> None:
    """Raise a ConfigError if ``data`` has another tokenizer, or longer rows, than the model's."""
    known = data.tokenizer.get_vocab() if opened.tokenizer is None else opened.tokenizer.get_vocab()
    if not data.tokenizer.get_vocab().items() <= known.items():
        raise ConfigError(
            f"the data was prepared with another tokenizer than that of {opened.path}; prepare it with the model's own"
        )
    if opened.model.config.vocab_size < len(data.tokenizer):
        raise ConfigError(
            f"{opened.path} has {opened.model.config.vocab_size} vocabulary entries and the data's tokenizer "
            f"{len(data.tokenizer)}; prepare the data with the model's own tokenizer"
        )
    check_context(opened.model, data)


def words(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def domain_of(data: PreparedData, name: str) -> Category:
    """The domain called ``name``, or the only one.

    Raises:
        ConfigError: no such domain, or several and none named.
    """
    domains = data.train.domains
    if name and name not in domains:
        raise ConfigError(f"{name!r} is no domain{nearest(name, domains)} (domains: {', '.join(domains)})")
    if not name and len(domains) > 1:
        raise ConfigError(f"the data has the domains {', '.join(domains)}; choose one with --domain")
    return name or domains[0]


def test_rows(data: PreparedData, rows: int | None) -> dict[Category, Rows]:
    """Test rows by category, at most ``rows`` of each: the same ones for every model and seed."""
    return {category: data.test.of(category, rows) for category in data.test.present}


def match(start: Path, like: Path, given: DataConfig, rows: int | None, tolerance: float, batch_size: int) -> Matched:
    """The checkpoint of ``start`` whose retain loss is nearest to that of ``like``; both ablated, not calibrated.

    Args:
        start: a run, or a folder of runs (a sweep).
        given: the data, by default that of the (first) run.
        rows: test rows that losses are measured on, at most.
        tolerance: in nats per token.

    Raises:
        ConfigError: no run there, or none of its checkpoints is as near as that.
    """
    models = {path: (folder, step) for folder in _runs_in(start) for step, path in _models_of(folder).items()}
    if not models:
        raise ConfigError(f"{start} holds no run with a model or checkpoints; give a run's folder, or a sweep's")
    first, (folder, _) = next(iter(models.items()))
    retain = test_rows(data_for(_open_checkpoint(folder, first), given), rows)["retain"]
    wanted = _loss(open_model(like), retain, batch_size)
    losses = {path: _loss(_open_checkpoint(folder, path), retain, batch_size) for path, (folder, _) in models.items()}
    nearest_path = min(losses, key=lambda path: abs(losses[path] - wanted))
    found = Matched(nearest_path, models[nearest_path][1], losses[nearest_path], wanted)
    if abs(found.loss - wanted) > tolerance:
        raise ConfigError(
            f"no checkpoint of {start} has the retain loss {wanted:.4f} of {like}: the nearest is {found.path} with "
            f"{found.loss:.4f}; keep more of them (train.keep_checkpoints: null, train.save_every), train longer, or "
            f"allow more than match_tolerance={tolerance:g}"
        )
    return found


def open_matched(found: Matched) -> Opened:
    """The model of a matched checkpoint."""
    folder = found.path.parent if found.path.name == "model" else found.path.parent.parent
    return _open_checkpoint(folder, found.path)


def _open_checkpoint(folder: Path, path: Path) -> Opened:
    config = load(folder / "config.yaml")
    return Opened(path, *load_model(config, path), config, None)


def _loss(opened: Opened, rows: Rows, batch_size: int) -> float:
    """In nats per token, ablated."""
    return evaluate_loss(on_device(opened.model), rows, opened.sgtm, None, batch_size).mean


def _runs_in(start: Path) -> list[Path]:
    if (start / "config.yaml").is_file():
        return [start]
    return sorted(path.parent for path in start.glob("*/config.yaml"))


def _models_of(folder: Path) -> dict[int, Path]:
    """Step -> model of one run."""
    found = checkpoints_of(folder / "checkpoints")
    if (folder / "model" / "config.json").is_file():
        found[load(folder / "config.yaml").train.steps] = folder / "model"
    return found


def _domains_of(config: DataConfig) -> tuple[str, ...]:
    """What the data calls its domains."""
    if config.parts:
        known: Mapping[str, object] = config.parts
    elif not Path(config.path).is_dir():
        return DOMAINS  # reading it says what is wrong
    else:
        known = read_manifest(Path(config.path))["counts"]["train"]
    return tuple(category for category in known if category not in _NOT_DOMAINS) or DOMAINS
