"""How hard documents are: their loss under a small reference model, for label noise that goes with it."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import PreTrainedModel

import sgtm.model.gpt_neo  # noqa: F401  (its classes load by name)
from sgtm.config import ConfigError
from sgtm.data.mixture import Rows
from sgtm.data.scores import score_file, write_scores
from sgtm.data.scoring import load_training
from sgtm.data.tokenizer import load_tokenizer, tokenizer_hash
from sgtm.evaluate.loss import evaluating, numbered_batches
from sgtm.model.loading import load_checkpoint


def score_by_loss(folder: Path, model: str, batch_size: int = 64) -> Path:
    """Write the mean loss (nats per token) of every training document of ``folder`` under a reference model.

    Args:
        folder: prepared data.
        model: a run's folder, or a checkpoint (a folder or a name on the Hub) with the data's own tokenizer.

    Raises:
        ConfigError: no such model, another tokenizer, or losses that are there already.
    """
    score_file(folder, "loss")
    data = load_training(folder)
    path = Path(model) / "model"
    name = str(path) if path.is_dir() else model
    if tokenizer_hash(load_tokenizer(name)) != tokenizer_hash(data.tokenizer):
        raise ConfigError(
            f"model={model} has another tokenizer than {folder}; train a reference model on the same data"
        )
    reference = load_checkpoint(name, "give a run's folder or a checkpoint as --model")
    reference.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    documents, losses = document_losses(reference, data.train, batch_size)
    return write_scores(folder, "loss", documents, losses, {"model": model, "parameters": reference.num_parameters()})


@torch.no_grad()
def document_losses(
    model: PreTrainedModel, rows: Rows, batch_size: int = 64
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(documents,) numbers and mean losses in nats per token; of all their rows together.

    A document without a token to predict gets the mean of all others.
    """
    sums, counts = np.zeros(len(rows)), np.zeros(len(rows))
    with evaluating(model, None):
        for found, input_ids, labels in numbered_batches(model, rows, batch_size):
            logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
            targets = labels[:, 1:]
            of_tokens = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
            sums[found] = of_tokens.view(targets.shape).double().sum(1).cpu().numpy()
            counts[found] = (targets != -100).sum(1).cpu().numpy()
    numbers, document = np.unique(rows.documents, return_inverse=True)
    total, num_tokens = np.bincount(document, sums), np.bincount(document, counts)
    mean = total.sum() / max(num_tokens.sum(), 1)
    return numbers, np.where(num_tokens > 0, total / np.maximum(num_tokens, 1), mean)
