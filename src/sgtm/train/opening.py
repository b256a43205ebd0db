"""A trained model of any kind, opened to be changed or attacked: a run's, an export, an unlearned one, a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sgtm.config import ConfigError, RunConfig
from sgtm.data.tokenizer import load_tokenizer
from sgtm.model.gpt_neo import GPTNeoForCausalLMSGTM
from sgtm.model.loading import load_checkpoint
from sgtm.model.masking import SGTM
from sgtm.train.run import load_run


@dataclass(frozen=True)
class Opened:
    """A causal language model and what is known of it.

    Args:
        path: where it was found.
        sgtm: its masking, where it has forget units (a run's, or a split GPT-Neo's).
        config: the run's configuration, where it is a run's.
        tokenizer: the model's own; None where the checkpoint has none.
    """

    path: Path
    model: PreTrainedModel
    sgtm: SGTM | None
    config: RunConfig | None
    tokenizer: PreTrainedTokenizerBase | None


def open_model(path: Path) -> Opened:
    """Open the model at ``path``, on the CPU.

    Args:
        path: a finished run's folder; a folder with a model/ in it (what unlearning and relearning write); or a
            Hugging Face checkpoint (an export, or any other).

    Raises:
        ConfigError: none of these, or it cannot be loaded.
    """
    if (path / "config.yaml").is_file():
        config, model, sgtm = load_run(path)
        return Opened(path, model, sgtm, config, _tokenizer(path / "model"))
    for folder in (path / "model", path):
        if (folder / "config.json").is_file():
            model = load_checkpoint(folder, "write the checkpoint anew")
            own = model.sgtm if isinstance(model, GPTNeoForCausalLMSGTM) and model.config.layers else None
            return Opened(path, model, own, None, _tokenizer(folder))
    raise ConfigError(
        f"{path} holds no model; give the folder of a finished run, of an export, or of a Hugging Face checkpoint"
    )


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    return load_tokenizer(str(folder)) if (folder / "tokenizer_config.json").is_file() else None
