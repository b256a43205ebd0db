"""GPT-Neo with the method built in: ``model(..., sgtm_mode="forget")``, and its masks in the model's configuration.

The stock Hugging Face model with three additions: a mode that each masked block is told (so that activation
checkpointing replays it), split input projections on request, and a trained bias of the head. For any other family,
and for new code, ``sgtm.batch(mode)`` of ``sgtm.model.masking`` does the same from outside::

    config = GPTNeoSGTMConfig(num_layers=12, hidden_size=512, num_heads=32, retain_mlp_dim=1984, retain_attn_heads=31)
    model = GPTNeoForCausalLMSGTM(config)
    model(input_ids=ids, labels=ids, sgtm_mode="forget").loss.backward()
    model.adjust_gradients(sgtm_mode="forget")
    optimizer.step()
    model.ablate()
"""
# mypy: disable-error-code="no-untyped-call"
# (transformers declares itself typed, but most of its functions are not.)

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Literal, get_args

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM, GPTNeoModel
from transformers import initialization as init
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock, GPTNeoPreTrainedModel

from sgtm.model.architectures import ARCHITECTURES
from sgtm.model.attention import give_attention
from sgtm.model.masking import SGTM, Mode
from sgtm.model.partition import Partition, Units
from sgtm.model.split_linear import SplitLinearOut
from sgtm.model.strategies import STRATEGIES

Split = Literal["default", "retain", "forget", "joint"]
SPLITS: tuple[Split, ...] = get_args(Split)
_ROW = ARCHITECTURES["gpt_neo_sgtm"]


@strict
class GPTNeoSGTMConfig(GPTNeoConfig):
    """A ``GPTNeoConfig`` that also says which units are forget units and what a forget batch may change.

    ``attention_types`` may be left out for any number of layers: global and local attention alternate.

    Args:
        retain_mlp_dim: retained MLP neurons of a masked layer, the first ones (d_MLP - d_forget of arXiv:2512.05648
            section 3). None = all: no forget neurons.
        retain_attn_heads: retained attention heads of a masked layer, the first ones (h - h_forget). None = all.
        masked_layers: indices of the layers with forget units. None = all; ``[]`` = none: an ordinary model, in
            which nothing is masked.
        masking_strategy: a name of ``STRATEGIES``.
        split_masked_weights: hold q, k, v and c_fc of masked layers as ``weight_retain`` and ``weight_forget``. Nothing
            else changes; but a checkpoint of whole weights does not load into a split model.
        sgtm_mask_embeddings: forget batches leave wte, wpe and the norms of masked blocks alone as well (the paper's
            Wikipedia runs); ln_f and the head's bias stay trainable. A tied head is wte.
        joint: exactly which joint parameters forget batches leave alone, as ``SGTM(joint=...)`` takes them; given, it
            stands in place of ``sgtm_mask_embeddings``.
        init: ``hf`` starts every projection from N(0, initializer_range) with zero biases; ``paper`` starts *split*
            layers as ``nn.Linear`` does, weights and biases from U(-1/sqrt(in), 1/sqrt(in)).

    Raises:
        ValueError: an unknown strategy or init, or counts or layers out of range.
    """

    model_type = "gpt_neo_sgtm"

    retain_mlp_dim: int | None = None
    retain_attn_heads: int | None = None
    masked_layers: list | tuple | None = None  # type: ignore[type-arg]
    masking_strategy: str = "parameter_masking"
    split_masked_weights: bool = False
    sgtm_mask_embeddings: bool = False
    joint: list | tuple | None = None  # type: ignore[type-arg]
    init: str = "hf"

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)  # "gpt_neo", where the values come from a GPTNeoConfig
        alternate = self.attention_types is None
        super().__post_init__(**kwargs)
        if alternate:
            layers = (["global", "local"] * self.num_layers)[: self.num_layers]
            self.attention_types, self.attention_layers = [[layers, 1]], layers
        self._check_values()

    @classmethod
    def of(cls, config: GPTNeoConfig) -> "GPTNeoSGTMConfig":
        """``config``, or its values as a ``GPTNeoSGTMConfig``, ready to build a model from.

        Raises:
            ValueError: a bad value, or nothing would be masked though ``masked_layers`` is not ``[]``.
        """
        if not isinstance(config, cls):
            config = cls(**(config.to_dict() | {"attn_implementation": config._attn_implementation}))
        config._check_values()  # once more: attributes may have been set since
        if config.num_forget == (0, 0) and config.layers:
            raise ValueError(
                f"retain_attn_heads={config.retain_attn_heads} and retain_mlp_dim={config.retain_mlp_dim} leave no "
                f"forget units, so nothing would be masked; use less than {config.num_heads} heads or {config.mlp_dim} "
                "neurons, or masked_layers=[] for an ordinary model"
            )
        return config

    @property
    def mlp_dim(self) -> int:
        """MLP neurons of a layer."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def num_forget(self) -> tuple[int, int]:
        """(heads, neurons) to forget in each masked layer."""
        kept = ((self.retain_attn_heads, self.num_heads), (self.retain_mlp_dim, self.mlp_dim))
        heads, neurons = (0 if retain is None else total - retain for retain, total in kept)
        return heads, neurons

    @property
    def layers(self) -> list[int]:
        """Indices of the layers with forget units."""
        return list(range(self.num_layers) if self.masked_layers is None else self.masked_layers)

    @property
    def frozen_joint(self) -> list[str]:
        """Joint parameters that forget batches leave alone: names for ``SGTM(joint=...)``."""
        if not self.layers:
            return []
        if self.joint is not None:
            return list(self.joint)
        return ["embeddings", "norms"] if self.sgtm_mask_embeddings else []

    def _check_values(self) -> None:
        for name, known in (("masking_strategy", tuple(STRATEGIES)), ("init", ("hf", "paper"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {list(known)}")
        for name, total in (("retain_attn_heads", self.num_heads), ("retain_mlp_dim", self.mlp_dim)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= total:
                raise ValueError(
                    f"{name}={value} must count the retained of {total}; use 1 to {total - 1}, or None to forget none"
                )
        last = self.num_layers - 1
        if any(i not in range(last + 1) for i in self.layers) or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"masked_layers={self.masked_layers} must be different indices from 0 to {last}")


class GPTNeoBlockSGTM(GPTNeoBlock):
    """A decoder block with forget units.

    The mode comes as an argument, because activation checkpointing runs ``forward`` a second time during the backward
    pass: with the arguments that it had, but when the model's mode may be another.
    """

    sgtm: SGTM  # the model's

    @classmethod
    def of(cls, block: nn.Module, config: GPTNeoSGTMConfig, layer: int) -> "GPTNeoBlockSGTM":
        """A masked block of the very parameters of the stock ``block``, split where ``config`` says so."""
        with torch.device("meta"):  # draws no random numbers, allocates nothing
            masked = cls(config, layer)
        for name, child in block.named_children():
            setattr(masked, name, child)
        if config.split_masked_weights:
            heads, neurons = config.num_forget
            _split(masked, _ROW.attn_in, heads * (config.hidden_size // config.num_heads), config.init)
            _split(masked, _ROW.mlp_in, neurons, config.init)
        return masked

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("sgtm_mode", self.sgtm.mode)
        return super().__call__(*args, **kwargs)

    def forward(self, hidden_states: torch.Tensor, *args: Any, sgtm_mode: Mode = "default", **kwargs: Any) -> Any:
        """``hidden_states`` (batch, seq, hidden) -> (the same shape, attention weights)."""
        with self.sgtm.forward(sgtm_mode):
            return super().forward(hidden_states, *args, **kwargs)


def _split(block: GPTNeoBlockSGTM, paths: tuple[str, ...], forget: int, start: str) -> None:
    """Split the last ``forget`` outputs off the linear layers at ``paths``."""
    for path in paths if forget else ():
        linear: Any = block.get_submodule(path)
        split: Any = SplitLinearOut.from_linear(linear, linear.out_features - forget)
        if start == "hf":  # marked, it keeps the values that it took over
            split._is_hf_initialized = getattr(linear, "_is_hf_initialized", False)
        block.set_submodule(path, split)


def _takes_mode(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` of a stock model with one more argument, ``sgtm_mode``, which its signature shows."""

    @wraps(forward)
    def under_mode(self: "GPTNeoPreTrainedModelSGTM", *args: Any, sgtm_mode: Mode | None = None, **kwargs: Any) -> Any:
        with self.sgtm.forward(self.sgtm.mode if sgtm_mode is None else sgtm_mode):
            return forward(self, *args, **kwargs)

    signature = inspect.signature(forward)
    *stock, rest = signature.parameters.values()
    mode = inspect.Parameter("sgtm_mode", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Mode | None)
    under_mode.__signature__ = signature.replace(parameters=[*stock, mode, rest])  # type: ignore[attr-defined]
    return under_mode


class GPTNeoPreTrainedModelSGTM(GPTNeoPreTrainedModel):
    """What the base model and the language model share: masks, ablation, parameters by owner.

    ``forward`` takes ``sgtm_mode`` ("default", "retain" or "forget"). Left out, it is the mode that
    ``sgtm.batch(mode)`` or ``sgtm.forward(mode)`` holds, else "default".
    """

    config_class = GPTNeoSGTMConfig
    _no_split_modules = ["GPTNeoBlock", "GPTNeoBlockSGTM"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flex_attn = True
    sgtm: SGTM

    def adjust_gradients(self, sgtm_mode: Mode | None = None) -> None:
        """Zero the gradients that a batch of ``sgtm_mode`` may not change; call it after ``backward()``.

        Gradients of earlier batches that are accumulated in the same parameters go as well: run and adjust the forget
        batches of an optimizer step first, or use ``sgtm.batch``, which sets them aside.

        Raises:
            ValueError: an unknown mode.
        """
        self.sgtm.mask_gradients(self.sgtm.mode if sgtm_mode is None else sgtm_mode)

    def ablate(self, trainable: bool = False) -> None:
        """Remove what the forget units know: theta_forget := 0 (arXiv:2512.05648 section 3).

        Args:
            trainable: draw the forget units' input side anew. The function is the ablated one all the same, but the
                units can learn again.
        """
        self.sgtm.partition.ablate(reinit=trainable)

    def named_parameters_split(self, split: Split = "default") -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of one owner.

        Args:
            split: ``retain`` or ``forget``: parameters that belong to such units as a whole. ``joint``: the others, of
                both kinds (weights of output projections; without ``split_masked_weights`` also of input projections)
                or of no unit (biases of output projections among them). ``default``: all.

        Raises:
            ValueError: an unknown split.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is none of {list(SPLITS)}")
        partition = self.sgtm.partition
        retain = {s.name for s in partition.retain if not s.is_output_bias}
        forget = {s.name for s in partition.forget}
        owners = dict.fromkeys(retain - forget, "retain") | dict.fromkeys(forget - retain, "forget")
        prefix = self._prefix()
        named = self.named_parameters()
        return ((n, p) for n, p in named if split in ("default", owners.get(prefix + n, "joint")))

    def parameters_split(self, split: Split = "default") -> Iterator[nn.Parameter]:
        """The parameters of ``named_parameters_split``."""
        return (p for _, p in self.named_parameters_split(split))

    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, SplitLinearOut):
            super()._init_weights(module)
            return
        for p in module.parameters():
            if self.config.init == "paper":
                bound = module.in_features**-0.5
                init.uniform_(p, -bound, bound)
            elif p.ndim == 2:
                init.normal_(p, std=self.config.initializer_range)
            else:
                init.zeros_(p)

    def _mask(self, joint: list[str]) -> None:
        """Give this model and its masked blocks one SGTM."""
        sgtm = SGTM(_partition(self), self.config.masking_strategy, joint)
        for module in self.modules():
            if isinstance(module, GPTNeoBlockSGTM | GPTNeoPreTrainedModelSGTM):
                module.sgtm = sgtm

    def _prefix(self) -> str:
        """Path of this model below the one that is partitioned, with a dot at its end."""
        return "" if self.sgtm.partition.model is self else f"{self.base_model_prefix}."


def _partition(model: GPTNeoPreTrainedModelSGTM) -> Partition:
    config = model.config
    if not config.layers:
        return Partition(model, _ROW, {"forget": Units()}, (), (), (), ())
    heads, neurons = config.num_forget
    return Partition.of(model, heads, neurons, config.layers)


class GPTNeoModelSGTM(GPTNeoPreTrainedModelSGTM, GPTNeoModel):
    """The decoder. Layers with forget units are ``GPTNeoBlockSGTM``, the others stock; names are Hugging Face's.

    Args:
        config: a ``GPTNeoSGTMConfig``, or a ``GPTNeoConfig`` that carries the same fields.
        alone: False where a language model around it gives it its ``sgtm``.

    Raises:
        ValueError: a bad value in ``config``, or nothing would be masked.
    """

    def __init__(self, config: GPTNeoConfig, *, alone: bool = True) -> None:
        config = GPTNeoSGTMConfig.of(config)
        super().__init__(config)  # the stock model first, so that one seed gives the same weights as there
        self.masked_layers = config.layers
        for i in self.masked_layers:
            self.h[i] = GPTNeoBlockSGTM.of(self.h[i], config, i)
        give_attention(self)
        self.init_weights()  # of what is not initialised yet: the paper's split layers
        if alone:  # ``joint`` may be a language model's
            root, head = f"{self.base_model_prefix}.", ("head", _ROW.head.removesuffix(".*"))
            self._mask([name.removeprefix(root) for name in config.frozen_joint if not name.startswith(head)])

    forward = _takes_mode(GPTNeoModel.forward)


class GPTNeoForCausalLMSGTM(GPTNeoPreTrainedModelSGTM, GPTNeoForCausalLM):
    """The language model; its head has a bias that starts at zero and is trained, as in the paper.

    ``sgtm`` is shared with ``transformer``. Trains with ``sgtm_mode=`` and ``adjust_gradients``, or with
    ``with model.sgtm.batch(mode): model(...).loss.backward()``: the gradients are the same.

    Args:
        config: a ``GPTNeoSGTMConfig``, or a ``GPTNeoConfig`` that carries the same fields.

    Raises:
        ValueError: a bad value in ``config``, or nothing would be masked.
    """

    def __init__(self, config: GPTNeoConfig) -> None:
        config = GPTNeoSGTMConfig.of(config)
        super(GPTNeoForCausalLM, self).__init__(config)  # not GPTNeoForCausalLM's own: it would build a stock decoder
        self.transformer = GPTNeoModelSGTM(config, alone=False)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)  # draws as many numbers as there
        self.lm_head.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.post_init()
        self._mask(config.frozen_joint)

    forward = _takes_mode(GPTNeoForCausalLM.forward)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        super().tie_weights(*args, **kwargs)
        if "sgtm" in vars(self):  # loading ties the head after __init__, and then it is joint no more: it is wte
            self.sgtm.frozen_joint = self.sgtm.partition.select_joint(self.config.frozen_joint)


def _refuse_mode(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a GPT-Neo model; ``sgtm_mode`` is refused where it would be swallowed (docs/decisions/004)."""
    if "sgtm_mode" in kwargs and not isinstance(model, GPTNeoPreTrainedModelSGTM):
        raise TypeError(
            f"{type(model).__name__} takes no sgtm_mode={kwargs['sgtm_mode']!r}; it is the stock model: hold the mode "
            "around forward and backward, `with sgtm.batch(mode): model(...).loss.backward()`, or make a "
            "GPTNeoForCausalLMSGTM of a GPTNeoSGTMConfig (from a plain GPTNeoConfig the Auto classes make stock models)"
        )
    return nn.Module.__call__(model, *args, **kwargs)


GPTNeoPreTrainedModel.__call__ = _refuse_mode  # type: ignore[method-assign]
AutoConfig.register(GPTNeoSGTMConfig.model_type, GPTNeoSGTMConfig)
AutoModel.register(GPTNeoSGTMConfig, GPTNeoModelSGTM)
AutoModelForCausalLM.register(GPTNeoSGTMConfig, GPTNeoForCausalLMSGTM)
