"""Trained models from disk or the Hub: safetensors and JSON alone are read, no pickle, and no weight is made up."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from sgtm.config import ConfigError
from sgtm.model.attention import use_attention

_SHOWN = 3  # names in a message


def context_of(model: PreTrainedModel, unlimited: int = 2048) -> int:
    """The positions that a model has; ``unlimited`` where it can have any number (BLOOM)."""
    return int(getattr(model.config, "max_position_embeddings", None) or unlimited)


def load_checkpoint(path: str | Path, remedy: str, attention: str | None = None, **options: Any) -> PreTrainedModel:
    """The causal language model of a Hugging Face checkpoint.

    Args:
        path: a folder, or a name on the Hub.
        remedy: what ends the message of an error.
        attention: as ``use_attention`` takes it; where this machine cannot compute it, the default.
        options: of ``from_pretrained``.

    Raises:
        ConfigError: there is none, it cannot be read, or it lacks weights (which transformers would draw at random).
    """
    disable_progress_bar()  # of a second's loading
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # the libraries' own, of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path} cannot be loaded: {reason}; {remedy}") from error
    model, report = loaded
    names = [*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])]
    if names:
        shown = ", ".join(sorted(names)[:_SHOWN])
        raise ConfigError(f"{path} lacks {len(names)} weights of its own model ({shown} ...); {remedy}")
    if "attn_implementation" not in options:
        try:
            use_attention(model, attention)
        except (ValueError, ImportError) as error:  # the run was trained on another machine
            print(f"{path} is computed without attention={attention}: {str(error).splitlines()[0]}")
            use_attention(model)
    return model  # type: ignore[no-any-return]
