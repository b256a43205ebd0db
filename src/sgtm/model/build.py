"""A new model from a run's configuration."""

import dataclasses
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sgtm.config import ConfigError, ModelConfig, PartitionConfig, nearest
from sgtm.model.attention import use_attention
from sgtm.model.gpt_neo import GPTNeoForCausalLMSGTM, GPTNeoSGTMConfig
from sgtm.model.loading import load_checkpoint
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition, Units
from sgtm.model.surgery import expand


def build_model(
    config: ModelConfig,
    partition: PartitionConfig,
    strategy: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    new_tokens: int = 0,
    positions: int = 0,
) -> tuple[PreTrainedModel, SGTM | None]:
    """A model with random weights (seed torch first), or a trained one, and its masking; None without a ``strategy``.

    Models are stock Hugging Face ones, except that ``head_bias`` and ``init: paper`` need the GPT-Neo classes.
    Without a ``tokenizer`` the vocabulary is the family's own.

    Args:
        new_tokens: the last entries of the tokenizer that a trained model cannot know: its vocabulary grows by them.
        positions: a new model has at least as many.

    Raises:
        ConfigError: an unknown family or key, no such checkpoint, a vocabulary that does not fit the tokenizer, or
            units that the model does not have.
    """
    if config.from_pretrained is not None:
        return _attending(_build_pretrained(config, partition, strategy, tokenizer, new_tokens), config)
    if config.init == "paper" and not config.head_bias:
        raise ConfigError("model.init=paper is the paper's model, whose head has a bias; set head_bias: true as well")
    hf_config = _hf_config(config, tokenizer)
    if positions > getattr(hf_config, "max_position_embeddings", positions):
        hf_config.max_position_embeddings = positions
    try:
        return _attending(_build(hf_config, config, partition, strategy), config)
    except (ValueError, StrictDataclassError) as error:
        raise ConfigError(f"model or partition: {error}") from error


def _attending(built: tuple[PreTrainedModel, SGTM | None], config: ModelConfig) -> tuple[PreTrainedModel, SGTM | None]:
    """The model, its attention computed as configured."""
    try:
        use_attention(built[0], config.attention)
    except (ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.attention={config.attention!r}: {reason}; leave it out for the default") from error
    return built


def _build(
    hf_config: PreTrainedConfig, config: ModelConfig, partition: PartitionConfig, strategy: str | None
) -> tuple[PreTrainedModel, SGTM | None]:
    if config.head_bias:
        return _build_paper_model(hf_config, config, partition, strategy)
    return _masked(AutoModelForCausalLM.from_config(hf_config), config, partition, strategy)


def _build_pretrained(
    config: ModelConfig,
    partition: PartitionConfig,
    strategy: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    new_tokens: int,
) -> tuple[PreTrainedModel, SGTM | None]:
    if config.config or config.head_bias or config.init == "paper":
        raise ConfigError(
            "model.from_pretrained is a whole model; leave out model.config, head_bias and init, or lay a recipe with "
            "`model: {config: null, head_bias: false, init: hf}` over the file that sets them"
        )
    assert config.from_pretrained is not None
    model = load_checkpoint(
        config.from_pretrained, "give a folder or a name on the Hub as model.from_pretrained", dtype=torch.float32
    )
    if tokenizer is not None and model.config.vocab_size < len(tokenizer) - new_tokens:
        raise ConfigError(
            f"{config.from_pretrained} has {model.config.vocab_size} vocabulary entries and the data's tokenizer "
            f"{len(tokenizer) - new_tokens}; prepare the data with the checkpoint's own tokenizer"
        )
    if tokenizer is not None and new_tokens and model.config.vocab_size < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    try:
        return _masked(model, config, partition, strategy)
    except ValueError as error:
        raise ConfigError(f"model or partition: {error}") from error


def _masked(
    model: PreTrainedModel, config: ModelConfig, partition: PartitionConfig, strategy: str | None
) -> tuple[PreTrainedModel, SGTM | None]:
    """The model, with more units if so configured, and its masking."""
    if config.expand:
        if partition.layers is not None:
            raise ConfigError("model.expand adds units to every layer; leave out partition.layers")
        units = units_of(partition)
        heads, neurons = (sum(getattr(u, name) for u in units.values()) for name in ("heads", "neurons"))
        model = expand(model, heads, neurons, config.expand_init)
    return model, None if strategy is None else mask(model, partition, strategy)


def units_of(partition: PartitionConfig) -> dict[str, Units]:
    """The units of each domain."""
    if partition.domains:
        return {name: Units(**units) for name, units in partition.domains.items()}
    return dict.fromkeys(partition.names, Units(partition.heads, partition.neurons))


def mask(model: PreTrainedModel, partition: PartitionConfig, strategy: str) -> SGTM:
    """The masking of ``model`` that a configuration describes."""
    return SGTM(partition_of(model, partition), strategy, joint=partition.joint)


def partition_of(model: PreTrainedModel, partition: PartitionConfig) -> Partition:
    """The partition of ``model`` that a configuration describes, whether or not its method masks anything."""
    return Partition.of(model, layers=partition.layers, domains=units_of(partition))


def _build_paper_model(
    hf_config: PreTrainedConfig, config: ModelConfig, partition: PartitionConfig, strategy: str | None
) -> tuple[PreTrainedModel, SGTM | None]:
    if hf_config.model_type != "gpt_neo":
        raise ConfigError(
            f"model.head_bias and init=paper are the paper's GPT-Neo; model_type={hf_config.model_type!r} has neither: "
            "leave them out"
        )
    if partition.domains or config.expand:
        raise ConfigError("model.head_bias and init=paper have one domain of the model's own units; leave them out")
    width = hf_config.intermediate_size or 4 * hf_config.hidden_size
    model = GPTNeoForCausalLMSGTM(
        GPTNeoSGTMConfig(
            **{k: v for k, v in hf_config.to_dict().items() if k != "model_type"},
            retain_mlp_dim=width - partition.neurons,
            retain_attn_heads=hf_config.num_heads - partition.heads,
            masked_layers=[] if strategy is None else partition.layers,
            masking_strategy=strategy or "parameter_masking",
            split_masked_weights=True,
            joint=partition.joint,
            init=config.init,
        )
    )
    return model, None if strategy is None else model.sgtm


def _hf_config(config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedConfig:
    values = dict(config.config)
    family = values.pop("model_type", None)
    if family is None:
        raise ConfigError(
            "model.config.model_type is not set; give it (`sgtm families` lists them), or a checkpoint as "
            "model.from_pretrained"
        )
    if family not in CONFIG_MAPPING:
        hint = nearest(family, CONFIG_MAPPING.keys())
        raise ConfigError(f"model.config.model_type={family!r} is no family of transformers{hint}")
    _check_keys(family, values)
    if tokenizer is not None:
        _fit_vocabulary(values, tokenizer)
    try:
        if family == "gpt_neo" and "attention_types" not in values:
            values["attention_types"] = GPTNeoSGTMConfig(num_layers=values.get("num_layers", 24)).attention_types
        return AutoConfig.for_model(family, **values)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(f"model.config is no {family} configuration: {error}") from error


def _fit_vocabulary(values: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    size = values.setdefault("vocab_size", len(tokenizer))
    if size < len(tokenizer):
        raise ConfigError(
            f"model.config.vocab_size={size} is less than the {len(tokenizer)} entries of the data's tokenizer; "
            "leave it out, or make it larger"
        )
    values.setdefault("bos_token_id", tokenizer.eos_token_id)
    values.setdefault("eos_token_id", tokenizer.eos_token_id)


def _check_keys(family: str, values: dict[str, Any]) -> None:
    """transformers keeps unknown keys without a word: a misspelt size would be its default."""
    cls = CONFIG_MAPPING[family]
    known = {f.name for f in dataclasses.fields(cls)} | set(cls.attribute_map)
    for key in values:
        if key not in known:
            raise ConfigError(f"model.config: unknown key {key!r} for {family}{nearest(key, known)}")
