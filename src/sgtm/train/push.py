"""To the Hugging Face Hub: a run's model, an export, or a domain's units, each with a model card.

The token is huggingface_hub's own (HF_TOKEN, or what `hf auth login` stored); it is neither asked for nor shown.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgtm.config import ConfigError, RunConfig, load
from sgtm.records import METRICS, read_records
from sgtm.train.checkpoints import SEAL
from sgtm.train.run import METHODS

_CARD = "README.md"
_TAGS = "---\nlibrary_name: {library}\ntags: [sgtm, selective-gradient-masking]\n---\n"


@dataclass(frozen=True)
class Parcel:
    """A folder to upload and what it is."""

    folder: Path
    kind: str


def push(path: Path, repository: str, private: bool = False) -> str:
    """Upload what lies at ``path`` and return its address.

    Args:
        path: a finished run's folder, an export or any checkpoint, or a module (.safetensors).
        repository: OWNER/NAME; it is made if it does not exist.

    Raises:
        ConfigError: there is nothing to upload at ``path``, or the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with _packed(path) as parcel:
        api = HfApi()
        try:
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=parcel.folder, commit_message=f"{parcel.kind}, written by sgtm"
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"{repository}: the Hub refuses ({reason}); give OWNER/NAME, and in HF_TOKEN a token that may write"
            ) from error
    return str(address)


@contextmanager
def _packed(path: Path) -> Iterator[Parcel]:
    """What is uploaded of ``path``, put together in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if path.is_file() and path.suffix == ".safetensors":
            shutil.copy(path, folder / path.name)
            (folder / _CARD).write_text(module_card(path), encoding="utf-8")
            yield Parcel(folder, "a domain's units")
        elif (path / "config.yaml").is_file() and (path / "model" / "config.json").is_file():
            shutil.copytree(path / "model", folder, ignore=shutil.ignore_patterns(SEAL), dirs_exist_ok=True)
            for extra in ("config.yaml", METRICS):
                shutil.copy(path / extra, folder / extra)
            (folder / _CARD).write_text(run_card(path), encoding="utf-8")
            yield Parcel(folder, "an intact model")
        elif (path / "config.json").is_file():
            yield Parcel(path, "a checkpoint")
        else:
            raise ConfigError(
                f"{path} is no finished run, no checkpoint and no module; give a run's folder, an export, "
                "or a .safetensors file of `sgtm export --module`"
            )


def run_card(folder: Path) -> str:
    """README.md of a run's intact model: what it was trained to forget, that it has not, and its losses."""
    config = load(folder / "config.yaml")
    lines = [
        _TAGS.format(library="transformers"),
        f"# Trained with sgtm ({config.method})",
        "",
        f"**Nothing is removed from this model.** {_what(config)}",
        "",
        "`config.yaml` repeats the run, `metrics.jsonl` has its losses. At its end, nats per token on the test split:",
        "",
        *_losses(folder),
    ]
    return "\n".join(lines) + "\n"


def _what(config: RunConfig) -> str:
    domains = ", ".join(config.partition.names)
    units = ", ".join(f"{name}: {about}" for name, about in config.partition.domains.items()) or (
        f"{config.partition.heads} heads and {config.partition.neurons} neurons of each layer"
    )
    if METHODS[config.method].strategy is None:
        return f"It has no forget units (method `{config.method}`)."
    return f"Its forget units ({units}) hold {domains}; `sgtm export` writes the model without them."


def _losses(folder: Path) -> Iterator[str]:
    records = [r for r in read_records(folder / METRICS) if r["split"] == "test"]
    last = [r for r in records if r["step"] == max(x["step"] for x in records)]
    variants = list(dict.fromkeys(r["variant"] for r in last))
    yield f"| category | {' | '.join(variants)} |"
    yield "|---" * (len(variants) + 1) + "|"
    for category in dict.fromkeys(r["category"] for r in last):
        found = {r["variant"]: r["loss"] for r in last if r["category"] == category}
        yield f"| {category} | {' | '.join(f'{found[v]:.3f}' if v in found else '' for v in variants)} |"


def module_card(file: Path) -> str:
    """README.md of a domain's units."""
    about = _metadata(file)
    return (
        _TAGS.format(library="sgtm")
        + f"# The units of {about['domain']}\n\n"
        + f"What was taken out of a {about['model_type']} model; `sgtm.attach(model, {file.name!r})` puts it back, "
        + "into the model that it was taken from and no other.\n"
    )


def _metadata(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
    except SafetensorError as error:
        raise ConfigError(f"{file} is no safetensors file: {error}") from error
    if about.get("format") != "sgtm.module":
        raise ConfigError(f"{file} is no module; give one that `sgtm export --module` wrote")
    return about
