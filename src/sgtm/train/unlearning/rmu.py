"""RMU, Representation Misdirection for Unlearning (arXiv:2403.03218): what layer l says of the domain is made noise.

    L = E || h_l(x_forget) - c u_k ||^2 + alpha E || h_l(x_retain) - h_l^0(x_retain) ||^2

h_l(x) is what layer l gives at each token, h^0 that of the model as it was, u_k a random direction for domain k, of
unit length and non-negative entries, and c is ``steering``. Both are means over tokens and features.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sgtm.config import ConfigError, Stream, UnlearnConfig
from sgtm.model.architectures import architecture_of
from sgtm.model.sublayers import layers_of
from sgtm.train.unlearning import Batch, Objective

_PAPER = 7  # layer


class _EnoughError(Exception):
    """The layer has spoken; what comes after it need not be computed."""


def objective(model: PreTrainedModel, reference: Callable[[], PreTrainedModel], config: UnlearnConfig) -> Objective:
    layer = layer_of(model, config.layer)
    vectors = [control_vector(model, config.steering, config.seed, k) for k in range(len(config.domains))]
    frozen = reference()

    def loss(forget: Batch, retain: Batch, domain: int) -> Tensor:
        misled = _mean_square(hidden_states(model, layer, forget) - vectors[domain], forget)
        with torch.no_grad():
            before = hidden_states(frozen, layer, retain)
        kept = _mean_square(hidden_states(model, layer, retain) - before, retain)
        return misled + config.alpha * kept

    return loss


def layer_of(model: PreTrainedModel, layer: int | None) -> int:
    """The layer to steer, from 0: the paper's 7, or the last one of a smaller model, by default.

    Raises:
        ConfigError: there is no such layer.
    """
    number = len(layers_of(model, architecture_of(model)))
    if layer is None:
        return min(_PAPER, number - 1)
    if not 0 <= layer < number:
        raise ConfigError(f"layer={layer} is none of the model's {number}; use 0 to {number - 1}")
    return layer


def updated(model: PreTrainedModel, layer: int) -> list[str]:
    """Globs of what is updated by default: the weights of the MLPs of this layer and the two before it."""
    architecture = architecture_of(model)
    layers = range(max(0, layer - 2), layer + 1)
    paths = (*architecture.mlp_in, *((architecture.mlp_out,) if architecture.mlp_out else ()))
    return [f"*.{architecture.layers}.{i}.{path}.weight*" for i in layers for path in paths]


def control_vector(model: PreTrainedModel, steering: float, seed: int, domain: int) -> Tensor:
    """(hidden,) of length ``steering``: uniform entries, of the seed and the domain's number alone."""
    generator = torch.Generator().manual_seed(seed * 1000 + Stream.RMU * 100 + domain)
    vector: Tensor = torch.rand(model.config.hidden_size, generator=generator)
    vector = vector / vector.norm() * steering
    return vector.to(model.device)


def hidden_states(model: PreTrainedModel, layer: int, batch: Batch) -> Tensor:
    """(batch, seq, hidden): what layer ``layer`` gives; the layers after it are not computed."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])
        raise _EnoughError

    handle = layers_of(model, architecture_of(model))[layer].register_forward_hook(keep)
    try:
        model(input_ids=batch.input_ids, use_cache=False)
    except _EnoughError:
        pass
    finally:
        handle.remove()
    return found[0]


def _mean_square(difference: Tensor, batch: Batch) -> Tensor:
    """Mean over features and over the tokens that are no padding."""
    return difference.float().pow(2).mean(-1)[batch.labels != -100].mean()
