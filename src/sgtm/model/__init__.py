"""Partition, masking and the GPT-Neo classes. Importing this registers ``gpt_neo_sgtm`` with the Auto classes."""

from sgtm.model.gpt_neo import (
    GPTNeoBlockSGTM,
    GPTNeoForCausalLMSGTM,
    GPTNeoModelSGTM,
    GPTNeoSGTMConfig,
)
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition, Slice
from sgtm.model.split_linear import SplitLinearOut
from sgtm.model.strategies import STRATEGIES, Strategy

__all__ = [
    "SGTM",
    "STRATEGIES",
    "GPTNeoBlockSGTM",
    "GPTNeoForCausalLMSGTM",
    "GPTNeoModelSGTM",
    "GPTNeoSGTMConfig",
    "Partition",
    "Slice",
    "SplitLinearOut",
    "Strategy",
]
