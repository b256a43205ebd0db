"""GPT-Neo's attention through transformers' table of attention functions: sdpa, flex_attention, flash_attention_2.

The library gives GPT-Neo only ``eager``, which makes (heads, seq, seq) weights in fp32, and a flash attention that
forgets the window of its local layers. Here each of the library's functions computes

    softmax(q k^T + mask) v,    without 1/sqrt(head_dim), a local layer seeing the last ``window_size`` positions alone.

``eager`` stays the library's own, bit for bit. Other families go through the table already.
"""
# mypy: disable-error-code="no-untyped-call"
# (transformers declares itself typed, but most of its functions are not.)

import copy
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_neo.modeling_gpt_neo import GPT_NEO_ATTENTION_CLASSES, GPTNeoSelfAttention

from sgtm.model.activation import use_activation

_DEFAULT = "sdpa"
_BLOCK = 64  # queries at a time on a processor, as measured
_HEAD_MULTIPLE, _WIDEST_HEAD = 8, 192  # features of a head that torch's flash kernels take on every such GPU
Mask = Tensor | BlockMask | None
Attend = Callable[..., tuple[Tensor, Tensor | None]]


class GPTNeoAttention(GPTNeoSelfAttention):
    """The stock attention, computed by ``config._attn_implementation``, whatever that is at the time."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Mask = None,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> Any:
        """``hidden_states`` (batch, seq, hidden) -> (the same shape, weights or None).

        Raises:
            ValueError: weights are asked of a function that makes none.
        """
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                f"output_attentions=True: {self.config._attn_implementation} makes no attention weights; "
                "call use_attention(model, 'eager') first"
            )
        return super().forward(hidden_states, attention_mask, layer_past, use_cache, output_attentions, **kwargs)

    def _attn(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Mask = None) -> Any:
        """(batch, heads, seq, head_dim) each -> (the same shape, weights or None)."""
        name = self.config._attn_implementation
        if name == "eager":
            return super()._attn(query, key, value, attention_mask)
        num_queries, num_keys = query.shape[-2], key.shape[-2]
        is_local = self.attention_type == "local" and num_keys > self.config.window_size
        attend = partial(
            ALL_ATTENTION_FUNCTIONS[name],
            self,
            dropout=self.attn_dropout.p if self.training else 0.0,
            scaling=1.0,
            sliding_window=self.config.window_size if is_local else None,
        )
        if name == "sdpa" and _pays_in_fp32(query):
            attend = partial(_in_fp32, attend)
        if name == "sdpa" and _pays_in_blocks(query, num_keys):
            parts = self._in_blocks(attend, query, key, value, attention_mask, is_local)
            return torch.cat(list(parts), 1).transpose(1, 2), None
        if name == "sdpa" and is_local and attention_mask is None and self._can_slide(query, num_keys):
            return _slide(query, key, value, self.config.window_size), None
        if is_local and not name.startswith("flash"):
            attention_mask = self._windowed(attention_mask, num_queries, num_keys, query.device)
        out, weights = attend(query, key, value, attention_mask)  # (batch, seq, heads, head_dim)
        return out.transpose(1, 2), weights

    def _in_blocks(
        self, attend: Attend, query: Tensor, key: Tensor, value: Tensor, mask: Any, is_local: bool
    ) -> Iterator[Tensor]:
        """Some queries at a time with no more than the keys that they may see; (batch, some, heads, head_dim) each.

        A processor's sdpa skips nothing of what a mask or causality hides; ``mask`` is a tensor or None.
        """
        for start in range(0, query.shape[-2], _BLOCK):
            stop = min(start + _BLOCK, query.shape[-2])
            first = max(0, start - self.config.window_size + 1) if is_local else 0
            seen = self.bias[:, :, start:stop, first:stop]
            seen = seen if mask is None else _both(mask[..., start:stop, first:stop], seen)
            yield attend(query[:, :, start:stop], key[:, :, first:stop], value[:, :, first:stop], seen)[0]

    def _can_slide(self, query: Tensor, num_keys: int) -> bool:
        """Whether a kernel that skips what is beyond the window computes this: whole sequences in half precision."""
        half = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and _has_flash(query.device)
        is_dropped = self.training and self.attn_dropout.p > 0
        return half and query.shape[-2] == num_keys and query.shape[-1] <= _WIDEST_HEAD and not is_dropped

    def _windowed(self, mask: Mask, num_queries: int, num_keys: int, device: torch.device) -> Mask:
        """``mask`` of a global layer, and beyond the window nothing; queries are the last positions of the keys."""
        if isinstance(mask, BlockMask):
            return self._windowed_blocks(mask, num_queries, num_keys, device)
        seen = self.bias[:, :, num_keys - num_queries : num_keys, :num_keys]  # (1, 1, queries, keys)
        return seen if mask is None else _both(mask, seen)

    def _windowed_blocks(self, mask: BlockMask, num_queries: int, num_keys: int, device: torch.device) -> BlockMask:
        """Made once a forward pass and kept on the mask that all layers share."""
        if "sgtm_windowed" not in vars(mask):
            window, offset = self.config.window_size, num_keys - num_queries

            def is_near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return (query + offset - key).lt(window)

            size = int(mask.kv_num_blocks.shape[0])
            mods = and_masks(mask.mask_mod, is_near)
            blocks = create_block_mask(mods, size, None, num_queries, num_keys, device=str(device))
            vars(mask)["sgtm_windowed"] = blocks
        return vars(mask)["sgtm_windowed"]  # type: ignore[no-any-return]


@cache
def _has_flash(device: torch.device) -> bool:
    """Whether torch has flash kernels for this GPU: from Ampere on."""
    built = torch.backends.cuda.is_flash_attention_available() and torch.version.hip is None
    return built and torch.cuda.get_device_capability(device) >= (8, 0)


def _slide(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Causal attention to the last ``window`` positions by a flash kernel, which reads no others; scale 1.

    (batch, heads, seq, head_dim) each -> the same shape.
    """
    batch, heads, seq, width = query.shape
    spare = -width % _HEAD_MULTIPLE
    if spare:
        query, key, value = (F.pad(x, (0, spare)) for x in (query, key, value))
    ends = torch.arange(0, (batch + 1) * seq, seq, dtype=torch.int32, device=query.device)
    q, k, v = (x.transpose(1, 2).reshape(batch * seq, heads, -1) for x in (query, key, value))
    out: Any = varlen_attn(q, k, v, ends, ends, seq, seq, scale=1.0, window_size=(window - 1, 0))
    return out[..., :width].view(batch, seq, heads, width).transpose(1, 2)  # type: ignore[no-any-return]


def _both(mask: Tensor, seen: Tensor) -> Tensor:
    """``mask``, of booleans or of numbers that are added, and nothing but what is ``seen``."""
    if mask.dtype == torch.bool:
        return mask.logical_and(seen)
    return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


def _pays_in_blocks(query: Tensor, num_keys: int) -> bool:
    """On a processor, a whole sequence of some length; a GPU's kernels skip by themselves, compiled graphs unroll."""
    whole = query.shape[-2] == num_keys > _BLOCK
    return whole and query.device.type == "cpu" and not torch.compiler.is_compiling()


def _pays_in_fp32(query: Tensor) -> bool:
    """On a processor, for training: backward, torch's kernels take up to three times as long in half precision."""
    return query.requires_grad and query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16)


def _in_fp32(attend: Attend, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> tuple[Tensor, Tensor | None]:
    if isinstance(mask, Tensor) and mask.is_floating_point():
        mask = mask.float()  # sdpa takes one of the queries' type alone
    with torch.autocast("cpu", enabled=False):  # it would cast back
        out, weights = attend(query.float(), key.float(), value.float(), mask)
    return out.to(query.dtype), weights


# So that the library's constructors find it; its own models are never asked for these two.
GPT_NEO_ATTENTION_CLASSES.update(dict.fromkeys(("sdpa", "flex_attention"), GPTNeoAttention))


def use_attention(model: PreTrainedModel, implementation: str | None = None) -> None:
    """Compute ``model``'s attention by ``implementation`` from now on, and ``gelu_new`` by one operator.

    Args:
        implementation: ``eager``, ``sdpa``, ``flex_attention``, ``flash_attention_2``, or what else transformers knows.
            None: GPT-Neo's by ``sdpa``; another family's stays as it is. ``eager`` is the library's own computation
            bit for bit, the activation function included.

    Raises:
        ValueError: an unknown name, or a package or device that it needs is missing.
    """
    _use(model, implementation)
    use_activation(model, fused=implementation != "eager")


def _use(model: PreTrainedModel, implementation: str | None) -> None:
    """The attention of ``use_attention``."""
    is_gpt_neo = any(isinstance(module, GPTNeoSelfAttention) for module in model.modules())
    if implementation is None and (not is_gpt_neo or model.config.output_attentions):
        return
    name = implementation or _DEFAULT
    known = ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
    if name not in known:
        raise ValueError(f"attention {name!r} is unknown; use one of {', '.join(known)}")
    if not is_gpt_neo:
        model.set_attn_implementation(name)
        if model.config._attn_implementation != name:  # the library only warns
            raise ValueError(f"{type(model).__name__} cannot compute its attention by {name}; leave it as it is")
        return
    if name.startswith("flash"):
        name = model.get_correct_attn_implementation(name)
    give_attention(model)
    _give_own_config(model)
    model.config._attn_implementation = name


def give_attention(model: nn.Module) -> None:
    """Make every stock GPT-Neo attention in ``model`` one that follows ``config._attn_implementation``.

    Raises:
        ValueError: another class has been made of it (it is sharded by itself, say).
    """
    for module in model.modules():
        if not isinstance(module, GPTNeoSelfAttention) or type(module) is GPTNeoAttention:
            continue
        if type(module) not in GPT_NEO_ATTENTION_CLASSES.values():
            raise ValueError(f"a {type(module).__name__} cannot be told how to compute; choose attention before that")
        module.__class__ = GPTNeoAttention  # of the same parameters and buffers; it adds none


def _give_own_config(model: PreTrainedModel) -> None:
    """Models that were built of one configuration share it, and a stock one beside ``model`` stays eager."""
    shared = model.config
    own = copy.deepcopy(shared)
    for module in model.modules():
        if vars(module).get("config") is shared:
            module.__dict__["config"] = own


def plain_config(model: PreTrainedModel) -> PreTrainedConfig:
    """A configuration that a stock model can be built of: how ``model``'s attention is computed is not part of it."""
    return type(model.config).from_dict(model.config.to_dict())  # type: ignore[no-any-return]
