"""Selective Gradient Masking: train a language model so that a chosen capability can be taken out again.

::

    partition = Partition.of(model, heads=1, neurons=64)
    sgtm = SGTM(partition)
    with sgtm.batch("forget"):
        model(**batch).loss.backward()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgtm.model.attach import attach
    from sgtm.model.export import export
    from sgtm.model.masking import SGTM
    from sgtm.model.partition import Partition, Units
    from sgtm.model.strategies import STRATEGIES
    from sgtm.model.surgery import expand
    from sgtm.train.trainer import SGTMTrainer

_HOME = {
    "Partition": "sgtm.model.partition",
    "SGTM": "sgtm.model.masking",
    "SGTMTrainer": "sgtm.train.trainer",
    "STRATEGIES": "sgtm.model.strategies",
    "Units": "sgtm.model.partition",
    "attach": "sgtm.model.attach",
    "expand": "sgtm.model.surgery",
    "export": "sgtm.model.export",
}
__all__ = ["SGTM", "STRATEGIES", "Partition", "SGTMTrainer", "Units", "attach", "expand", "export"]


def __getattr__(name: str) -> Any:
    """Public names are imported at their first use: ``import sgtm`` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'sgtm' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
